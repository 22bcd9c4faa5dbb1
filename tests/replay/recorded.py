"""A call of the test kit as a recording, as `contextengine record` would have made one of it."""

from __future__ import annotations

from contextengine.replay.recording import Header, LogRecord, Recording
from contextengine.rulefile import parse_rules, rules_hash
from contextengine.schemas.session import Partition
from contextengine.testing import Call


def call_under(text: str, **start: object) -> Call:
    """A call under the rules that `text` writes down."""
    return Call(parse_rules(text, "rules.yaml"), **start)


def recorded(call: Call, *texts: str) -> Recording:
    """The recording of a call that has begun here; `texts` are its rule sets, the one that it began with first."""
    known = {rules_hash(text): text for text in texts}
    return Recording(
        Header(engine="test", log_id="log", topic="events", partitions=1, rules=known),
        partitions={0: Partition(0, rules_hash=rules_hash(texts[0]))},
        records=[
            LogRecord(partition=0, offset=offset, appended_ms=appended_ms, event=event)
            for offset, (event, appended_ms) in enumerate(call.log)
        ],
    )
