"""What workers and delivery consumers have written about one partition of events: the things that an audit compares.

Each is known by what it is about, so that a copy, which a redelivery makes, is told from a second, other one.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from msgspec import Struct

from contextengine.errors import UndecodableRecord
from contextengine.schemas.dead_letter import PREFIX
from contextengine.schemas.decision import DecisionMade
from contextengine.schemas.injection import (
    AttemptVerdict,
    InjectionAttempt,
    InjectionCancelled,
    InjectionResult,
    RetryRequested,
)
from contextengine.topics.dead_letters import unpacked
from contextengine.topics.trace import cause_of

if TYPE_CHECKING:
    from aiokafka import ConsumerRecord

Name: TypeAlias = tuple[str, str, str]
"""What something is, its session, and what tells it from others of that session."""

ATTEMPT: Final = "attempt"
CANCELLATION: Final = "cancellation"
RETRY: Final = "retry"
OUTCOME: Final = "outcome"
DECISION: Final = "decision"
VERDICT: Final = "verdict"
LETTER: Final = "dead letter"


def name_of(output: Struct) -> Name:
    """What a worker's output is about."""
    match output:
        case InjectionAttempt():
            return ATTEMPT, output.session_id, f"{output.injection.injection_id}/{output.attempt}"
        case InjectionCancelled():
            return CANCELLATION, output.session_id, output.injection_id
        case RetryRequested():
            return RETRY, output.session_id, f"{output.injection_id}/{output.attempt}"
        case InjectionResult():
            return OUTCOME, output.session_id, output.injection_id
        case DecisionMade():
            return DECISION, output.session_id, f"{output.position} {output.digest}"
        case _:
            raise UndecodableRecord(f"a {type(output).__name__} is no output of a worker")


@dataclass(slots=True)
class Written:
    """A worker's output: what it says, the events that it was written because of, and what its other copies say.

    `expected` are the events that must lead to it, `place` is its own among all that is expected, by the first of them.
    """

    value: Struct
    causes: set[int | None]
    copies: int = 0
    others: list[Struct] = field(default_factory=list)
    expected: set[int] = field(default_factory=set)
    place: int = 0


class Oldest(NamedTuple):
    """The oldest record that is left of a topic: the event that it was written because of, if it says so; its time."""

    cause: int | None
    time_ms: int


class Letter(NamedTuple):
    """A dead letter about this partition of the events topic."""

    offset: int
    stage: str
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]

    def keeps(self, value: bytes | None) -> bool:
        """Whether it has these bytes: as they are, as gzip, or cut, with their digest."""
        encoding = self.headers.get("cx-encoding", b"")
        if self.value is None or value is None or not encoding:
            return self.value == value
        if encoding == b"gzip":
            with suppress(UndecodableRecord):
                return unpacked(self.value, "gzip") == value
            return False
        sha256 = hashlib.sha256(value).hexdigest().encode()
        return value.startswith(self.value) and self.headers.get("cx-sha256") == sha256


@dataclass(slots=True)
class Evidence:
    """All that is there of one partition; `strange` are records that cannot be read, by topic and offset.

    `oldest` has the kinds of things whose topic has lost its start: to retention, or because somebody purged it.
    """

    decode: Callable[[bytes], Any]
    session_id: str | None = None
    outputs: dict[Name, Written] = field(default_factory=dict)
    verdicts: dict[Name, Written] = field(default_factory=dict)
    letters: list[Letter] = field(default_factory=list)
    strange: list[tuple[str, int, str]] = field(default_factory=list)
    oldest: dict[str, Oldest | None] = field(default_factory=dict)

    async def read_outputs(self, records: AsyncIterator[ConsumerRecord], shortened: Collection[str]) -> None:
        """Take what a worker writes; `shortened` are the kinds of output whose topic has lost its start."""
        self.oldest |= dict.fromkeys(shortened)
        async for record in records:
            cause = cause_of(record.headers)
            self._note_oldest(shortened, cause, record)
            output = self._decoded(record)
            if output is not None:
                try:
                    _add(self.outputs, name_of(output), output, cause)
                except UndecodableRecord as stranger:
                    self.strange.append((record.topic, record.offset, str(stranger)))

    async def read_verdicts(self, records: AsyncIterator[ConsumerRecord], shortened: Collection[str]) -> None:
        """Take what delivery consumers say; their marks have no value."""
        self.oldest |= dict.fromkeys(shortened)
        async for record in records:
            self._note_oldest(shortened, None, record)
            verdict = self._decoded(record) if record.value is not None else None
            if isinstance(verdict, AttemptVerdict):
                _add(self.verdicts, verdict_name(verdict), verdict, None)

    async def read_letters(
        self, records: AsyncIterator[ConsumerRecord], events: str, shortened: Collection[str]
    ) -> None:
        """Take the dead letters that came from the topic `events`."""
        self.oldest |= dict.fromkeys(shortened)
        async for record in records:
            headers = dict(record.headers)
            offset = headers.get(f"{PREFIX}offset", b"")
            is_of_an_event = headers.get(f"{PREFIX}topic") == events.encode() and offset.isdigit()
            self._note_oldest(shortened, int(offset) if is_of_an_event else None, record)
            if is_of_an_event:
                stage = headers.get(f"{PREFIX}stage", b"").decode(errors="replace")
                self.letters.append(Letter(int(offset), stage, record.key, record.value, headers))

    def may_lack(self, kind: str, offset: int, time_ms: int) -> bool:
        """Whether what followed from this event may have been deleted with the start of its topic.

        What followed from a later event than the oldest record that is left was written after that one, so it is there.
        """
        oldest = self.oldest.get(kind)
        if oldest is None:
            return kind in self.oldest  # then nothing at all is left
        return time_ms <= oldest.time_ms if oldest.cause is None else offset <= oldest.cause

    def rules_told(self) -> list[tuple[int, str]]:
        """Which rule set was in force at which offset, as explanations of the events there say."""
        return [
            (cause, written.value.rules_hash)
            for written in self.outputs.values()
            if isinstance(written.value, DecisionMade)
            for cause in written.causes
            if cause is not None
        ]

    def _note_oldest(self, kinds: Collection[str], cause: int | None, record: ConsumerRecord) -> None:
        for kind in kinds:
            self.oldest[kind] = self.oldest[kind] or Oldest(cause, record.timestamp)

    def _decoded(self, record: ConsumerRecord) -> Struct | None:
        if self.session_id is not None and record.key != self.session_id.encode():
            return None
        try:
            return self.decode(record.value or b"")  # type: ignore[no-any-return]
        except UndecodableRecord as error:
            self.strange.append((record.topic, record.offset, str(error)))
            return None


def verdict_name(verdict: AttemptVerdict) -> Name:
    """What a verdict is about."""
    return VERDICT, verdict.session_id, f"{verdict.injection_id}/{verdict.attempt}"


def _add(into: dict[Name, Written], name: Name, value: Struct, cause: int | None) -> None:
    known = into.get(name)
    if known is None:
        into[name] = Written(value, {cause})
        return
    known.copies += cause in known.causes
    known.causes.add(cause)
    if value != known.value and value not in known.others:
        known.others.append(value)
