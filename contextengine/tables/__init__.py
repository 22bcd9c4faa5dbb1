"""State that survives a worker: changelog-backed tables of live objects."""
