"""Batch delivery, and the commit: Faust's aiokafka transport with a consumer of our own.

A batch topic reaches its agent as events whose value is a list of up to 256 consecutive records of one partition. Every
other topic is delivered as Faust does. The order of a commit is the law of owned_partitions.py. If one of its steps
fails nothing is committed, and the worker stops: what it has not committed is read again by whoever comes next.

Faust 0.15.3 and aiokafka 0.14.0 are pinned because this module relies on their inside;
tests/agents/test_transport_contract.py names every name.
"""

# ruff: noqa: SLF001 - reaching into Faust and aiokafka is what this module is for

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from aiokafka.errors import ConsumerStoppedError
from faust.events import Event
from faust.tables.recovery import Recovery
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import ConsumerMessage
from mode import Service

from contextengine.agents.consumer_thread import FETCH_WAIT_MS, STOP_LIMIT_S, BatchConsumerThread, BatchRecord
from contextengine.agents.owned_partitions import BatchTopic, OwnedPartitions
from contextengine.errors import BrokerUnavailable, LogReplaced, SettingsInvalid
from contextengine.topics.patience import be_patient

if TYPE_CHECKING:
    import faust
    from aiokafka import AIOKafkaProducer, ConsumerRecord

__all__ = ["FAUST_SETTINGS", "QUEUED_BATCHES", "BatchTopic", "install"]

BATCH_RECORDS: Final = 256
QUEUED_BATCHES: Final = 64
POLL_S: Final = 0.1
"""How long to wait for records before looking up: after a rebalance, or for a topic whose queue has room again."""
FLUSH_LIMIT_S: Final = 60
"""A flush that takes longer fails. An idempotent producer never gives up on its own."""
FLUSH_SHARE: Final = 10
"""At most one part in this many of the time do batches wait for a flush, which is then rarer than the settings say,"""
FLUSH_PAUSE_S: Final = 5
"""but not rarer than this: it is what is repeated after a crash."""
GARBAGE_AFTER: Final = 50_000
"""Garbage is looked for after so many new objects; after Python's 700 it would be in every batch, and find records."""

FAUST_SETTINGS: Final[Mapping[str, Any]] = {
    "broker_commit_interval": 0.5,
    "consumer_auto_offset_reset": "earliest",
    "cython_optimizations": True,
    "producer_max_batch_size": 256 * 1024,  # fewer and larger requests in a flush; the default is 16 KiB
    "producer_request_timeout": 30.0,
    "recovery_consistency_check": False,
    "stream_recovery_delay": 0.0,
    "stream_wait_empty": True,
    "table_standby_replicas": 0,
    "topic_allow_declare": False,
    "topic_disable_leader": True,
    "web_enabled": False,  # it would listen on every address
}
"""What a `faust.App` must be made with; the commit interval may differ."""


def install(app: faust.App, *topics: BatchTopic, idempotent: bool = True) -> None:
    """Have `app` deliver these topics in batches. Starts nothing; call it before the app's transport is used.

    `idempotent` makes the producer's retries harmless; the embedded broker cannot. Raises SettingsInvalid when the app
    was not made with FAUST_SETTINGS.
    """
    for name, wanted in FAUST_SETTINGS.items():
        found = getattr(app.conf, name)
        if found != wanted and name != "broker_commit_interval":
            raise SettingsInvalid(f"Faust's setting {name} is {found!r}, must be {wanted!r}")
    app.transport = BatchTransport(app.conf.broker_consumer, app)
    app.transport.batch_topics = {topic.name: topic for topic in topics}
    app.transport.idempotent = idempotent


class BatchRecovery(Recovery):
    """Faust's recovery; tells the consumer when it has ended, and for which rebalance."""

    _rebalance = 0

    async def on_rebalance(
        self, assigned: set[TP], revoked: set[TP], newly_assigned: set[TP], generation_id: int = 0
    ) -> None:
        """Remember which rebalance the recovery that now begins belongs to."""
        self._rebalance = self.app.rebalancing_count
        await super().on_rebalance(assigned, revoked, newly_assigned, generation_id)

    async def on_recovery_completed(self, generation_id: int = 0) -> None:
        """Let Faust resume everything, then open the streams."""
        rebalance = self._rebalance
        await super().on_recovery_completed(generation_id)
        cast("BatchConsumer", self.app.consumer).open_streams(rebalance)


