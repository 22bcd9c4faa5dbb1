"""The dead letters' topic: what lies there, how it is found, and how it is deleted.

A record there with the headers of `delivery.dead_letter` is a letter; DeadLetterRedriven says that one was sent back.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from contextengine.errors import ConfigurationError, UndecodableRecord
from contextengine.schemas.dead_letter import PREFIX, DeadLetterRedriven, Stage
from contextengine.schemas.injection import InjectionAttempt, InjectionResult
from contextengine.topics.admin import admin_client
from contextengine.topics.catalogue import catalogue
from contextengine.topics.errand import errand
from contextengine.topics.registry import codec_of
from contextengine.topics.tail import records

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from aiokafka.structs import ConsumerRecord

    from contextengine.schemas.codec import Codec
    from contextengine.settings import Settings

UNPACKED_BYTES: Final = 16 * 1024 * 1024
"""The largest value that is unpacked."""
NUMBERS: Final = ("partition", "offset", "timestamp-ms", "redrives")
NUMBER: Final = re.compile(r"[0-9]{1,18}")
TOLD_BY_ALL: Final = frozenset({"stage", "class", "message", "topic", *NUMBERS})


class Place(NamedTuple):
    """Where a letter lies."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"

    @classmethod
    def read(cls, written: str) -> Self:
        """The place that `3:42` means. ValueError for what means none."""
        partition, _, offset = written.partition(":")
        return cls(int(partition), int(offset))


@dataclass(slots=True)
class Redrive:
    """That a letter was sent back; `outcome` is what is known of what came of it."""

    number: int
    at_ms: int
    by: str
    injection_id: str
    outcome: str = ""


@dataclass(slots=True)
class DeadLetter:
    """A letter without its bytes. `told` are our headers without their prefix; what it is about is "" if not known."""

    place: Place
    buried_ms: int
    size: int
    told: dict[str, str]
    session_id: str
    provider: str = ""
    rule: str = ""
    redrives: list[Redrive] = field(default_factory=list)

    @property
    def sent_back(self) -> int:
        """How often its record has been sent back by now, as this letter or as an earlier one."""
        return max([int(self.told["redrives"]), *(redrive.number for redrive in self.redrives)])

    @property
    def unfit(self) -> str:
        """Why it can never be redriven; "" if it can."""
        if self.told["stage"] == Stage.DECIDE:
            return (
                "the engine failed on this event after it had taken it in: what it had decided by then was carried "
                "out, and a copy would be dropped as a duplicate. Report the defect"
            )
        if self.told.get("encoding") == "cut":
            return f"of its {self.told['size']} bytes only the first {self.size} were kept"
        return ""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters are meant: those for which everything holds that is not None. Times are the letters' own."""

    places: frozenset[Place] | None = None
    stage: str | None = None
    error_class: str | None = None
    provider: str | None = None
    session_id: str | None = None
    rule: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None

    def has(self, letter: DeadLetter) -> bool:
        """Whether this letter is meant."""
        wanted_and_found = (
            (self.stage, letter.told["stage"]),
            (self.error_class, letter.told["class"]),
            (self.provider, letter.provider),
            (self.session_id, letter.session_id),
            (self.rule, letter.rule),
        )
        return (
            (self.places is None or letter.place in self.places)
            and all(wanted in (None, found) for wanted, found in wanted_and_found)
            and (self.since_ms is None or letter.buried_ms >= self.since_ms)
            and (self.until_ms is None or letter.buried_ms < self.until_ms)
        )


async def survey(settings: Settings, selection: Selection = Selection()) -> list[DeadLetter]:
    """The letters that are meant, in the order of time, with their redrives and what came of them.

    A letter that was written twice, because whoever wrote it had to start again, is one letter; so is a redrive one.
    Raises BrokerUnavailable, and ConfigurationError when there is no such topic.
    """
    topics, codec = catalogue(settings), await asyncio.to_thread(codec_of, settings)
    letters: dict[Place, DeadLetter] = {}
    known: set[tuple[str | None, ...]] = set()
    recorded: list[tuple[Place, Redrive]] = []
    async with aclosing(records(settings, [topics.dead.name], to_end=True)) as lying:
        async for record in lying:
            letter = _letter(record, codec)
            if letter is None:
                recorded += _redrive(record, codec)
            elif known.isdisjoint(names := _names(letter)):
                letters[letter.place] = letter
                known |= names
    for place, redrive in recorded:
        if place in letters and redrive.number not in {each.number for each in letters[place].redrives}:
            letters[place].redrives.append(redrive)
    chosen = [letter for letter in letters.values() if selection.has(letter)]
    await _add_outcomes(settings, codec, chosen, letters.values())
    return sorted(chosen, key=lambda letter: letter.buried_ms)


async def contents(
    settings: Settings, letters: Iterable[DeadLetter]
) -> AsyncGenerator[tuple[DeadLetter, ConsumerRecord]]:
    """These letters with their records, as they lie there."""
    wanted = {letter.place: letter for letter in letters}
    if not wanted:
        return
    async with aclosing(records(settings, [catalogue(settings).dead.name], to_end=True)) as lying:
        async for record in lying:
            letter = wanted.get(Place(record.partition, record.offset))
            if letter is not None:
                yield letter, record


