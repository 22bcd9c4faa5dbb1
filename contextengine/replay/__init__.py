"""What a log says, said again: recordings, exact replay, counterfactuals, and the audit of a topic range."""
