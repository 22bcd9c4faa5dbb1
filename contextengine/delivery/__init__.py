"""What next when a delivery fails: pure, no I/O, no clock, no randomness."""