class BatchConsumer(driver.Consumer):
    """Delivers batches, and commits outputs, states and offsets in their order."""

    _thread: BatchConsumerThread
    _recovery: BatchRecovery

    def __init__(self, transport: BatchTransport, *args: Any, **kwargs: Any) -> None:
        self._topics = transport.batch_topics
        self._owned = OwnedPartitions(self._topics)
        self._tables = {topic.table.changelog_topic: topic.table for topic in self._topics.values()}
        self._open_for = -1
        self._committing = asyncio.Lock()
        self._failure: BaseException | None = None
        super().__init__(transport, *args, **kwargs)

    def _new_consumer_thread(self) -> BatchConsumerThread:
        return BatchConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def on_start(self) -> None:
        """Give the app a recovery that says when it has ended, and the garbage collector less to do."""
        await super().on_start()
        gc.set_threshold(GARBAGE_AFTER, *gc.get_threshold()[1:])
        tables: Any = self.app.tables
        tables._recovery = self._recovery = BatchRecovery(self.app, tables, beacon=tables.beacon, loop=self.loop)

    # Delivery

    def open_streams(self, rebalance: int) -> None:
        """Deliver more than changelogs: the recovery of this rebalance has ended."""
        self._open_for = rebalance

    @property
    def _streams_are_open(self) -> bool:
        # Faust may deliver a stream's records between an assignment and the end of its recovery, and then clear the
        # queues while the position has moved on: a silent stall. The count grows, in the consumer's thread, the moment
        # a rebalance begins, so an older recovery that ends late opens nothing. A worker that may have lost its
        # partitions unawares delivers nothing either: all its outputs would be copies.
        return self._open_for == self.app.rebalancing_count and self._thread.is_member(self.app.consumer_generation_id)

    async def _drain_messages(self, fetcher: Any) -> None:
        try:
            while not (self.should_stop or fetcher.should_stop):
                await asyncio.sleep(0)
                generation = self.app.consumer_generation_id
                records = await self._fetch()
                if records:
                    undelivered = await self._deliver(records, generation)
                    if undelivered:
                        await self._thread.give_back(undelivered)
        except (ConsumerStoppedError, asyncio.CancelledError):
            if not self.app.should_stop:
                raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the worker cannot go on without records
            await self._fail("delivery", error)

    async def _fetch(self) -> Mapping[TP, list[Any]]:
        if not self.flow_active:
            await self.wait(self.can_resume_flow.wait())
        if self._streams_are_open:
            await self._announce_assignment()
            wanted = self._get_active_partitions() - self._owned.halted
        else:
            wanted = {tp for tp in self._get_active_partitions() if self._is_changelog_tp(tp)}
        if not wanted or self.should_stop:
            await self.sleep(FETCH_WAIT_MS / 1000)
            return {}
        return await self._getmany(active_partitions=wanted, timeout=POLL_S)

    def _may_deliver(self, generation: int, *, changelog: bool = False) -> bool:
        return (
            self.flow_active
            and generation == self.app.consumer_generation_id
            and (changelog or self._streams_are_open)
            and not self.should_stop
        )

    async def _deliver(self, fetched: Mapping[TP, list[Any]], generation: int) -> dict[TP, list[Any]]:
        """Deliver, and return what could not be: a rebalance has begun."""
        batches: dict[TP, list[BatchRecord]] = {}
        undelivered: dict[TP, list[Any]] = {}
        for tp, records in fetched.items():
            self.app.monitor.track_tp_end_offset(tp, self._thread.fetched_highwater(tp))
            if tp.topic in self._topics:
                batches[tp] = records
            elif tp.topic in self._tables:
                if not await self._restore(tp, records, generation):
                    undelivered[tp] = records
            elif rest := await self._deliver_singly(tp, records, generation):
                undelivered[tp] = rest
        return undelivered | await self._deliver_batches(batches, generation)

    async def _deliver_batches(
        self, fetched: dict[TP, list[BatchRecord]], generation: int
    ) -> dict[TP, list[BatchRecord]]:
        """In turns, a batch of each partition: one with a long backlog does not hold up the others."""
        waiting = dict(fetched)
        for tp, records in fetched.items():
            # Before the first batch it is where to begin, then the last one's end.
            read, found = self._read_offset[tp], records[0].offset
            if read is not None and not read <= found <= read + 1:
                # The position was not in the log any more, and aiokafka has gone to the log's beginning.
                told = "it was recreated" if found < read else "what lies between has outlived its retention"
                raise LogReplaced(f"{tp.topic} partition {tp.partition}: after offset {read} comes {found}: {told}")
        while waiting:
            for tp, records in list(waiting.items()):
                if not await self._deliver_batch(tp, records[:BATCH_RECORDS], generation):
                    return waiting
                if len(records) > BATCH_RECORDS:
                    waiting[tp] = records[BATCH_RECORDS:]
                else:
                    del waiting[tp]
        return {}

    async def _deliver_batch(self, tp: TP, records: list[BatchRecord], generation: int) -> bool:
        channels = cast("Any", self.app.topics)._tp_index[tp]
        # Not queue.put(): a rebalance cancels those who wait in it, and that would end the fetcher.
        while self._may_deliver(generation) and any(c.queue.qsize() >= QUEUED_BATCHES for c in channels):  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        if not self._may_deliver(generation) or not self.app.flow_control.is_active():
            return False
        last = records[-1]
        message = ConsumerMessage(
            tp.topic,
            tp.partition,
            last.offset,
            last.timestamp / 1000,
            last.timestamp_type,
            None,
            None,
            cast("Any", records),
            None,
            tp=tp,
            generation_id=generation,
        )
        message.incref(len(channels))
        self._owned.deliver(tp, last.offset)
        self._read_offset[tp] = last.offset
        event = Event(self.app, None, records, None, message)
        for channel in channels:
            channel.queue.put_nowait(event)
        return True

    async def _deliver_singly(self, tp: TP, records: list[ConsumerRecord], generation: int) -> list[ConsumerRecord]:
        """As Faust does; returns what could not be delivered."""
        acks = self.app.topics.acks_enabled_for(tp.topic)
        changelog = self._is_changelog_tp(tp)
        for number, record in enumerate(records):
            if not self._may_deliver(generation, changelog=changelog):
                return records[number:]
            read = self._read_offset[tp]
            if read is not None and record.offset < read:
                continue
            if acks and read and record.offset - read > 1:
                await self._add_gap(tp, read + 1, record.offset)
            await self.wait_first(self.callback(self._to_message(tp, record)), self.suspend_flow.wait())
            self._read_offset[tp] = record.offset
        return []

    async def _restore(self, tp: TP, records: list[ConsumerRecord], generation: int) -> bool:
        """Apply changelog records to their table at once, and show Faust's recovery only the last of them.

        Faust's own loop takes 285 us for each. It is told how far the restore has come before it sees the record, so a
        record that a rebalance clears out of its queue is not missed. False when a rebalance has begun.
        """
        if not self._may_deliver(generation, changelog=True):
            return False
        recovery = self._recovery
        if tp in recovery.active_tps:
            self._tables[tp.topic].restore(tp.partition, records)
            recovery.active_offsets[tp] = max(records[-1].offset, recovery.active_offsets[tp] or 0)
            await self.wait_first(self.callback(self._to_message(tp, records[-1])), self.suspend_flow.wait())
        return True

    # Commit

    @Service.task
    async def _commit_handler(self) -> None:
        while not self.should_stop:
            await self.sleep(max(self.commit_interval, min(self._owned.flush_s * (FLUSH_SHARE - 1), FLUSH_PAUSE_S)))
            if not self.should_stop:
                await self.commit()

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:  # noqa: ARG002
        """Flush and commit everything. One under way is waited for, not relied on: it may have begun too early."""
        async with self._committing:
            return await self.force_commit()

    async def force_commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:  # noqa: ARG002
        """Flush and commit everything; a failure stops the worker."""
        if self._failure is not None:
            return False
        sensor = self.app.sensors.on_commit_initiated(self)
        try:
            async with asyncio.timeout(FLUSH_LIMIT_S):
                committed = await self._flush_and_commit()
        except TimeoutError:
            await self._fail("a flush", BrokerUnavailable(f"no acknowledgement within {FLUSH_LIMIT_S} s"))
            return False
        except Exception as error:  # noqa: BLE001 - whatever it is, going on would commit what is not durable
            await self._fail("a flush", error)
            return False
        self.app.sensors.on_commit_completed(self, sensor)
        return committed

    async def _flush_and_commit(self) -> bool:
        singly = [tp for tp in self._acked if tp.topic not in self._topics]
        committed = await self._commit_tps(singly, start_new_transaction=False) if singly else False
        if not self._owned:
            return committed
        generation = self.app.consumer_generation_id
        producer = cast("Any", self.app.producer)._producer
        flushed = await self._owned.flush(self._acked_index, producer, generation, lambda: self._is_member(generation))
        for tp in flushed:
            self._acked.pop(tp, None)  # Faust's list beside the index; nobody else would empty it
        offsets = {tp: offset for tp, offset in flushed.items() if self._should_commit(tp, offset)}
        if offsets and await self._commit(offsets):
            self._committed_offset.update(offsets)
            self.app.monitor.on_tp_commit(offsets)
            committed = True
        return committed

    def _is_member(self, generation: int) -> bool:
        if self._thread.is_member(generation):
            return True
        self.log.warning("nothing is flushed: no heartbeat has succeeded, the group may hold this worker for dead")
        return False

    async def on_task_error(self, exc: BaseException) -> None:
        """An agent has raised. Faust would commit its batch all the same."""
        await self._fail("an agent", exc)

    async def _fail(self, what: str, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
            self.log.critical("%s failed, the worker stops and commits nothing more: %r", what, error)
            self._owned.close()
            cast("BatchProducer", self.app.producer).give_up()
            await self.crash(error)

    # Rebalance

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Finish, flush and commit what is in hand, then forget the partitions."""
        # Faust drops offsets that are acknowledged and not committed, so this comes first.
        if not self.should_stop:
            self.stop_flow()
            self.app.flow_control.suspend()
            self.app.flow_control.clear()
            await self.wait_empty()
        self._owned.forget()
        await super().on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Begin with nothing: what a partition has is restored."""
        self._owned.assign(assigned)
        await super().on_partitions_assigned(assigned, generation_id)

    async def wait_empty(self) -> None:
        """Finish the batches in hand, then flush and commit: a rebalance begins, or the worker stops."""
        await self._announce_revocation()
        began = time.monotonic()
        while self._unacked_messages and not self.should_stop:
            await self._wait_for_ack(timeout=1)
            if time.monotonic() - began > 5:
                self.log.warning("waiting for %d batches in hand", len(self._unacked_messages))
        await self.commit()

    async def _announce_assignment(self) -> None:
        try:
            await self._owned.announce_assignment(still_owned=lambda: self._streams_are_open)
        except Exception as error:  # noqa: BLE001 - whatever it is, what it should have done is undone
            await self._fail("on_assigned", error)

    async def _announce_revocation(self) -> None:
        try:
            await self._owned.announce_revocation()
        except Exception as error:  # noqa: BLE001 - whatever it is, what it should have done is undone
            await self._fail("on_revoked", error)


class BatchProducer(driver.Producer):
    """Faust's producer, idempotent if the broker can: it then retries for ever, so nothing waits for it for ever."""

    _given_up = False

    def give_up(self) -> None:
        """Nobody needs any more what the broker has not acknowledged."""
        self._given_up = True

    async def flush(self) -> None:
        """Wait until the broker has everything."""
        if not self._given_up:
            await super().flush()

    async def on_stop(self) -> None:
        """Close the connections, after a last try to send what is left."""
        try:
            async with asyncio.timeout(1 if self._given_up else STOP_LIMIT_S):
                await super().on_stop()
        except TimeoutError:
            self.log.warning("the broker did not answer: what it has not acknowledged was not committed either")

    def _new_producer(self, transactional_id: str | None = None) -> AIOKafkaProducer:
        producer = super()._new_producer(transactional_id)
        be_patient(producer)
        return producer

    def _settings_extra(self) -> Mapping[str, Any]:
        if cast("BatchTransport", self.transport).idempotent:
            return {"acks": "all", "enable_idempotence": True}
        return super()._settings_extra()


class BatchTransport(driver.Transport):
    """The transport that `install` gives an app."""

    Consumer = BatchConsumer
    Producer = BatchProducer

    batch_topics: Mapping[str, BatchTopic] = {}
    idempotent = True
