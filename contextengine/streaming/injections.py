"""The injections of sessions whose VoiceEngine delivers by itself (route `hand_off`).

    async with Injections(settings) as injections:
        await injections.watch("s1")                    # before SessionStarted is published
        async for attempt in injections:
            ...                                         # put attempt.injection.context.render() into the conversation
            await injections.report(attempt, Verdict.DELIVERED)

There is no consumer group: a session's injections are read by whoever watches it, from the end of its partition at the
time of `watch` on. Nothing is injected into a session before its start, so nothing is missed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka import errors as kafka

from contextengine.adapters.attempt_log import AttemptLog
from contextengine.adapters.group_reader import stop
from contextengine.adapters.lanes import Queued, without_sending
from contextengine.errors import UndecodableRecord
from contextengine.schemas.events import HAND_OFF
from contextengine.schemas.injection import (
    AttemptVerdict,
    Confirmation,
    InjectionAttempt,
    InjectionCancelled,
    Verdict,
)
from contextengine.topics.catalogue import partition_for
from contextengine.topics.rulebook import must_exist
from contextengine.topics.trace import trace_of

if TYPE_CHECKING:
    from types import TracebackType

    from aiokafka.structs import ConsumerRecord

    from contextengine.settings import Settings

log = logging.getLogger(__name__)

FETCH_WAIT_MS: Final = 50
READ_WAIT_MS: Final = 500
FOLLOW_POLL_S: Final = 0.01


class Injections:
    """Iterates over the attempts of watched sessions, in the order of each session, for as long as its block lasts.

    An attempt comes once. It does not come when it was called back or its deadline has passed by the time somebody
    asks for it; then its session is told so from here. Attempts of route `attach` come too, to be looked at: the
    delivery consumer makes those.
    """

    def __init__(self, settings: Settings) -> None:
        self._attempts = AttemptLog(settings)
        self._topic = self._attempts.topics.injections.name
        self._partitions = settings.partitions
        self._sessions: dict[str, dict[tuple[str, int], ConsumerRecord]] = {}
        self._followed: dict[int, asyncio.Task[int]] = {}
        self._ready: deque[Queued] = deque()
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as entered:
            await entered.enter_async_context(self._attempts)
            self._consumer = AIOKafkaConsumer(
                **self._attempts.settings.kafka_client(),
                enable_auto_commit=False,
                auto_offset_reset="latest",
                fetch_max_wait_ms=FETCH_WAIT_MS,
            )
            entered.push_async_callback(stop, self._consumer)
            await self._consumer.start()
            await must_exist(self._topic, self._consumer._client)  # noqa: SLF001  as the rulebook does
            every = [TopicPartition(self._topic, number) for number in range(self._partitions)]
            self._consumer.assign(every)
            self._consumer.pause(*every)
            self._exit = entered.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for following in self._followed.values():
            following.cancel()
        await self._exit.aclose()

    async def watch(self, session_id: str) -> None:
        """Return when every injection that is appended from now on will come. To be awaited before SessionStarted."""
        partition = partition_for(session_id.encode(), self._partitions)
        if partition not in self._followed:
            self._followed[partition] = asyncio.create_task(self._follow(partition))
        await asyncio.shield(self._followed[partition])
        self._sessions.setdefault(session_id, {})

    def unwatch(self, session_id: str) -> None:
        """Forget a session that has ended."""
        self._sessions.pop(session_id, None)
        self._ready = deque(queued for queued in self._ready if queued.attempt.session_id != session_id)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> InjectionAttempt:
        wait_ms = 0  # what is there already may cancel what is ready
        while True:
            try:
                fetched = await self._consumer.getmany(timeout_ms=wait_ms)
            except kafka.ConsumerStoppedError:
                raise StopAsyncIteration from None
            for records in fetched.values():
                for record in records:
                    self._take(record)
            while self._ready:
                queued = self._ready.popleft()
                if not await self._settled(queued):
                    return queued.attempt
            wait_ms = READ_WAIT_MS

    async def report(
        self,
        attempt: InjectionAttempt,
        verdict: Verdict,
        *,
        confirmation: Confirmation = Confirmation.NONE,
        achieved: str = "native",
        role: str = "",
        transient: bool = False,
        error_class: str = "",
        message: str = "",
        sent_ms: int = 0,
        answered_ms: int = 0,
    ) -> None:
        """Say what became of `attempt`; returns when the broker has it, however long that takes.

        `sent_ms` and `answered_ms` are this machine's wall clock; a delivery without them was answered just now.
        ValueError for an attempt of route `attach`: what became of it, the delivery consumer says.
        """
        if attempt.destination.route != HAND_OFF:
            raise ValueError(f"{attempt.injection.injection_id} is delivered by the delivery consumer, not handed off")
        delivered = verdict is Verdict.DELIVERED
        told = AttemptVerdict(
            session_id=attempt.session_id,
            injection_id=attempt.injection.injection_id,
            attempt=attempt.attempt,
            verdict=verdict,
            provider=attempt.destination.provider,
            confirmation=Confirmation.SENT if delivered and confirmation is Confirmation.NONE else confirmation,
            achieved=achieved if delivered else "none",
            role=role,
            transient=transient,
            error_class=error_class,
            message=message,
            sent_ms=sent_ms,
            answered_ms=time.time_ns() // 1_000_000 if delivered and not answered_ms else answered_ms,
        )
        await self._write(self._attempts.in_broker_time(told))

    async def _settled(self, queued: Queued) -> bool:
        """Whether the attempt is not to be made any more: then its session is told why."""
        attempt = queued.attempt
        if attempt.destination.route != HAND_OFF:
            return False
        verdict = without_sending(queued, self._attempts.now_ms(), (attempt.destination.provider,))
        if verdict is not None:
            await self._write(verdict)
        return verdict is not None

    async def _write(self, verdict: AttemptVerdict) -> None:
        partition = partition_for(verdict.session_id.encode(), self._partitions)
        record = self._sessions.get(verdict.session_id, {}).get((verdict.injection_id, verdict.attempt))
        trace = () if record is None else trace_of(record.headers)
        await self._attempts.add_verdict(verdict, partition, trace)
        await self._attempts.report(verdict, partition, trace)

    async def _follow(self, partition: int) -> int:
        """Read the partition from its end on. The end is what a fetch says: other answers can be too low."""
        tp = TopicPartition(self._topic, partition)
        while not await self._consumer.seek_to_end(tp):
            log.warning("%s-%d: the broker does not say where it ends", self._topic, partition)
        self._consumer.resume(tp)
        while (end := self._consumer.highwater(tp)) is None:  # noqa: ASYNC110  aiokafka tells nobody of an empty fetch
            await asyncio.sleep(FOLLOW_POLL_S)
        return int(end)

    def _take(self, record: ConsumerRecord) -> None:
        self._attempts.saw(record)
        following = self._followed[record.partition]
        if not following.done() or record.offset < following.result():
            return  # it was there before anybody watched
        if (record.key or b"").decode(errors="replace") not in self._sessions:
            return
        try:
            injection = self._attempts.codec.decode(record.value or b"")
        except UndecodableRecord:
            return  # the delivery consumer makes it a dead letter
        match injection:
            case InjectionAttempt() if (seen := self._sessions.get(injection.session_id)) is not None:
                identity = (injection.injection.injection_id, injection.attempt)
                if identity not in seen:
                    seen[identity] = record
                    self._ready.append(Queued(record, injection))
            case InjectionCancelled():
                for queued in self._ready:
                    queued.hear(injection)
