"""The work that every contestant of throughput.py does: an event of 400 bytes, a session's state, perhaps an injection.

Only the standard library, fastavro and msgspec are needed, so that it runs in anybody's environment.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Final

import fastavro
import msgspec

SESSIONS: Final = 1_000


class Event(msgspec.Struct, gc=False):
    """Somebody said something in a call."""

    session_id: str
    seq: int
    at_ms: int
    kind: str
    speaker: str
    text: str
    confidence: float
    attributes: dict[str, str]


class Injection(msgspec.Struct, gc=False):
    """What a session is told; `INJECTION` is its schema."""

    id: str
    session_id: str
    deadline_ms: int
    text: str


class Session(msgspec.Struct):
    """What is kept of a session."""

    offset: int = -1
    events: int = 0
    last_ms: int = 0
    by_kind: dict[str, int] = {}
    recent: list[str] = []


EVENT: Final = fastavro.parse_schema(
    {
        "name": "Event",
        "type": "record",
        "fields": [
            {"name": "session_id", "type": "string"},
            {"name": "seq", "type": "long"},
            {"name": "at_ms", "type": "long"},
            {"name": "kind", "type": "string"},
            {"name": "speaker", "type": "string"},
            {"name": "text", "type": "string"},
            {"name": "confidence", "type": "double"},
            {"name": "attributes", "type": {"type": "map", "values": "string"}},
        ],
    }
)
INJECTION: Final = fastavro.parse_schema(
    {
        "name": "Injection",
        "type": "record",
        "fields": [
            {"name": "id", "type": "string"},
            {"name": "session_id", "type": "string"},
            {"name": "deadline_ms", "type": "long"},
            {"name": "text", "type": "string"},
        ],
    }
)


class SessionCodec:
    """A session as JSON."""

    _decoder = msgspec.json.Decoder(Session)

    def encode(self, session: Session) -> bytes:
        """The bytes of a session."""
        return msgspec.json.encode(session)

    def decode(self, body: bytes) -> Session:
        """The session in these bytes."""
        return self._decoder.decode(body)


def avro(schema: Any, record: dict[str, Any]) -> bytes:
    """A record in Avro."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, record)
    return out.getvalue()


def conversation_event(number: int) -> tuple[bytes, bytes]:
    """Key and value of the n-th event: some sentences of a call, the sessions in turns."""
    session_id = f"session-{number % SESSIONS:08d}"
    record = {
        "session_id": session_id,
        "seq": number // SESSIONS,
        "at_ms": 1_700_000_000_000 + number,
        "kind": ("transcript", "silence", "tool", "turn")[number % 4],
        "speaker": "caller",
        "text": "I have been waiting for the technician since nine o'clock, and nobody has called me back yet. " * 3,
        "confidence": 0.93,
        "attributes": {"language": "en-GB", "channel": "telephone", "region": "eu-west-1", "codec": "opus"},
    }
    return session_id.encode(), avro(EVENT, record)


def decode(value: bytes) -> Event:
    """The event in Avro's bytes, by fastavro."""
    fields: Any = fastavro.schemaless_reader(io.BytesIO(value), EVENT, None)
    return Event(**fields)


def injection(injection_id: str, session_id: str, deadline_ms: int, text: str) -> bytes:
    """An injection in Avro, by fastavro."""
    return avro(INJECTION, {"id": injection_id, "session_id": session_id, "deadline_ms": deadline_ms, "text": text})


def judge(
    event: Event,
    session: Session,
    offset: int,
    one_output_in: int,
    injection: Callable[[str, str, int, str], bytes] = injection,
) -> bytes | None:
    """Update a session by an event; an injection for some. Its id is derived: a copy after a crash has the same."""
    session.offset = offset
    session.events += 1
    session.last_ms = event.at_ms
    session.by_kind[event.kind] = session.by_kind.get(event.kind, 0) + 1
    session.recent = [*session.recent[-4:], event.text[:40]]
    if session.events % one_output_in:
        return None
    text = "The technician is twelve minutes away; offer the caller a message when he arrives."
    return injection(f"{event.session_id}/{event.seq}", event.session_id, session.last_ms, text)
