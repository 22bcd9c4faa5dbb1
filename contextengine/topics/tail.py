"""Follows topics as they grow, for people, scripts and the demo: each record with what it says, if it can be decoded.

It belongs to no consumer group and commits nothing. Order holds within a partition, and roughly by time between them.
"""

from __future__ import annotations

import asyncio
import json
import struct
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from contextengine.errors import ConfigurationError, UndecodableRecord
from contextengine.schemas.codec import MARKER, REGISTRY_MARKER, SINGLE_OBJECT, Codec
from contextengine.schemas.session import STATE_HEADER
from contextengine.topics.catalogue import DEAD_MESSAGE_BYTES, catalogue
from contextengine.topics.errand import errand
from contextengine.topics.registry import codec_of
from contextengine.topics.rulebook import must_exist

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from aiokafka.structs import ConsumerRecord
    from msgspec import Struct

    from contextengine.settings import Settings

POLL_MS: Final = 100
FETCH_WAIT_MS: Final = 50


@dataclass(frozen=True, slots=True)
class Seen:
    """A record as it lies on its topic."""

    topic: str
    partition: int
    offset: int
    appended_ms: int
    key: str
    headers: dict[str, str]
    value: bytes | None
    codec: Codec = SINGLE_OBJECT

    def record(self) -> Struct:
        """The record of ours in the value. Raises UndecodableRecord."""
        return self.codec.decode(self.value or b"")

    def told(self) -> tuple[str, Any]:
        """What kind of thing the value is, and what it says in JSON's terms; never raises."""
        if self.value is None:
            return "empty", None
        is_state = self.topic.endswith("-changelog")
        if self.value.startswith((MARKER, REGISTRY_MARKER)) and not is_state:
            try:
                record = self.record()
            except UndecodableRecord as undecodable:
                return f"undecodable ({undecodable})", self.value.hex()
            return type(record).__name__, msgspec.to_builtins(record)
        try:
            if is_state:
                offset, generation = STATE_HEADER.unpack_from(self.value)
                state = json.loads(self.value[STATE_HEADER.size :])
                return "state", {"applied": offset, "generation": generation, **state}
            return "text", self.value.decode()
        except (ValueError, struct.error):  # bytes that are no UTF-8, no JSON, or too few
            return "bytes", self.value.hex()


def topic_named(settings: Settings, name: str) -> str:
    """The full name of the topic that `name` means: `events`, `injections.dead`, or a full name.

    Raises ConfigurationError with the names that there are.
    """
    known = {topic.name.removeprefix(f"{settings.prefix}."): topic.name for topic in catalogue(settings)}
    known |= catalogue_names(settings) | {full: full for full in known.values()}
    if name not in known:
        short = ", ".join(catalogue_names(settings))
        raise ConfigurationError(f"no topic {name!r}; there are {short}")
    return known[name]


def catalogue_names(settings: Settings) -> dict[str, str]:
    """The short names of the topics, as the catalogue calls them, with the full ones."""
    return {short: topic.name for short, topic in catalogue(settings)._asdict().items()}


async def follow(
    settings: Settings, topics: Sequence[str], *, from_start: bool = True, to_end: bool = False
) -> AsyncGenerator[Seen]:
    """What `records` gives, as it is to be shown."""
    codec = await asyncio.to_thread(codec_of, settings)
    async with aclosing(records(settings, topics, from_start=from_start, to_end=to_end)) as following:
        async for record in following:
            yield _seen(record, codec)


async def records(
    settings: Settings, topics: Sequence[str], *, from_start: bool = True, to_end: bool = False
) -> AsyncGenerator[ConsumerRecord]:
    """The records of `topics` (full names), from the first one or from now on; `to_end` stops at what is there now.

    Raises BrokerUnavailable when no broker answers at the start, and ConfigurationError when there is no such topic.
    """
    async with _consumer(settings, topics) as (consumer, ends):
        if from_start:
            await consumer.seek_to_beginning(*ends)
        else:
            for partition, end in ends.items():
                consumer.seek(partition, end)
        while True:
            if to_end and all([await consumer.position(partition) >= end for partition, end in ends.items()]):
                return
            fetched = [
                record for records in (await consumer.getmany(timeout_ms=POLL_MS)).values() for record in records
            ]
            for record in sorted(fetched, key=lambda record: record.timestamp):
                yield record


@asynccontextmanager
async def _consumer(
    settings: Settings, topics: Sequence[str]
) -> AsyncGenerator[tuple[AIOKafkaConsumer, dict[TopicPartition, int]]]:
    """A consumer of all partitions, and where each ends now."""

    def consumer() -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            **settings.kafka_client(),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            max_partition_fetch_bytes=2 * DEAD_MESSAGE_BYTES,
        )

    async with errand(consumer(), settings) as asking:
        partitions: list[TopicPartition] = []
        for topic in topics:
            await must_exist(topic, asking._client)  # noqa: SLF001  no public way to ask without creating it
            count = len((await asking._client.fetch_all_metadata()).partitions_for_topic(topic) or ())  # noqa: SLF001
            partitions += [TopicPartition(topic, number) for number in range(count)]
        asking.assign(partitions)
        ends = await ends_of(partitions, asking)
    following = consumer()
    await following.start()
    try:
        following.assign(partitions)
        yield following, ends
    finally:
        await following.stop()


async def ends_of(partitions: Sequence[TopicPartition], consumer: AIOKafkaConsumer) -> dict[TopicPartition, int]:
    """Where the partitions end that are assigned to a consumer; it has read something of them then.

    A fetch says so: the embedded broker's ListOffsets answers can be too low.
    """
    ends: dict[TopicPartition, int] = {}
    while len(ends) < len(partitions):
        await consumer.getmany(timeout_ms=POLL_MS)
        ends |= {
            partition: end
            for partition in partitions
            if partition not in ends and (end := consumer.highwater(partition)) is not None
        }
    return ends


def _seen(record: ConsumerRecord, codec: Codec) -> Seen:
    return Seen(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        appended_ms=record.timestamp,
        key=(record.key or b"").decode(errors="replace"),
        headers={name: (value or b"").decode(errors="replace") for name, value in record.headers},
        value=record.value,
        codec=codec,
    )
