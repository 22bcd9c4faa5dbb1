"""What the engine takes for an event: whoever reads the events topic draws the same line.

What is none goes to the dead letters, and changes no session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from contextengine.errors import UndecodableRecord
from contextengine.schemas.events import (
    PARTITION_EVENTS,
    AttemptReported,
    ConversationEvent,
    InjectionRedriven,
    RetryDue,
    Tick,
)
from contextengine.topics.catalogue import EVENT_BYTES, KEY_BYTES, partition_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from contextengine.schemas.events import AnyEvent

SMALL_BYTES: Final = 1_024
IDENTITY_CHARACTERS: Final = 256
IDENTITIES: Final = (
    *("producer", "channel", "speaker", "emotion"),
    *("provider", "model", "route", "call_id", "user_id", "modality"),
)
"""What a session's state and its outputs repeat, and so must be short; a small event cannot hold much of it."""
_SESSION_EVENTS: Final = (ConversationEvent, Tick, AttemptReported, RetryDue, InjectionRedriven)


class Bytes(Protocol):
    """A record as it lies in a partition."""

    @property
    def partition(self) -> int:
        """The partition that it lies in."""

    @property
    def key(self) -> bytes | None:
        """Its key."""

    @property
    def value(self) -> bytes | None:
        """Its value."""


def event_in(record: Bytes, partitions: int, decode: Callable[[bytes], Any]) -> AnyEvent:
    """The event; UndecodableRecord for what is none, is too large, or sits in the wrong one of so many partitions."""
    value = record.value
    if value is None:
        raise UndecodableRecord("no value")
    if len(value) > EVENT_BYTES:
        raise UndecodableRecord(f"{len(value)} bytes, at most {EVENT_BYTES} are allowed")
    event = decode(value)
    if isinstance(event, PARTITION_EVENTS):
        return event
    if not isinstance(event, _SESSION_EVENTS):
        raise UndecodableRecord(f"a {type(event).__name__} is no event")
    key = event.session_id.encode()
    if record.key != key:
        raise UndecodableRecord(f"its key is {record.key!r}, its session {event.session_id!r}")
    if len(key) > KEY_BYTES:
        raise UndecodableRecord(f"a session id of {len(key)} bytes, at most {KEY_BYTES} are allowed")
    if len(value) > SMALL_BYTES:
        _check_identities(event)
    belongs = partition_for(key, partitions)
    if belongs != record.partition:
        raise UndecodableRecord(f"session {event.session_id!r} belongs into partition {belongs}")
    return event


def _check_identities(event: AnyEvent) -> None:
    """Raises UndecodableRecord when a field is too long that the session's state and its outputs repeat."""
    for name in IDENTITIES:
        if len(getattr(event, name, None) or "") > IDENTITY_CHARACTERS:
            raise UndecodableRecord(f"{name} is longer than {IDENTITY_CHARACTERS} characters")
