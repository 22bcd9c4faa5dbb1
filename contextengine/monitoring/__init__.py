"""What the processes tell about themselves: metrics and health."""
