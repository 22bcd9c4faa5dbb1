"""An installation's topics, as an audit and a recording read them: a partition at a time, and only what is settled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiokafka import TopicPartition

from contextengine.errors import UndecodableRecord
from contextengine.replay.evidence import (
    ATTEMPT,
    CANCELLATION,
    DECISION,
    LETTER,
    OUTCOME,
    RETRY,
    VERDICT,
    Evidence,
)
from contextengine.replay.log import Bounds, LogReader
from contextengine.replay.opening import Opening
from contextengine.replay.states import States
from contextengine.schemas.events import RulesChanged
from contextengine.topics import rulebook
from contextengine.topics.catalogue import catalogue
from contextengine.topics.intake import event_in
from contextengine.topics.registry import codec_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiokafka import ConsumerRecord

    from contextengine.replay.span import Span
    from contextengine.schemas.codec import Codec
    from contextengine.settings import Settings
    from contextengine.topics.catalogue import Catalogue, Topic


@dataclass(slots=True)
class Part:
    """What is meant of one partition: its events from `opening` up to `end`, and what was written about it.

    Everything up to `end` is judged and durable; `unjudged` events that were asked for lie behind it.
    """

    number: int
    opening: Opening
    end: int
    unjudged: int
    evidence: Evidence


class Source:
    """The topics of an installation, and its rule sets by hash: their texts, and their versions."""

    def __init__(
        self, settings: Settings, reader: LogReader, codec: Codec, entries: Mapping[str, rulebook.Entry]
    ) -> None:
        self.topics: Catalogue = catalogue(settings)
        self.codec = codec
        self.partitions = settings.partitions
        self.rules = {key: entry.value.decode() for key, entry in entries.items() if not rulebook.is_no_rule_set(key)}
        self.log_id = entries[rulebook.LOG_ID].value.decode() if rulebook.LOG_ID in entries else ""
        self._versions = {key: entry.offset for key, entry in entries.items()}
        self._reader = reader
        self._bounds: dict[TopicPartition, Bounds] = {}

    async def look(self) -> None:
        """Note how far the topics go now."""
        topics = self.topics
        # In this order: a state is written after the outputs that it knows of, and they after their event.
        for group in (
            [topics.sessions_changelog],
            [topics.injections, topics.retry_1s, topics.results, topics.decisions, topics.attempts, topics.dead],
            [topics.events],
        ):
            self._bounds |= await self._reader.bounds(*group)

    async def parts(self, span: Span) -> AsyncIterator[Part]:
        """Each partition that is meant, without verdicts and dead letters."""
        for number in span.partitions(self.partitions):
            yield await self._part(number, span)

    def events(self, part: Part) -> AsyncIterator[ConsumerRecord]:
        """The events of a part, in order; also those before what was asked for that its opening needs."""
        events = TopicPartition(self.topics.events.name, part.number)
        return self._reader.read(events, Bounds(part.opening.start, part.end))

    def later_events(self, part: Part) -> AsyncIterator[ConsumerRecord]:
        """The events behind a part."""
        events = TopicPartition(self.topics.events.name, part.number)
        return self._reader.read(events, Bounds(part.end, self._bounds[events].end))

    async def read_verdicts(self, part: Part) -> None:
        """Add the verdicts on attempts to a part's evidence."""
        attempts = self.topics.attempts
        shortened = self._shortened(attempts, part.number, VERDICT)
        await part.evidence.read_verdicts(self._records(attempts, part.number), shortened)

    async def read_letters(self, part: Part) -> None:
        """Add the dead letters to a part's evidence."""
        topics = self.topics
        shortened = self._shortened(topics.dead, part.number, LETTER)
        await part.evidence.read_letters(self._records(topics.dead, part.number), topics.events.name, shortened)

    async def _part(self, number: int, span: Span) -> Part:
        topics = self.topics
        events = TopicPartition(topics.events.name, number)
        log = self._bounds[events]
        asked = await span.bounds(self._reader, events, log)
        states = States(asked.start)
        await states.read(self._records(topics.sessions_changelog, number))
        evidence = Evidence(self.codec.decode, span.session_id)
        for topic, *kinds in (
            (topics.injections, ATTEMPT, CANCELLATION),
            (topics.retry_1s, RETRY),
            (topics.results, OUTCOME),
            (topics.decisions, DECISION),
        ):
            await evidence.read_outputs(self._records(topic, number), self._shortened(topic, number, *kinds))
        rules_hash = await self._rules_at(log.start, events, evidence.rules_told() + states.rules_told())
        opening = Opening.of(number, log, states, log_id=self.log_id, versions=self._versions, rules_hash=rules_hash)
        end = opening.start if asked.start >= asked.end else max(opening.start, min(asked.end, states.floor + 1))
        return Part(number, opening, end, max(0, asked.end - max(end, asked.start)), evidence)

    async def _rules_at(self, start: int, events: TopicPartition, told: list[tuple[int, str]]) -> str:
        """The rule set in force at `start`, by what is told of other offsets; "" when nothing is.

        The next one that is told counts, unless a RulesChanged comes before it: then the last one before `start`.
        """
        before = max((one for one in told if one[0] < start), default=None)
        at, rules_hash = min((one for one in told if one[0] >= start), default=before or (start, ""))
        if before is not None and before[1] != rules_hash:
            async for record in self._reader.read(events, Bounds(start, at)):
                with suppress(UndecodableRecord):
                    if isinstance(event_in(record, record.partition, self.partitions, self.codec.decode), RulesChanged):
                        return before[1]
        return rules_hash

    def _shortened(self, topic: Topic, number: int, *kinds: str) -> Collection[str]:
        """The kinds of records that are on a topic, if it has lost its start."""
        return kinds if self._bounds[TopicPartition(topic.name, number)].start else ()

    def _records(self, topic: Topic, number: int) -> AsyncIterator[ConsumerRecord]:
        partition = TopicPartition(topic.name, number)
        return self._reader.read(partition, self._bounds[partition])


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Source]:
    """The source of an installation, which has looked how far its topics go.

    Raises BrokerUnavailable, and ConfigurationError for topics that are not there.
    """
    codec = await asyncio.to_thread(codec_of, settings)
    entries = await rulebook.read(settings)
    async with LogReader(settings, catalogue(settings)) as reader:
        source = Source(settings, reader, codec, entries)
        await source.look()
        yield source
