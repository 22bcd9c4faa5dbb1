"""The partitions that a worker owns: what was delivered of them, and the order in which it becomes durable.

The law, for each partition, whatever happens in between:

    outputs acknowledged  ->  states acknowledged  ->  the partition's own record acknowledged  ->  offset committed

So outputs are durable before the state that says they were made, and state before the offset. What is flushed is taken
under the partition's lock, which a batch holds from its first record until its outputs are on their way.

A partition of which the broker refuses a record halts: nothing more of it is written or committed, until it is assigned
anew. The others go on. Everything else that goes wrong is the worker's end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiokafka.errors import KafkaError
from faust.types import TP

from contextengine.agents.outbox import Outbox, Sent, acknowledged, failure
from contextengine.errors import RecordRefused
from contextengine.tables.live import LiveTable, PartitionHalted, Snapshot

if TYPE_CHECKING:
    from aiokafka import AIOKafkaProducer

log = logging.getLogger(__name__)

PartitionsHook = Callable[[frozenset[int]], Awaitable[None]]


def log_halt(partition: int, why: str) -> None:
    """Say that a partition has halted."""
    log.critical("partition %d halts: %s", partition, why)


@dataclass(frozen=True, slots=True)
class BatchTopic:
    """A topic that is delivered in batches, and what belongs to its partitions.

    `on_assigned` is called with the partitions that this worker owns, when their states are restored and before their
    first record is delivered; `on_revoked` when it is about to lose them, before their last flush. Where there are more
    workers than partitions, that may be none. They are never called at the same time, and both may add outputs and
    change states, under the partition's lock. One that raises stops the worker. `on_halted` hears that one of them goes
    no further, and why.
    """

    name: str
    table: LiveTable[Any]
    outbox: Outbox
    on_assigned: PartitionsHook
    on_revoked: PartitionsHook
    on_halted: Callable[[int, str], None] = log_halt


class DeliveredBatches:
    """Which batches of a partition were delivered, and up to where all of them are done."""

    def __init__(self) -> None:
        self._undone: deque[int] = deque()
        self._committable: int | None = None

    def deliver(self, last_offset: int) -> None:
        """A batch that ends with this offset is on its way to the agent."""
        self._undone.append(last_offset)

    def committable(self, acked: set[int]) -> int | None:
        """The offset after the oldest unbroken run of done batches, None before the first; takes what is in it."""
        while self._undone and self._undone[0] in acked:
            last = self._undone.popleft()
            acked.discard(last)
            self._committable = last + 1
        return self._committable


@dataclass(slots=True)
class _Taken:
    """What a flush took from one partition, under its lock."""

    tp: TP
    committable: int | None
    sent: list[Sent]
    snapshot: Snapshot[Any]


class OwnedPartitions:
    """The partitions of the batch topics that this worker owns.

    `halted` are those that the broker has refused a record of.
    `flush_s` is for how long the last flush kept the batches waiting: what it encodes, not what it waits for.
    """

    def __init__(self, topics: Mapping[str, BatchTopic]) -> None:
        self.topics = topics
        self._delivered: dict[TP, DeliveredBatches] = {}
        self._announced: frozenset[TP] | None = None
        self._announcing = asyncio.Lock()
        self.halted: set[TP] = set()
        self.flush_s = 0.0

    def __bool__(self) -> bool:
        return bool(self._delivered)

    def assign(self, tps: Iterable[TP]) -> None:
        """Own these partitions from now on, of whatever topics; what is live is dropped."""
        self.forget()
        self._delivered = {tp: DeliveredBatches() for tp in tps if tp.topic in self.topics}

    def forget(self) -> None:
        """Own nothing, and drop what is live, flushed or not."""
        for tp in self._delivered:
            topic = self.topics[tp.topic]
            topic.table.forget(tp.partition)
            topic.outbox.forget(tp.partition)
        self._delivered = {}
        self.halted = set()

    def close(self) -> None:
        """Have nothing more sent. What is live stays: batches in hand judged by older states would decide otherwise."""
        for topic in self.topics.values():
            topic.outbox.close()

    def deliver(self, tp: TP, last_offset: int) -> None:
        """A batch that ends with this offset is on its way to the agent."""
        self._delivered[tp].deliver(last_offset)

    async def announce_assignment(self, *, still_owned: Callable[[], bool]) -> None:
        """Call on_assigned, once for each assignment."""
        async with self._announcing:
            if self._announced is not None or not still_owned():
                return
            owned = self._announced = frozenset(self._delivered)
            for tp in owned:
                self.topics[tp.topic].table.own(tp.partition)
            for topic, partitions in self._by_topic(owned):
                await topic.on_assigned(partitions)

    async def announce_revocation(self) -> None:
        """Call on_revoked, if on_assigned was called; a call of it under way is waited for."""
        async with self._announcing:
            announced, self._announced = self._announced, None
            if announced is not None:
                for topic, partitions in self._by_topic(announced):
                    await topic.on_revoked(partitions)

    async def flush(
        self,
        acked: Mapping[TP, set[int]],
        producer: AIOKafkaProducer,
        generation: int,
        may_write: Callable[[], bool],
    ) -> dict[TP, int]:
        """Make outputs durable, then states; the offsets that may be committed now.

        `acked` has the last offsets of the batches that are done. Where `may_write` says no, nothing more is written
        and there is nothing to commit; what was taken is flushed another time.
        """
        self.flush_s = 0.0
        if not may_write():
            return {}
        taken = []
        for tp in self._delivered.keys() - self.halted:
            try:
                taken.append(await self._take(tp, acked[tp], generation, producer))
            except (RecordRefused, PartitionHalted) as refusal:
                self._halt(tp, refusal)
            await asyncio.sleep(0)  # to encode the states of all partitions in one go would hold up the delivery
        taken = await self._each(taken, lambda of: acknowledged(of.sent))
        if not may_write():
            for of in taken:
                topic = self.topics[of.tp.topic]
                topic.outbox.put_back(of.tp.partition, of.sent)
                topic.table.put_back(of.snapshot)
            return {}
        taken = await self._each(taken, lambda of: self._write(of, producer))
        if not may_write():
            return {}
        return {of.tp: of.committable for of in taken if of.committable is not None}

    async def _each(self, taken: list[_Taken], step: Callable[[_Taken], Awaitable[None]]) -> list[_Taken]:
        """Take a step for all partitions at once; those that have not halted at it."""
        answers = await asyncio.gather(*map(step, taken), return_exceptions=True)
        for of, error in zip(taken, answers, strict=True):
            if isinstance(error, RecordRefused):
                self._halt(of.tp, error)
            elif error is not None:
                raise error
        return [of for of in taken if of.tp not in self.halted]

    async def _write(self, of: _Taken, producer: AIOKafkaProducer) -> None:
        table = self.topics[of.tp.topic].table
        try:
            await table.write(of.snapshot, producer)
        except KafkaError as error:
            states = len(of.snapshot.changed)
            raise failure(table.changelog_topic, of.tp.partition, states, error) from error

    async def _take(self, tp: TP, acked: set[int], generation: int, producer: AIOKafkaProducer) -> _Taken:
        table, outbox = self.topics[tp.topic].table, self.topics[tp.topic].outbox
        async with table.lock(tp.partition):
            await outbox.send(tp.partition)
            committable, sent = self._delivered[tp].committable(acked), outbox.take(tp.partition)
            began = time.perf_counter()
            snapshot = table.snapshot(tp.partition, generation, producer)
            self.flush_s += time.perf_counter() - began
            return _Taken(tp, committable, sent, snapshot)

    def _halt(self, tp: TP, refusal: RecordRefused | PartitionHalted) -> None:
        self.topics[tp.topic].table.lock(tp.partition).close(refusal)
        self.halted.add(tp)
        self.topics[tp.topic].on_halted(
            tp.partition, str(refusal.__cause__ if isinstance(refusal, PartitionHalted) else refusal)
        )

    def _by_topic(self, tps: Iterable[TP]) -> list[tuple[BatchTopic, frozenset[int]]]:
        by_topic: dict[str, set[int]] = {name: set() for name in self.topics}
        for tp in tps:
            by_topic[tp.topic].add(tp.partition)
        return [(self.topics[name], frozenset(partitions)) for name, partitions in by_topic.items()]
