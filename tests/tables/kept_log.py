"""A table without a broker: what it appends to its changelog is kept in a list."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import defaultdict
from typing import Any

import faust
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import ConsumerRecord, RecordMetadata, TopicPartition

from contextengine.agents.transport import FAUST_SETTINGS
from contextengine.tables.live import LiveTable


class Json:
    """A state as JSON."""

    def encode(self, state: Any) -> bytes:
        """See StateCodec."""
        return json.dumps(state).encode()

    def decode(self, body: bytes) -> Any:
        """See StateCodec."""
        return json.loads(body)


class Log:
    """A producer whose broker is a list for each topic and partition; with `hold` it does not acknowledge."""

    def __init__(self) -> None:
        self.records: defaultdict[tuple[str, int], list[ConsumerRecord]] = defaultdict(list)
        self.batches: list[tuple[str, int, int]] = []
        self.held: list[asyncio.Future[RecordMetadata]] = []
        self.hold = False

    def create_batch(self) -> BatchBuilder:
        """As AIOKafkaProducer."""
        return BatchBuilder(16_384, 0)

    async def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        *,
        partition: int,
        headers: list[tuple[str, bytes]],
    ) -> asyncio.Future[RecordMetadata]:
        """As AIOKafkaProducer, whose batch is always on its way already."""
        batch = self.create_batch()
        batch.append(key=key, value=value, headers=headers, timestamp=None)
        return await self.send_batch(batch, topic, partition=partition)

    async def send_batch(self, batch: BatchBuilder, topic: str, *, partition: int) -> asyncio.Future[RecordMetadata]:
        """As AIOKafkaProducer."""
        await asyncio.sleep(0)
        log = self.records[topic, partition]
        base = len(log)
        count = batch.record_count()
        log.extend(consumer_records(bytes(batch._build()), topic, partition, base))
        self.batches.append((topic, partition, count))
        done: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()
        metadata = RecordMetadata(topic, partition, TopicPartition(topic, partition), base, -1, 0, 0)
        if self.hold:
            done.add_done_callback(lambda _: None)
            self.held.append(done)
        else:
            done.set_result(metadata)
        return done


def consumer_records(batch: bytes, topic: str, partition: int, base: int) -> list[ConsumerRecord]:
    """The records of a batch, as a consumer gets them."""
    return [
        ConsumerRecord(
            topic,
            partition,
            base + record.offset,
            record.timestamp,
            0,
            record.key,
            record.value,
            None,
            -1,
            -1,
            tuple(record.headers),
        )
        for record in MemoryRecords(batch).next_batch()
    ]


def new_table(store: str = "memory://", datadir: str | None = None) -> LiveTable[Any]:
    settings = {**FAUST_SETTINGS, "datadir": datadir or tempfile.mkdtemp()}
    return LiveTable(faust.App("unit", **settings), "states", Json(), store=store)
