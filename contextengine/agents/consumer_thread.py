"""Faust's thread around the aiokafka consumer, where it has to know or do more than Faust's own.

It waits 20 ms for records and not 1.5 s, leaves a batch topic's records as they were parsed, notes when the group last
saw this worker alive, gives records back that could not be delivered, reads the ends of partitions from a fetch, lets a
failed commit be an error, and stops within a limit.
"""

# ruff: noqa: SLF001 - reaching into Faust and aiokafka is what this module is for

from __future__ import annotations

import asyncio
import sys
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast

import aiokafka
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

if TYPE_CHECKING:
    from collections.abc import Container

    from contextengine.agents.transport import BatchTransport

FETCH_WAIT_MS: Final = 20
STOP_LIMIT_S: Final = 10

if sys.platform == "linux":

    def _now() -> float:
        # Goes on while the machine sleeps, as the broker's clock does; monotonic time does not.
        return time.clock_gettime(time.CLOCK_BOOTTIME)
else:
    _now = time.monotonic


class BatchRecord(Protocol):
    """A record of a batch topic; its topic and partition are the batch's."""

    @property
    def key(self) -> Any:
        """Its key, bytes or None."""

    @property
    def value(self) -> bytes | None:
        """Its value."""

    @property
    def offset(self) -> int:
        """Its place in the partition."""

    @property
    def timestamp(self) -> int:
        """When the broker appended it, in milliseconds."""

    @property
    def timestamp_type(self) -> int:
        """1, the broker's time; 0 would be its producer's."""

    @property
    def headers(self) -> Sequence[tuple[str, bytes]]:
        """Its headers."""


def _as_parsed(_: TopicPartition, record: BatchRecord) -> BatchRecord:
    return record


class _Fetches(OrderedDict[TopicPartition, Any]):
    """aiokafka's fetched and not yet delivered records, by partition.

    Those of `topics` stay as the parser made them: a ConsumerRecord for each is most of what fetching costs.
    """

    def __init__(self, topics: Container[str]) -> None:
        super().__init__()
        self._topics = topics

    def __setitem__(self, tp: TopicPartition, result: Any) -> None:
        if tp.topic in self._topics and isinstance(result, FetchResult):
            result._partition_records._consumer_record = _as_parsed
        super().__setitem__(tp, result)


class _Fetched(NamedTuple):
    """What a fetch has done to a partition of an assignment."""

    assignment: Any
    position: int
    highwater: int


class BatchConsumerThread(driver.AIOKafkaConsumerThread):
    """Runs the aiokafka consumer."""

    last_seen: float = -float("inf")
    _fetched: Mapping[TP, _Fetched] = {}

    async def on_start(self) -> None:
        """Start the consumer, have records as they were parsed, and note each heartbeat that succeeds."""
        await super().on_start()
        consumer = self._ensure_consumer()
        consumer._fetcher._records = _Fetches(cast("BatchTransport", self.transport).batch_topics)
        coordinator = consumer._coordinator
        heartbeat = coordinator._do_heartbeat

        async def noted_heartbeat() -> bool:
            sent = _now()
            succeeded: bool = await heartbeat()
            if succeeded:
                self.last_seen = sent
            return succeeded

        coordinator._do_heartbeat = noted_heartbeat

    def _create_worker_consumer(self, transport: driver.Transport) -> aiokafka.AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer

    async def on_thread_stop(self) -> None:
        """Leave the group; without a broker, give up on it."""
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                await super().on_thread_stop()
        except (TimeoutError, asyncio.CancelledError, KafkaError) as error:
            # aiokafka's fetcher passes on its own tasks' cancellation, which would leave Faust waiting for a minute.
            self.log.warning("this worker may not have left its group: %r", error)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """The group has just accepted this worker."""
        self.last_seen = _now()
        await super().on_partitions_assigned(assigned, generation_id)

    def silent_s(self) -> float:
        """How long ago the group last answered, in seconds; without end before it has."""
        return _now() - self.last_seen

    def is_member(self, generation: int) -> bool:
        """Whether the group must still hold this worker for a member of this generation.

        The guard against writing behind a new owner's back when this worker has slept through its session. It is check
        and then act, so it makes that rare; what makes it harmless is the law of a restore.
        """
        coordinator = self._ensure_consumer()._coordinator
        return self.silent_s() < self.app.conf.broker_session_timeout and coordinator.generation == generation

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit; False when the group has rebalanced meanwhile. Raises what else goes wrong, unlike Faust's own."""
        sent = _now()
        commits = {TopicPartition(*tp): OffsetAndMetadata(offset, "") for tp, offset in offsets.items()}
        try:
            await self._ensure_consumer().commit(commits)
        except (CommitFailedError, IllegalStateError) as error:
            self.log.info("the group has rebalanced, offsets will be committed by their next owner: %s", error)
            return False
        self.tp_last_committed_at.update(dict.fromkeys(offsets, time.monotonic()))
        self.last_seen = sent
        return True

    async def _fetch_records(
        self,
        consumer: aiokafka.AIOKafkaConsumer,
        active_partitions: set[TP],
        timeout: float | None = None,  # noqa: ASYNC109 - Faust's signature
        max_records: int | None = None,
    ) -> Mapping[TP, list[Any]]:
        records = await super()._fetch_records(consumer, active_partitions, timeout, max_records)
        assignment = consumer._subscription.subscription.assignment
        fetched = {}
        for tp in records:
            state = assignment.state_value(tp)
            fetched[TP(*tp)] = _Fetched(assignment, state.position, state.highwater)
        self._fetched = fetched
        return {TP(*tp): found for tp, found in records.items() if found}

    def fetched_highwater(self, tp: TP) -> int:
        """The end of a partition, as the last fetch that had records of it told."""
        return self._fetched[tp].highwater

    async def give_back(self, records: Mapping[TP, list[Any]]) -> None:
        """Have records of the last fetch fetched again: they could not be delivered."""
        await self.call_thread(self._give_back, records)

    async def _give_back(self, records: Mapping[TP, list[Any]]) -> None:
        consumer = self._ensure_consumer()
        current = consumer._subscription.subscription.assignment
        for tp, undelivered in records.items():
            assignment, position, _ = self._fetched[tp]
            # A position that has been moved since, by a recovery's seek, is where it should be.
            if assignment is current and assignment.state_value(tp).position == position:
                consumer.seek(TopicPartition(*tp), undelivered[0].offset)

    async def _highwaters(self, partitions: list[TP]) -> Mapping[TP, int]:
        """The ends of the partitions, as a fetch tells them: the embedded broker's ListOffsets answers too low."""
        partitions = list(partitions)
        ends = dict(await super()._highwaters(partitions))
        if not ends:
            return ends
        conf = self.app.conf
        consumer = aiokafka.AIOKafkaConsumer(
            bootstrap_servers=driver.server_list(self.transport.url, driver.Transport.default_port),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            **driver.credentials_to_aiokafka_auth(conf.broker_credentials, conf.ssl_context),
        )
        await consumer.start()
        try:
            consumer.assign([TopicPartition(*tp) for tp in ends])
            for tp, end in ends.items():
                consumer.seek(TopicPartition(*tp), max(end - 1, 0))
            async with asyncio.timeout(conf.broker_request_timeout):
                while any(consumer.highwater(TopicPartition(*tp)) is None for tp in ends):
                    await consumer.getmany(timeout_ms=FETCH_WAIT_MS)
            return {tp: max(end, consumer.highwater(TopicPartition(*tp))) for tp, end in ends.items()}
        finally:
            await consumer.stop()
