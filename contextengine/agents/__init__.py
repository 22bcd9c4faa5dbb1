"""Thin Faust wiring: decode, load, decide, store, send."""
