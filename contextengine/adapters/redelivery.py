"""What a consumer must know before it makes the first attempt of a partition that it takes over.

A crash between an attempt's verdict and the commit of its offset brings the attempt again. Its verdict stands in the
attempts topic, so it must not be made again. Nothing can be there for attempts that were appended later than now, so a
marker tells where to stop reading; the append time of the oldest uncommitted attempt tells where to start.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from aiokafka import AIOKafkaConsumer, TopicPartition

from contextengine.adapters.group_reader import stop
from contextengine.adapters.lanes import KnownVerdicts
from contextengine.errors import UndecodableRecord
from contextengine.schemas.injection import AttemptVerdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from contextengine.adapters.attempt_log import AttemptLog
    from contextengine.schemas.codec import Codec

log = logging.getLogger(__name__)

SKEW_MS: Final = 10_000
"""How far apart the clocks may be that write the times of the two topics: the partitions' leaders are two machines."""


async def verdicts_since(positions: Mapping[int, int], attempts: AttemptLog) -> dict[int, KnownVerdicts]:
    """The verdicts on the attempts from `positions` on: offsets of the injections topic, by partition."""
    settings, topics = attempts.settings, attempts.topics
    consumer = AIOKafkaConsumer(
        **settings.kafka_client(), enable_auto_commit=False, auto_offset_reset="earliest", fetch_max_wait_ms=20
    )
    try:
        await consumer.start()
        markers = {partition: await attempts.add_marker(partition) for partition in positions}
        oldest_ms = await _oldest(consumer, topics.injections.name, positions)
        ends = {TopicPartition(topics.attempts.name, partition): markers[partition] for partition in oldest_ms}
        known = {partition: KnownVerdicts() for partition in positions}
        if not ends:
            return known
        consumer.assign(list(ends))
        if not settings.embedded:  # which answers offsets-for-times wrongly: there everything is read
            since = {tp: max(0, oldest_ms[tp.partition] - SKEW_MS) for tp in ends}
            for tp, found in (await consumer.offsets_for_times(since)).items():
                consumer.seek(tp, ends[tp] if found is None else found.offset)
        while ends:
            for tp, records in (await consumer.getmany(*ends, timeout_ms=100)).items():
                for record in records:
                    if record.value is not None:
                        _add(known[tp.partition], record.value, attempts.codec)
            ends = {tp: end for tp, end in ends.items() if await consumer.position(tp) <= end}
        return known
    finally:
        await stop(consumer)


async def _oldest(consumer: AIOKafkaConsumer, topic: str, positions: Mapping[int, int]) -> dict[int, int]:
    """The time of the first record at or after each position; nothing for a partition that has none."""
    waiting = {TopicPartition(topic, partition): position for partition, position in positions.items()}
    consumer.assign(list(waiting))
    for tp, position in waiting.items():
        consumer.seek(tp, position)
    oldest_ms: dict[int, int] = {}
    while waiting:
        for tp, records in (await consumer.getmany(*waiting, timeout_ms=20)).items():
            oldest_ms[tp.partition] = records[0].timestamp
            del waiting[tp]
        for tp, position in list(waiting.items()):
            end = consumer.highwater(tp)
            if end is not None and end <= position:
                del waiting[tp]
    return oldest_ms


def _add(known: KnownVerdicts, value: bytes, codec: Codec) -> None:
    try:
        known.add(codec.decode_as(AttemptVerdict, value))
    except UndecodableRecord as unreadable:  # not ours to bury: whoever acts on the attempts topic does that
        log.warning("a record of the attempts topic is skipped: %s", unreadable)
