"""Whether, what and when to inject: pure, deterministic, replayable. `decide` is the whole of it, top to bottom."""
