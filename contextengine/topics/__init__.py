"""Every topic in one catalogue, and what is written to and read from topics."""