def unpacked(kept: bytes | None, encoding: str | None) -> bytes | None:
    """The value that a letter keeps in this encoding, or what it keeps of it. UndecodableRecord for a broken one."""
    if encoding != "gzip":
        return kept
    unpacking = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # with gzip's header
    try:
        value = unpacking.decompress(kept or b"", UNPACKED_BYTES)
    except zlib.error as broken:
        raise UndecodableRecord(f"it is no gzip: {broken}") from broken
    if unpacking.unconsumed_tail:
        raise UndecodableRecord(f"it has more than {UNPACKED_BYTES} bytes")
    if not unpacking.eof:
        raise UndecodableRecord("its gzip has no end")
    return value


@dataclass(frozen=True, slots=True)
class Purge:
    """What deleting a partition's records below `end` takes along."""

    partition: int
    end: int
    letters: int
    never_redriven: int


async def plan_purge(settings: Settings, before_ms: int) -> list[Purge]:
    """What can be deleted of the letters before a time: of each partition a prefix, for Kafka deletes nothing else.

    So no letter of that time or later goes, and no filter can be applied.
    """
    old: dict[int, int] = {}
    kept: dict[int, int] = {}
    async with aclosing(records(settings, [catalogue(settings).dead.name], to_end=True)) as lying:
        async for record in lying:
            if record.timestamp < before_ms:
                old[record.partition] = max(old.get(record.partition, 0), record.offset + 1)
            else:
                kept[record.partition] = min(kept.get(record.partition, record.offset), record.offset)
    ends = {partition: min(end, kept.get(partition, end)) for partition, end in old.items()}
    letters = [letter for letter in await survey(settings) if letter.place.offset < ends.get(letter.place.partition, 0)]
    return [
        Purge(
            partition,
            end,
            sum(letter.place.partition == partition for letter in letters),
            sum(letter.place.partition == partition and not letter.redrives for letter in letters),
        )
        for partition, end in sorted(ends.items())
    ]


async def purge(settings: Settings, purges: Iterable[Purge]) -> None:
    """Delete, for good. ConfigurationError on the embedded broker, which cannot."""
    if settings.embedded:
        raise ConfigurationError(
            "the embedded broker deletes no records: it hangs up when asked to. What it holds is gone when it stops"
        )
    topic = catalogue(settings).dead.name
    ends = {TopicPartition(topic, each.partition): RecordsToDelete(before_offset=each.end) for each in purges}
    async with errand(admin_client(settings), settings) as admin:
        await admin.delete_records(ends)


def _letter(record: ConsumerRecord, codec: Codec) -> DeadLetter | None:
    """The letter in a record of the dead letters' topic; None for what is none."""
    told = {
        name.removeprefix(PREFIX): (text or b"").decode(errors="replace")
        for name, text in record.headers
        if name.startswith(PREFIX)
    }
    if not told.keys() >= TOLD_BY_ALL or not all(NUMBER.fullmatch(told[name]) for name in NUMBERS):
        return None
    letter = DeadLetter(
        place=Place(record.partition, record.offset),
        buried_ms=record.timestamp,
        size=len(record.value or b""),
        told=told,
        session_id=(record.key or b"").decode(errors="replace"),
    )
    try:
        attempt = codec.decode_as(InjectionAttempt, unpacked(record.value, told.get("encoding")) or b"")
    except UndecodableRecord:
        return letter
    letter.provider, letter.rule = attempt.destination.provider, attempt.injection.rule
    return letter


def _redrive(record: ConsumerRecord, codec: Codec) -> list[tuple[Place, Redrive]]:
    try:
        redriven = codec.decode_as(DeadLetterRedriven, record.value or b"")
    except UndecodableRecord:
        return []  # nobody of ours has written it
    redrive = Redrive(redriven.number, record.timestamp, redriven.by, redriven.injection_id)
    return [(Place(record.partition, redriven.offset), redrive)]


def _names(letter: DeadLetter) -> set[tuple[str | None, ...]]:
    """What tells a letter from all others but its copies: its record; if that was sent back, from where and when."""
    told = letter.told
    record = tuple(told.get(name) for name in ("topic", "partition", "offset", "timestamp-ms", "injection-id"))
    return {record, (told["letter"], told["redrives"])} if "letter" in told else {record}


async def _add_outcomes(
    settings: Settings, codec: Codec, chosen: Iterable[DeadLetter], letters: Iterable[DeadLetter]
) -> None:
    """Say of each redrive what came of it."""
    redrives = [(letter, redrive) for letter in chosen for redrive in letter.redrives]
    buried = {(told["letter"], told["redrives"]): each.place for each in letters if "letter" in (told := each.told)}
    outcomes: dict[str, str] = {redrive.injection_id: "open" for _, redrive in redrives if redrive.injection_id}
    if outcomes:
        async with aclosing(records(settings, [catalogue(settings).results.name], to_end=True)) as ended:
            async for record in ended:
                with suppress(UndecodableRecord):  # not ours to bury
                    result = codec.decode_as(InjectionResult, record.value or b"")
                    if result.injection_id in outcomes:
                        outcomes[result.injection_id] = ": ".join(filter(None, (result.outcome, result.reason)))
    for letter, redrive in redrives:
        if redrive.injection_id:
            redrive.outcome = outcomes[redrive.injection_id]
        else:
            again = buried.get((str(letter.place), str(redrive.number)))
            redrive.outcome = "not buried again" if again is None else f"buried again as {again}"
