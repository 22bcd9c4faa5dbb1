"""The fast path in a worker, on a broker."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import counting
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from broker_log import until
from counting import Counting
from kept_log import new_table

from contextengine.agents.transport import BATCH_RECORDS
from contextengine.topics.catalogue import partition_for

pytestmark = pytest.mark.broker

PARTITIONS = 4
KEYS = 20


class Traffic:
    """The topics of one test: what is published, and what the workers made of it."""

    def __init__(self, broker: str) -> None:
        self.broker = broker
        self.prefix = f"fast-{uuid.uuid4().hex[:8]}"
        self.published = 0

    async def create_topics(self) -> None:
        """Events, outputs and changelog."""
        made = (counting.events, counting.outputs, counting.changelog, counting.notes)
        names = [name(self.prefix) for name in made]
        admin = AIOKafkaAdminClient(bootstrap_servers=self.broker)
        await admin.start()
        await admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in names])
        await admin.close()

    async def note(self, *values: bytes) -> None:
        """Publish to a topic that is not delivered in batches."""
        async with AIOKafkaProducer(bootstrap_servers=self.broker) as producer:
            for value in values:
                await producer.send(counting.notes(self.prefix), value, partition=1)

    async def publish(self, count: int, *, per_second: int | None = None) -> None:
        """Publish the next events, in turn for each key."""
        async with AIOKafkaProducer(bootstrap_servers=self.broker) as producer:
            for number in range(self.published, self.published + count):
                await producer.send(counting.events(self.prefix), b"%d" % number, b"key-%d" % (number % KEYS))
                if per_second and number % 10 == 0:
                    await asyncio.sleep(10 / per_second)
        self.published += count

    async def read(self, topic: str) -> list[Any]:
        """All records of a topic."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.broker, auto_offset_reset="earliest", fetch_max_wait_ms=20)
        await consumer.start()
        try:
            partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
            consumer.assign(partitions)
            found, rest = [], set(partitions)
            while rest:
                for records in (await consumer.getmany(timeout_ms=20)).values():
                    found += records
                for partition in list(rest):
                    end = consumer.highwater(partition)
                    if end is not None and await consumer.position(partition) >= end:
                        rest.remove(partition)
            return found
        finally:
            await consumer.stop()

    async def outputs(self) -> Counter[int]:
        """How often each event has been put out."""
        return Counter(int(record.value) for record in await self.read(counting.outputs(self.prefix)))

    async def all_are_out(self) -> bool:
        """Whether each event has been put out."""
        return len(await self.outputs()) == self.published

    async def outputs_are_more_than(self, count: int) -> bool:
        """Whether more than so many events have been put out."""
        return len(await self.outputs()) > count

    async def states(self) -> dict[bytes, Any]:
        """What a restore makes of the changelog."""
        table = new_table()
        for record in await self.read(counting.changelog(self.prefix)):
            table.restore(record.partition, [record])
        return {key: state for partition in range(PARTITIONS) for key, state in table.items(partition)}

    async def committed(self, topic: Callable[[str], str] = counting.events) -> int:
        """How many records of a topic are committed."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.broker, group_id=self.prefix, enable_auto_commit=False)
        await consumer.start()
        try:
            partitions = [TopicPartition(topic(self.prefix), number) for number in range(PARTITIONS)]
            return sum([await consumer.committed(partition) or 0 for partition in partitions])
        finally:
            await consumer.stop()

    async def is_exact(self) -> None:
        """No output is lost, and every event is counted once."""
        assert set(await self.outputs()) == set(range(self.published))
        counts = {key: state["count"] for key, state in (await self.states()).items()}
        assert counts == dict(Counter(b"key-%d" % (number % KEYS) for number in range(self.published)))
        assert await self.committed() == self.published


@pytest.fixture
async def traffic(any_broker: Any) -> Traffic:
    made = Traffic(any_broker.address)
    await made.create_topics()
    return made


StartWorker = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start_worker(traffic: Traffic, tmp_path: Path) -> Iterator[StartWorker]:
    """Starts a worker process, and shows its log when the test fails."""
    workers = []
    with (tmp_path / "workers.log").open("ab") as log:

        def start(*arguments: str, traffic: Traffic = traffic) -> subprocess.Popen[bytes]:
            command = [sys.executable, counting.__file__, traffic.broker, traffic.prefix, *arguments]
            workers.append(subprocess.Popen(command, stdout=log, stderr=log))
            return workers[-1]

        yield start
    for worker in workers:
        worker.kill()
        worker.wait()
    print((tmp_path / "workers.log").read_text(errors="replace"))  # noqa: T201


async def test_batches_are_consecutive_and_nothing_is_committed_before_it_is_flushed(traffic):
    """The hook comes first, a batch is at most 256 records of one partition, and a held flush holds up the commit."""
    flush = asyncio.Event()
    worker = Counting(traffic.broker, traffic.prefix)
    write = worker.table.write

    async def held_write(*arguments: Any) -> None:
        await flush.wait()
        await write(*arguments)

    worker.table.write = held_write  # type: ignore[method-assign]
    await traffic.publish(3_000)
    await worker.app.start()
    try:
        await until(lambda: sum(map(len, worker.batches)) == 3_000)
        assert worker.hooks == [("assigned", frozenset(range(PARTITIONS)))]
        await until(traffic.all_are_out)
        assert await traffic.committed() == 0
        flush.set()
    finally:
        flush.set()
        await worker.app.stop()
    assert worker.hooks[1:] == [("revoked", frozenset(range(PARTITIONS)))]
    assert {len(records) <= BATCH_RECORDS for records in worker.batches} == {True}
    assert max(map(len, worker.batches)) == BATCH_RECORDS
    for records in worker.batches:
        assert len({partition_for(record.key, PARTITIONS) for record in records}) == 1
        assert [r.offset for r in records] == list(range(records[0].offset, records[0].offset + len(records)))
    await traffic.is_exact()
    assert (await traffic.outputs()).total() == 3_000
    assert {record.headers for record in await traffic.read(worker.outputs)} == {(("cx-test", b"1"),)}


async def test_a_worker_killed_in_traffic_loses_no_output_and_counts_no_event_twice(any_broker, start_worker, tmp_path):
    """With its states in memory, and in RocksDB, which the next worker finds on the disk."""

    async def kill_one(store: str) -> None:
        traffic = Traffic(any_broker.address)
        await traffic.create_topics()
        arguments = (f"--store={store}://", f"--datadir={tmp_path / store}")
        await traffic.publish(100)
        worker = start_worker(*arguments, traffic=traffic)
        await until(traffic.all_are_out)
        publishing = asyncio.ensure_future(traffic.publish(2_000, per_second=500))
        await until(lambda: traffic.outputs_are_more_than(600))
        worker.kill()
        worker.wait()
        assert not publishing.done(), "the kill fell after the traffic"
        worker = start_worker(*arguments, traffic=traffic)
        await publishing
        await until(traffic.all_are_out, within_s=40)
        worker.terminate()
        assert worker.wait(20) == 0
        await traffic.is_exact()

    await asyncio.gather(kill_one("memory"), kill_one("rocksdb"))


async def test_every_other_topic_is_delivered_and_committed_as_faust_does(traffic):
    """One record at a time, to its own agent, beside the batches."""
    worker = Counting(traffic.broker, traffic.prefix)
    noted = []

    async def note(stream: Any) -> None:
        async for event in stream.events():
            noted.append((event.message.partition, event.value))  # noqa: PERF401 - it never ends

    topic = worker.app.topic(counting.notes(traffic.prefix), key_serializer="raw", value_serializer="raw")
    worker.app.agent(topic, name="note")(note)
    await traffic.note(b"a", b"b", b"c")
    await traffic.publish(100)
    await worker.app.start()
    try:
        await until(lambda: len(noted) == 3)
        await traffic.note(b"d")
        await until(lambda: len(noted) == 4)
        await until(traffic.all_are_out)
    finally:
        await worker.app.stop()
    assert noted == [(1, b"a"), (1, b"b"), (1, b"c"), (1, b"d")]
    assert await traffic.committed(counting.notes) == 4
    await traffic.is_exact()


async def test_partitions_move_between_two_workers_without_a_stall_a_loss_or_a_copy(traffic, start_worker):
    """One joins in traffic, then the first one leaves."""
    await traffic.publish(100)
    first = start_worker()
    await until(traffic.all_are_out)
    publishing = asyncio.ensure_future(traffic.publish(5_000, per_second=500))
    second = start_worker()
    await until(lambda: traffic.outputs_are_more_than(3_500), within_s=30)
    assert not publishing.done(), "the second worker joined after the traffic"
    first.terminate()
    assert first.wait(20) == 0
    await publishing
    await until(traffic.all_are_out, within_s=20)
    second.terminate()
    assert second.wait(20) == 0
    await traffic.is_exact()
    assert (await traffic.outputs()).total() == traffic.published


async def test_a_worker_whose_agent_raises_ends_with_an_error_and_commits_nothing_of_the_batch(traffic, start_worker):
    await traffic.publish(200)
    worker = start_worker("--fail-at=57")
    assert await until(lambda: worker.poll() is not None) is True
    assert worker.returncode == 1
    assert await traffic.committed() <= 57
