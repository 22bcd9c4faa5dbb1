"""A member of a consumer group that commits by itself: only what is finished, and never past what is not."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka import errors as kafka
from aiokafka.abc import ConsumerRebalanceListener

from contextengine.delivery.offsets import UnfinishedOffsets
from contextengine.errors import BrokerUnavailable
from contextengine.monitoring.metrics import CONSUMER_LAG_SECONDS, OLDEST_UNCOMMITTED_SECONDS
from contextengine.topics.errand import ANSWER_MS, NO_ANSWER
from contextengine.topics.rulebook import must_exist

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from aiokafka.structs import ConsumerRecord

    from contextengine.adapters.attempt_log import AttemptLog

log = logging.getLogger(__name__)

FETCH_WAIT_MS: Final = 100
REQUEST_MS: Final = 15_000
"""How long a request may take: longer than a join, which waits for the slowest member."""
FETCH_BYTES: Final = 512 * 1024
"""How much of a partition one fetch brings, at most; a larger record comes alone."""
FULL: Final = 256
"""How many unfinished records of a partition stop the reading of it; it goes on at half of that."""
EMBEDDED_SESSION_MS: Final = 2_000
"""The embedded broker lets every join take half of the session timeout, and Kafka would refuse so short a one."""


async def stop(consumer: AIOKafkaConsumer, within_s: float = 3.0) -> None:
    """Stop a consumer, even when its broker is away.

    Its own `stop` waits for answers that do not come, and ends half-way, cancelled, if a fetch rests before a retry.
    """
    stopping = asyncio.ensure_future(consumer.stop())
    await asyncio.wait([stopping], timeout=within_s)
    await consumer._client.close()  # noqa: SLF001  what still waits for an answer fails
    await asyncio.wait([stopping])
    if not stopping.cancelled():
        stopping.result()


class Owner(Protocol):
    """What is told of the partitions that come and go."""

    def assigned(self, partitions: set[int]) -> None:
        """These are ours from now on, and are read once they are resumed."""

    async def revoked(self, partitions: set[int], within_s: float) -> None:
        """These are ours until this returns. What is finished by then is committed; what is not comes again."""


class GroupReader(ConsumerRebalanceListener):  # type: ignore[misc]  # untyped
    """Reads one topic as a member of a group; partitions are given by number.

    Enter it with `async with`: it joins, commits what is finished every `commit_interval_ms`, and at the end leaves the
    group without another commit: `leave` before that to end in order.
    """

    def __init__(self, attempts: AttemptLog, topic: str, group: str, owner: Owner) -> None:
        self.group = group
        self._attempts, self._topic, self._owner = attempts, topic, owner
        embedded = attempts.settings.embedded
        self._session_ms = EMBEDDED_SESSION_MS if embedded else attempts.settings.session_timeout_ms
        # Heartbeats go on while partitions are given back, but the group waits no longer than a session timeout.
        self._drain_s = self._session_ms / 3_000
        self._offsets: dict[int, UnfinishedOffsets] = {}
        self._full: set[int] = set()
        self._left = False
        self._giving_back = asyncio.Lock()

    async def __aenter__(self) -> Self:
        settings = self._attempts.settings
        self._consumer = AIOKafkaConsumer(
            **settings.kafka_client(),
            group_id=self.group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=self._session_ms,
            heartbeat_interval_ms=self._session_ms // 4,
            rebalance_timeout_ms=self._session_ms,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            max_partition_fetch_bytes=FETCH_BYTES,
            request_timeout_ms=REQUEST_MS,
        )
        try:
            async with asyncio.timeout(ANSWER_MS / 1000):
                await self._consumer.start()
                await must_exist(self._topic, self._consumer._client)  # noqa: SLF001  as the rulebook does
        except BaseException as failed:
            await stop(self._consumer)
            if isinstance(failed, NO_ANSWER):
                raise BrokerUnavailable(f"no broker answers at {settings.broker}") from failed
            raise
        self._consumer.subscribe([self._topic], listener=self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left = True
        self._forget(set(self._offsets))
        await stop(self._consumer)

    async def read(self, wait_ms: int) -> dict[int, list[ConsumerRecord]]:
        """The next records by partition; none after `wait_ms`, and nothing at all while the group rebalances.

        Each of them is to be finished. A partition with too many unfinished records is not read on until it has fewer.
        """
        found = {tp.partition: records for tp, records in (await self._consumer.getmany(timeout_ms=wait_ms)).items()}
        for partition in found.keys() - self._offsets.keys():
            del found[partition]  # it was revoked while this waited
        for partition, records in found.items():
            offsets = self._offsets[partition]
            for record in records:
                self._attempts.saw(record)
                offsets.take(record.offset, record.timestamp)
            if len(offsets) >= FULL:
                self._full.add(partition)
                self._consumer.pause(self._tp(partition))
        return found

    def finish(self, record: ConsumerRecord) -> None:
        """Everything that the record caused is acknowledged by the broker."""
        offsets = self._offsets.get(record.partition)
        if offsets is None:
            return  # too late: it is the next owner's
        offsets.finish(record.offset)
        if record.partition in self._full and len(offsets) <= FULL // 2:
            self._full.discard(record.partition)
            self._consumer.resume(self._tp(record.partition))

    def resume(self, partitions: Iterable[int]) -> None:
        """Read these partitions."""
        self._consumer.resume(*map(self._tp, partitions))

    async def position(self, partition: int) -> int:
        """The offset of the next record to read."""
        return int(await self._consumer.position(self._tp(partition)))

    async def broker_has_topic(self) -> bool:
        """Whether the broker has the topic now. Raises BrokerUnavailable when it does not answer."""
        client = self._consumer._client  # noqa: SLF001
        try:
            async with asyncio.timeout(ANSWER_MS / 1000):
                answered = await client.force_metadata_update()  # its cheapest question
        except (TimeoutError, kafka.KafkaError):
            answered = False
        if not answered:
            raise BrokerUnavailable(f"no broker answers at {self._attempts.settings.broker}")
        return client.cluster.partitions_for_topic(self._topic) is not None

    async def commit_periodically(self) -> None:
        """Commit what is finished, until cancelled."""
        while True:
            await asyncio.sleep(self._attempts.settings.commit_interval_ms / 1000)
            await self._commit()
            for partition, offsets in self._offsets.items():
                self._measure(partition, offsets)

    async def leave(self) -> None:
        """Give every partition back in order; nothing is read afterwards."""
        self._left = True
        await self._give_back(set(self._offsets))

    async def _commit(self) -> None:
        uncommitted = {partition: offsets.uncommitted for partition, offsets in self._offsets.items()}
        due = {partition: offset for partition, offset in uncommitted.items() if offset is not None}
        if not due:
            return
        try:
            await self._consumer.commit({self._tp(partition): offset for partition, offset in due.items()})
        except (kafka.CommitFailedError, kafka.IllegalStateError) as lost:
            log.info("%s: not committed, its partitions have moved on: %s", self._topic, lost)
            return
        for partition, offset in due.items():
            if partition in self._offsets:
                self._offsets[partition].commit(offset)

    async def _give_back(self, partitions: set[int]) -> None:
        async with self._giving_back:  # a rebalance may begin while we leave
            partitions = partitions & self._offsets.keys()
            await self._owner.revoked(partitions, self._drain_s)
            try:
                async with asyncio.timeout(self._drain_s):
                    await self._commit()
            except TimeoutError:
                log.warning("%s: not committed, the broker does not answer; the next owner repeats it", self._topic)
            self._forget(partitions)

    def _forget(self, partitions: set[int]) -> None:
        for partition in partitions:
            if self._offsets.pop(partition, None) is not None:
                for gauge in (CONSUMER_LAG_SECONDS, OLDEST_UNCOMMITTED_SECONDS):
                    gauge.remove(self._topic, str(partition))
        self._full -= partitions

    def _measure(self, partition: int, offsets: UnfinishedOffsets) -> None:
        # The gauges hold functions: ages grow also while nothing here runs.
        for gauge, since_ms in (
            (CONSUMER_LAG_SECONDS, offsets.oldest_unfinished_ms),
            (OLDEST_UNCOMMITTED_SECONDS, offsets.oldest_uncommitted_ms),
        ):
            gauge.labels(self._topic, str(partition)).set_function(partial(self._age_s, since_ms))

    def _age_s(self, since_ms: int | None) -> float:
        return 0.0 if since_ms is None else max(0, self._attempts.now_ms() - since_ms) / 1000

    def _tp(self, partition: int) -> TopicPartition:
        return TopicPartition(self._topic, partition)

    # What aiokafka calls, in its words.

    def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Tell the owner, unless we are on our way out."""
        if self._left:
            return
        self._consumer.pause(*assigned)
        for tp in assigned:
            self._offsets[tp.partition] = UnfinishedOffsets()
            self._measure(tp.partition, self._offsets[tp.partition])
        self._owner.assigned({tp.partition for tp in assigned})

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Let the owner finish, and commit; heartbeats go on meanwhile."""
        await self._give_back({tp.partition for tp in revoked})
