"""What workers and delivery consumers have written about one partition of events: the things that an audit compares.

Each is known by what it is about, so that a copy, which a redelivery makes, is told from a second, other one.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from msgspec import Struct

from contextengine.delivery.dead_letter import PREFIX
from contextengine.errors import UndecodableRecord
from contextengine.schemas.decision import DecisionMade
from contextengine.schemas.injection import (
    AttemptVerdict,
    InjectionAttempt,
    InjectionCancelled,
    InjectionResult,
    RetryRequested,
)
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
    """A worker's output: what it says, the events that it was written because of, and what its other copies say."""

    value: Struct
    causes: set[int | None]
    copies: int = 0
    others: list[Struct] = field(default_factory=list)
    expected_at: int | None = None
    """Its place among all that was expected, once it was."""


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
            return gzip.decompress(self.value) == value
        sha256 = hashlib.sha256(value).hexdigest().encode()
        return value.startswith(self.value) and self.headers.get("cx-sha256") == sha256


@dataclass(slots=True)
class Evidence:
    """All that is there of one partition; `strange` are records that cannot be read, by topic and offset."""

    decode: Callable[[bytes], Any]
    session_id: str | None = None
    outputs: dict[Name, Written] = field(default_factory=dict)
    verdicts: dict[Name, Written] = field(default_factory=dict)
    letters: list[Letter] = field(default_factory=list)
    strange: list[tuple[str, int, str]] = field(default_factory=list)

    async def read_outputs(self, records: AsyncIterator[ConsumerRecord]) -> None:
        """Take what a worker writes."""
        async for record in records:
            output = self._decoded(record)
            if output is not None:
                try:
                    _add(self.outputs, name_of(output), output, cause_of(record.headers))
                except UndecodableRecord as stranger:
                    self.strange.append((record.topic, record.offset, str(stranger)))

    async def read_verdicts(self, records: AsyncIterator[ConsumerRecord]) -> None:
        """Take what delivery consumers say; their marks have no value."""
        async for record in records:
            verdict = self._decoded(record) if record.value is not None else None
            if isinstance(verdict, AttemptVerdict):
                _add(self.verdicts, verdict_name(verdict), verdict, None)

    async def read_letters(self, records: AsyncIterator[ConsumerRecord], events: str) -> None:
        """Take the dead letters that came from the topic `events`."""
        async for record in records:
            headers = dict(record.headers)
            offset = headers.get(f"{PREFIX}offset", b"")
            if headers.get(f"{PREFIX}topic") == events.encode() and offset.isdigit():
                stage = headers.get(f"{PREFIX}stage", b"").decode(errors="replace")
                self.letters.append(Letter(int(offset), stage, record.key, record.value, headers))

    def rules_hash_at(self, start: int) -> str:
        """The rule set that the first explanation of an event at `start` or later names; "" when there is none."""
        made = (
            (min((cause for cause in written.causes if cause is not None), default=-1), written.value.rules_hash)
            for written in self.outputs.values()
            if isinstance(written.value, DecisionMade)
        )
        return min((found for found in made if found[0] >= start), default=(0, ""))[1]

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
    return "verdict", verdict.session_id, f"{verdict.injection_id}/{verdict.attempt}"


def _add(into: dict[Name, Written], name: Name, value: Struct, cause: int | None) -> None:
    known = into.get(name)
    if known is None:
        into[name] = Written(value, {cause})
        return
    known.causes.add(cause)
    known.copies += 1
    if value != known.value and value not in known.others:
        known.others.append(value)
