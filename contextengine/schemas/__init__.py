"""What every record is: events, contexts, injections, decisions and the state of a session."""
