"""A delay line: holds each retry for exactly the line's length, then tells its session with RetryDue.

All records of a line wait equally long, so the head of each partition is its earliest and nothing waits behind one that
waits longer. A record is due one length after the broker appended it, by the broker's clock; a clock that is wrong can
make it late by one length at most, since it is also due one length after it was read.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from contextengine.adapters.group_reader import GroupReader
from contextengine.errors import UndecodableRecord
from contextengine.schemas.events import RetryDue
from contextengine.schemas.injection import RetryRequested
from contextengine.topics.trace import trace_of

if TYPE_CHECKING:
    from aiokafka.structs import ConsumerRecord

    from contextengine.adapters.attempt_log import AttemptLog
    from contextengine.topics.catalogue import Topic

READ_WAIT_MS: Final = 100


class DelayLine:
    """Runs the partitions of one delay line that its group assigns to it."""

    def __init__(self, attempts: AttemptLog, topic: Topic, length_ms: int) -> None:
        self._attempts, self._length_ms = attempts, length_ms
        self._reader = GroupReader(attempts, topic.name, f"{attempts.settings.deliver_group}-{length_ms}ms", self)
        self._waiting: dict[int, deque[tuple[float, ConsumerRecord]]] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Hold and release until `stop` is set; then commit what was released, and leave the group."""
        async with self._reader, asyncio.TaskGroup() as tasks:
            holding = tasks.create_task(self._hold())
            committing = tasks.create_task(self._reader.commit_periodically())
            await stop.wait()
            holding.cancel()
            await self._reader.leave()
            committing.cancel()

    def assigned(self, partitions: set[int]) -> None:
        """Hold what is in these partitions."""
        self._waiting.update((partition, deque()) for partition in partitions)
        self._reader.resume(partitions)

    async def revoked(self, partitions: set[int], within_s: float) -> None:  # noqa: ARG002  releasing takes no time
        """Forget what these partitions hold: the next owner reads it again."""
        for partition in partitions:
            del self._waiting[partition]

    async def _hold(self) -> None:
        while True:
            for partition, records in (await self._reader.read(self._rest_ms())).items():
                if partition in self._waiting:  # else it is just being revoked
                    self._waiting[partition].extend((self._due_s(record), record) for record in records)
            now_s = time.monotonic()
            due = []
            for waiting in self._waiting.values():
                while waiting and waiting[0][0] <= now_s:
                    due.append(waiting.popleft()[1])
            await asyncio.gather(*map(self._release, due))

    def _rest_ms(self) -> int:
        heads = [waiting[0][0] for waiting in self._waiting.values() if waiting]
        rest_ms = round((min(heads) - time.monotonic()) * 1000) if heads else READ_WAIT_MS
        return max(0, min(rest_ms, READ_WAIT_MS))

    def _due_s(self, record: ConsumerRecord) -> float:
        rest_ms = int(record.timestamp) + self._length_ms - self._attempts.now_ms()
        return time.monotonic() + max(0, min(rest_ms, self._length_ms)) / 1000

    async def _release(self, record: ConsumerRecord) -> None:
        try:
            retry = self._attempts.codec.decode_as(RetryRequested, record.value or b"")
        except UndecodableRecord as error:
            await self._attempts.bury(record, error, self._reader.group)
        else:
            event = RetryDue(session_id=retry.session_id, injection_id=retry.injection_id, attempt=retry.attempt)
            value = self._attempts.codec.encode(event)
            await self._attempts.write(
                self._attempts.topics.events, record.partition, retry.session_id, value, trace_of(record.headers)
            )
        self._reader.finish(record)
