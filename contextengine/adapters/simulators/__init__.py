"""Providers to rehearse against: they speak the real protocols, refuse wrong frames and fail on demand."""
