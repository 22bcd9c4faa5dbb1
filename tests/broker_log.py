"""What tests do with a topic: write records into it, and read all that is there."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from contextengine.schemas.codec import decode, encode
from contextengine.schemas.events import ConversationEvent, SessionFeedback
from contextengine.topics.catalogue import catalogue, partition_for


async def write_together(settings, topic, *records):
    """Write records of one session as one batch, which is fetched as a whole."""
    async with AIOKafkaProducer(**settings.kafka_client(), acks="all", linger_ms=100) as producer:
        key = records[0].session_id.encode()
        number = partition_for(key, settings.partitions)
        sent = [await producer.send(topic.name, encode(record), key, partition=number) for record in records]
        await asyncio.gather(*sent)


async def write(settings, topic, *records, partition=None, headers=()):
    """Write records (events, injections, or bytes as they are) in order; returns the offsets."""
    async with AIOKafkaProducer(**settings.kafka_client(), acks="all") as producer:
        offsets = []
        for record in records:
            key = b"raw" if isinstance(record, bytes) else record.session_id.encode()
            number = partition_for(key, settings.partitions) if partition is None else partition
            value = record if isinstance(record, bytes) else encode(record)
            written = await producer.send_and_wait(topic.name, value, key, partition=number, headers=list(headers))
            offsets.append(written.offset)
    return offsets


async def read_raw(settings, topic):
    """Every record of a topic, in the order of each partition, up to what a fetch says is its end."""
    consumer = AIOKafkaConsumer(
        **settings.kafka_client(), auto_offset_reset="earliest", enable_auto_commit=False, fetch_max_wait_ms=20
    )
    await consumer.start()
    try:
        partitions = [TopicPartition(topic.name, number) for number in range(settings.partitions)]
        consumer.assign(partitions)
        found = {tp: [] for tp in partitions}
        rest = set(partitions)
        while rest:
            for tp, records in (await consumer.getmany(timeout_ms=50)).items():
                found[tp].extend(records)
            for tp in list(rest):
                end = consumer.highwater(tp)
                if end is not None and await consumer.position(tp) >= end:
                    rest.remove(tp)
        return [record for tp in partitions for record in found[tp]]
    finally:
        await consumer.stop()


async def read(settings, topic):
    """Every record of a topic that has a value, decoded."""
    return [decode(record.value) for record in await read_raw(settings, topic) if record.value is not None]


async def logs_by_session(settings):
    """What the events topic has of each session, as a call is replayed from it: events with the time of their decision.

    That is their append time, never less than the partition's last.
    """
    logs = defaultdict(list)
    now_ms = Counter()
    for record in await read_raw(settings, catalogue(settings).events):
        now_ms[record.partition] = max(now_ms[record.partition], record.timestamp)
        event = decode(record.value)
        if isinstance(event, ConversationEvent | SessionFeedback):
            logs[event.session_id].append((event, now_ms[record.partition]))
    return logs


async def until(condition, within_s=15.0):
    """Wait until `condition`, a function or a coroutine function, holds; returns what it gave."""
    deadline_s = time.monotonic() + within_s
    while True:
        held = condition()
        if asyncio.iscoroutine(held):
            held = await held
        if held:
            return held
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {within_s} s")
        await asyncio.sleep(0.02)
