"""What became of attempts, written so that nothing is lost: each record is acknowledged before a call returns.

For an attempt the verdict goes to the attempts topic, then AttemptReported to the events topic, both into the partition
of its session. A record of the attempts topic without a value is a marker: whoever reads up to it has read everything
that was there before it was written.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from typing import TYPE_CHECKING, Final, Self, TypeAlias

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka

from contextengine.adapters.lanes import MESSAGE_CHARS
from contextengine.delivery.broker_time import BrokerClock
from contextengine.delivery.dead_letter import Origin, forms, headers
from contextengine.errors import BrokerUnavailable, RecordRefused
from contextengine.monitoring.clock import ClockWatch
from contextengine.monitoring.metrics import DEAD_LETTERS
from contextengine.schemas.codec import SINGLE_OBJECT
from contextengine.schemas.dead_letter import Stage
from contextengine.schemas.events import AttemptReported
from contextengine.topics.catalogue import catalogue
from contextengine.topics.errand import ANSWER_MS, NO_ANSWER
from contextengine.topics.patience import be_patient
from contextengine.topics.publisher import stop
from contextengine.topics.registry import codec_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from aiokafka.structs import ConsumerRecord

    from contextengine.errors import UndecodableRecord
    from contextengine.schemas.injection import AttemptVerdict
    from contextengine.settings import Settings
    from contextengine.topics.catalogue import Topic

log = logging.getLogger(__name__)

Headers: TypeAlias = "Sequence[tuple[str, bytes]]"

REQUEST_MS: Final = 10_000
REPEAT_S: Final = 0.1
LOG_APPEND_TIME: Final = 1
"""The timestamp type of a record whose time the broker wrote."""
DEAD_LETTER_S: Final = 30
"""How long a dead letter may take to be acknowledged, before its partition stops."""


class AttemptLog:
    """Writes verdicts, reports and dead letters, and knows the broker's time from their acknowledgements.

    Enter it with `async with`. Writing goes on through an absence of the broker for as long as it takes; RecordRefused
    says that the broker will not have the record at all.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.topics = catalogue(settings)
        self.codec = SINGLE_OBJECT
        self.worker = f"{socket.gethostname()}-{os.getpid()}"
        self._clock = BrokerClock(time.time() * 1000, time.monotonic() * 1000)
        self._clock_watch = ClockWatch()

    async def __aenter__(self) -> Self:
        self.codec = await asyncio.to_thread(codec_of, self.settings)
        self._producer = AIOKafkaProducer(**self.settings.kafka_producer(), request_timeout_ms=REQUEST_MS)
        be_patient(self._producer)
        try:
            async with asyncio.timeout(ANSWER_MS / 1000):
                await self._producer.start()
        except BaseException as failed:
            await stop(self._producer)
            if isinstance(failed, NO_ANSWER):
                raise BrokerUnavailable(f"no broker answers at {self.settings.broker}") from failed
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await stop(self._producer)

    def now_ms(self) -> int:
        """The broker's time, never ahead of it. The embedded broker has none of its own: this machine's."""
        return self._clock.now_ms(time.monotonic() * 1000)

    def saw(self, record: ConsumerRecord) -> None:
        """Learn the time from a record that was just read."""
        if record.timestamp_type == LOG_APPEND_TIME and not self.settings.embedded:
            self._clock.learn(record.timestamp, time.monotonic() * 1000)

    def in_broker_time(self, verdict: AttemptVerdict) -> AttemptVerdict:
        """`verdict`, its times shifted from this machine's wall clock to the broker's time, its message bounded."""
        shift_ms = self.now_ms() - time.time_ns() // 1_000_000
        return msgspec.structs.replace(
            verdict,
            sent_ms=verdict.sent_ms and verdict.sent_ms + shift_ms,
            answered_ms=verdict.answered_ms and verdict.answered_ms + shift_ms,
            message=verdict.message[:MESSAGE_CHARS],
        )

    async def add_verdict(self, verdict: AttemptVerdict, partition: int, trace: Headers = ()) -> None:
        """Write the one verdict on an attempt."""
        await self.write(self.topics.attempts, partition, verdict.session_id, self.codec.encode(verdict), trace)

    async def report(self, verdict: AttemptVerdict, partition: int, trace: Headers = ()) -> None:
        """Tell the session what became of its attempt."""
        event = AttemptReported(session_id=verdict.session_id, verdict=verdict)
        await self.write(self.topics.events, partition, verdict.session_id, self.codec.encode(event), trace)

    async def add_marker(self, partition: int) -> int:
        """Write a marker into a partition of the attempts topic, and return its offset."""
        while (offset := await self.write(self.topics.attempts, partition, self.worker, None)) < 0:
            pass  # it was written twice, and the broker no longer knows where
        return offset

    async def bury(self, record: ConsumerRecord, error: UndecodableRecord, group: str) -> None:
        """Write a record that `group` cannot decode to the dead letters, its bytes unchanged.

        Raises TimeoutError when that takes too long, and RecordRefused when the broker takes no form of it: then its
        partition must not go on.
        """
        origin = Origin(record.topic, record.partition, record.offset, record.timestamp, group, self.worker)
        why = headers(Stage.DECODE, type(error).__name__, str(error), origin, carried=record.headers)
        log.error("%s-%d@%d is a dead letter: %s", record.topic, record.partition, record.offset, error)
        key = b"" if record.key is None and record.value is None else record.key  # aiokafka sends no two Nones
        async with asyncio.timeout(DEAD_LETTER_S):
            for kept, how in forms(record.value):
                try:
                    await self.write(self.topics.dead, record.partition, key, kept, why + how)
                    break
                except RecordRefused as refusal:
                    refused = refusal
            else:
                raise refused
        DEAD_LETTERS.labels(Stage.DECODE).inc()

    async def write(
        self, topic: Topic, partition: int, key: str | bytes | None, value: bytes | None, headers: Headers = ()
    ) -> int:
        """Write one record and return its offset once the broker has it (-1 if only that it has it is known)."""
        key = key.encode() if isinstance(key, str) else key
        while True:
            try:
                written = await self._producer.send_and_wait(
                    topic.name, value, key, partition=partition, headers=list(headers)
                )
            except kafka.KafkaError as failure:
                if not (failure.retriable or isinstance(failure, kafka.KafkaTimeoutError)):
                    raise RecordRefused(f"{topic.name}-{partition}: {failure}") from failure
                log.warning("%s-%d: writes again: %r", topic.name, partition, failure)
                await asyncio.sleep(REPEAT_S)
            else:
                self.saw(written)
                self._clock_watch.compare(self.now_ms())
                return int(written.offset)
