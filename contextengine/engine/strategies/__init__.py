"""When to inject: each strategy names the events it listens to and the evidence on which it fires.

The four families are the rooms: temporal, semantic, state-based, event-driven; `compose` joins them.
"""
