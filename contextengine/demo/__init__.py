"""What `make demo` runs: four calls, and all of the product around them, on one machine."""
