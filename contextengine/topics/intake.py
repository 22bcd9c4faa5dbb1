"""What the engine takes for an event: whoever reads the events topic draws the same line.

What is none goes to the dead letters, and changes no session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from contextengine.errors import UndecodableRecord
from contextengine.schemas.events import (
    PARTITION_EVENTS,
    AttemptReported,
    ContextPushed,
    ConversationEvent,
    InjectionRedriven,
    RetryDue,
    Tick,
)
from contextengine.schemas.session import RESERVED
from contextengine.topics.catalogue import EVENT_BYTES, KEY_BYTES, partition_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from contextengine.schemas.events import AnyEvent

SMALL_BYTES: Final = 1_024
LONGEST_MS: Final = 36_600 * 24 * 3_600_000
"""What a rules file may ask for, a year, in the slowest rehearsal."""
IDENTITY_CHARACTERS: Final = 256
IDENTITIES: Final = (
    *("producer", "channel", "speaker", "emotion"),
    *("name", "key", "rule", "provider", "model", "route", "call_id", "user_id", "modality"),
)
"""What a session's state and its outputs repeat, and so must be short; a small event cannot hold much of it."""
_SESSION_EVENTS: Final = (ConversationEvent, Tick, AttemptReported, RetryDue, InjectionRedriven)


class Bytes(Protocol):
    """A record as it lies in a partition."""

    @property
    def key(self) -> bytes | None:
        """Its key."""

    @property
    def value(self) -> bytes | None:
        """Its value."""


def event_in(record: Bytes, partition: int, partitions: int, decode: Callable[[bytes], Any]) -> AnyEvent:
    """The event in a record of this partition, of so many; UndecodableRecord if there is none that belongs."""
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
    _check_place(event.session_id, record.key, partition, partitions)
    if len(value) > SMALL_BYTES:
        _check_identities(event)
    if isinstance(event, InjectionRedriven):
        _check_redriven(event)
    if isinstance(event, ContextPushed):
        _check_spans(ttl_ms=event.ttl_ms, fallback_ms=event.fallback_ms or 0)
    return event


def _check_place(session_id: str, found: bytes | None, partition: int, partitions: int) -> None:
    """Raises UndecodableRecord for a session's record that has another key, or lies where it does not belong."""
    key = session_id.encode()
    if found != key:
        raise UndecodableRecord(f"its key is {found!r}, its session {session_id!r}")
    if len(key) > KEY_BYTES:
        raise UndecodableRecord(f"a session id of {len(key)} bytes, at most {KEY_BYTES} are allowed")
    if key.startswith(RESERVED):
        raise UndecodableRecord("a session id that begins with a zero byte: such keys are the partitions' own")
    belongs = partition_for(key, partitions)
    if belongs != partition:
        raise UndecodableRecord(f"session {session_id!r} belongs into partition {belongs}")


def _check_redriven(event: InjectionRedriven) -> None:
    """Raises UndecodableRecord for an injection that was not this session's, or that no rule could have asked for."""
    injection = event.injection
    if injection.session_id != event.session_id:
        raise UndecodableRecord(f"an injection of the session {injection.session_id!r}, not of {event.session_id!r}")
    if oversize := injection.context.oversize():
        raise UndecodableRecord(oversize)
    _check_spans(ttl_ms=injection.context.metadata.ttl_ms, delay_ms=injection.policy.delay_ms)
    if not 0 < event.number < LONGEST_MS:
        raise UndecodableRecord(f"number is {event.number}: the first redrive is 1")


def _check_spans(**spans_ms: int) -> None:
    """Raises UndecodableRecord for a time that no rule could have asked for."""
    for name, span_ms in spans_ms.items():
        if not 0 <= span_ms <= LONGEST_MS:
            raise UndecodableRecord(f"{name} is {span_ms}, at most {LONGEST_MS} are allowed")


def _check_identities(event: AnyEvent) -> None:
    """Raises UndecodableRecord when a field is too long that the session's state and its outputs repeat."""
    for name in IDENTITIES:
        if len(getattr(event, name, None) or "") > IDENTITY_CHARACTERS:
            raise UndecodableRecord(f"{name} is longer than {IDENTITY_CHARACTERS} characters")
