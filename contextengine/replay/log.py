"""Reads parts of partitions, as they lie there: no consumer group, nothing committed, no record too old or too strange.

What is read ends where the partition ended when `bounds` was asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from aiokafka import AIOKafkaConsumer, TopicPartition

from contextengine.errors import BrokerUnavailable, TopicMismatch
from contextengine.topics.catalogue import DEAD_MESSAGE_BYTES
from contextengine.topics.errand import errand
from contextengine.topics.rulebook import must_exist
from contextengine.topics.tail import ends_of

if TYPE_CHECKING:
    from types import TracebackType

    from aiokafka import ConsumerRecord

    from contextengine.settings import Settings
    from contextengine.topics.catalogue import Topic

POLL_MS: Final = 200
SILENCE_S: Final = 20.0
"""How long a broker that has answered may say nothing about records that are there."""


class Bounds(NamedTuple):
    """The first offset of a partition, and the one after its last."""

    start: int
    end: int


class LogReader:
    """Reads these topics; enter it with `async with`.

    Raises BrokerUnavailable when no broker answers or one stops answering, ConfigurationError for a topic that is not
    there, and TopicMismatch for one with another number of partitions.
    """

    def __init__(self, settings: Settings, topics: Sequence[Topic]) -> None:
        self._settings = settings
        self._topics = topics

    async def __aenter__(self) -> Self:
        async with errand(self._new_consumer(), self._settings) as asking:
            for topic in self._topics:
                await must_exist(topic.name, asking._client)  # noqa: SLF001  no public way to ask without creating it
                found = len((await asking._client.fetch_all_metadata()).partitions_for_topic(topic.name) or ())  # noqa: SLF001
                if found != topic.partitions:
                    raise TopicMismatch(topic.name, "partitions", found, topic.partitions)
        self._consumer = self._new_consumer()
        await self._consumer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._consumer.stop()

    async def bounds(self, *topics: Topic) -> dict[TopicPartition, Bounds]:
        """Where the partitions of these topics begin and end now."""
        partitions = [TopicPartition(topic.name, number) for topic in topics for number in range(topic.partitions)]
        starts = await self._consumer.beginning_offsets(partitions)
        self._consumer.assign(partitions)
        for partition, end in (await self._consumer.end_offsets(partitions)).items():
            self._consumer.seek(partition, end)
        try:
            async with asyncio.timeout(SILENCE_S):
                ends = await ends_of(partitions, self._consumer)
        except TimeoutError:
            raise self._has_fallen_silent() from None
        return {partition: Bounds(starts[partition], ends[partition]) for partition in partitions}

    async def offset_at(self, partition: TopicPartition, time_ms: int) -> int | None:
        """The offset of the partition's first record of this time or later, None when there is none."""
        found = (await self._consumer.offsets_for_times({partition: time_ms}))[partition]
        return None if found is None else int(found.offset)

    async def read(self, partition: TopicPartition, bounds: Bounds) -> AsyncIterator[ConsumerRecord]:
        """The records of a partition within these bounds."""
        if bounds.start >= bounds.end:
            return
        self._consumer.assign([partition])
        self._consumer.seek(partition, bounds.start)
        waited_since = time.monotonic()
        while await self._consumer.position(partition) < bounds.end:
            records = (await self._consumer.getmany(partition, timeout_ms=POLL_MS)).get(partition, [])
            for record in records:
                if record.offset >= bounds.end:
                    return
                yield record
            if records:
                waited_since = time.monotonic()
            elif time.monotonic() > waited_since + SILENCE_S:
                raise self._has_fallen_silent()

    def _has_fallen_silent(self) -> BrokerUnavailable:
        return BrokerUnavailable(f"the broker at {self._settings.broker} has stopped answering")

    def _new_consumer(self) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            **self._settings.kafka_client(),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=50,
            max_partition_fetch_bytes=2 * DEAD_MESSAGE_BYTES,
        )
