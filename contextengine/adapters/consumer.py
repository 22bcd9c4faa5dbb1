"""The delivery consumer: makes the attempts of route `attach`, and says what became of them.

For each attempt, in this order: the adapter's verdict goes to the attempts topic; AttemptReported goes to the events
topic; the offset is committed. Each step waits until the broker has acknowledged the one before. So a crash between two
of them repeats the later ones only: an attempt that has a verdict is reported again and not made again. One that has
none, and is called back or too late by now, may be in the call all the same: the provider is asked.

The attempts of a session are made one after another; sessions do not wait for each other, but for room: a provider gets
so many attempts at a time, and a partition that has too many unfinished records is not read on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from contextengine.adapters.attempt_log import AttemptLog
from contextengine.adapters.delay_line import DelayLine
from contextengine.adapters.group_reader import GroupReader
from contextengine.adapters.lanes import KnownVerdicts, Lanes, Queued, timeout_ms, verdict_on, without_sending
from contextengine.adapters.redelivery import verdicts_since
from contextengine.delivery.next_step import RETRY_LINE_MS
from contextengine.errors import BrokerUnavailable, UndecodableRecord, Unrenderable
from contextengine.monitoring.health import silence
from contextengine.monitoring.metrics import ATTEMPTS, EVENT_TO_DELIVERY_SECONDS
from contextengine.schemas.events import ATTACH
from contextengine.schemas.injection import AttemptVerdict, InjectionAttempt, InjectionCancelled, Verdict
from contextengine.topics.errand import NO_ANSWER
from contextengine.topics.trace import trace_of

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from aiokafka.structs import ConsumerRecord

    from contextengine.adapters.adapter import Adapter
    from contextengine.monitoring.health import Health
    from contextengine.settings import Settings

log = logging.getLogger(__name__)

ROOM: Final = 64
"""How many attempts at one provider are under way at a time; a provider that hangs takes nobody else's room."""
OVERTIME_S: Final = 0.05
"""How much longer than allowed an adapter may take before it is stopped."""
READ_WAIT_MS: Final = 500
RECOVER_AGAIN_S: Final = 1.0
WATCH_S: Final = 2.0
PARTITIONS: Final = "partitions"
"""The condition of readiness that `deliver` meets while it has partitions to deliver from."""


async def deliver(
    settings: Settings, adapters: Mapping[str, Adapter[Any]], health: Health, stop: asyncio.Event
) -> None:
    """Run the delivery consumer and the delay line until `stop` is set, then end in order, and close the adapters.

    Raises BrokerUnavailable at the start, and later what keeps a partition from going on (a dead letter that cannot be
    written): then the process must end with an error, and what was under way comes again.
    """
    try:
        async with AttemptLog(settings) as attempts, asyncio.TaskGroup() as parts:
            parts.create_task(DelayLine(attempts, attempts.topics.retry_1s, RETRY_LINE_MS).run(stop))
            parts.create_task(DeliveryConsumer(attempts, adapters, health).run(stop))
    except BaseExceptionGroup as failed:
        raise first_error(failed) from failed
    finally:
        for adapter in adapters.values():
            await adapter.close()


def first_error(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first in a group of tasks; what followed from it is of no interest."""
    first = failed.exceptions[0]
    return first_error(first) if isinstance(first, BaseExceptionGroup) else first


class _Partition:
    """A partition of the injections topic that is ours, from its assignment to its revocation."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.lanes = Lanes()
        self.known = KnownVerdicts()
        self.leaving = False
        self.ours_since_ms = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.sending: set[asyncio.Task[None]] = set()


class DeliveryConsumer:
    """Makes the attempts of the partitions that its group assigns to it, with the adapter of each provider."""

    def __init__(self, attempts: AttemptLog, adapters: Mapping[str, Adapter[Any]], health: Health) -> None:
        self._attempts, self._adapters, self._health = attempts, adapters, health
        self._reader = GroupReader(attempts, attempts.topics.injections.name, attempts.settings.deliver_group, self)
        self._partitions: dict[int, _Partition] = {}
        self._missing = "the group has not assigned partitions yet"
        self._room: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(ROOM))

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until `stop` is set; then finish what is under way, report, commit, and leave the group.

        Raises what keeps a partition from going on. Cancelled, it ends at once, and what was under way comes again.
        """
        async with self._reader, asyncio.TaskGroup() as self._tasks:
            reading = self._tasks.create_task(self._read())
            besides = [self._tasks.create_task(work) for work in (self._reader.commit_periodically(), self._watch())]
            await stop.wait()
            reading.cancel()
            await self._reader.leave()
            for task in besides:
                task.cancel()

    def assigned(self, partitions: set[int]) -> None:
        """Learn what is known about the attempts of these partitions, then read them."""
        new = [_Partition(number) for number in partitions]
        self._partitions.update((partition.number, partition) for partition in new)
        recovering = self._tasks.create_task(self._recover(new))
        for partition in new:
            partition.tasks.add(recovering)

    async def revoked(self, partitions: set[int], within_s: float) -> None:
        """Finish the attempts of these partitions that are under way; those that take longer are cut off."""
        self._missing = "the group is rebalancing"
        self._health.miss(PARTITIONS, self._missing)
        leaving = [self._partitions.pop(number) for number in partitions]
        for partition in leaving:
            partition.leaving = True
            for task in partition.tasks - partition.sending:
                task.cancel()
        if sending := {task for partition in leaving for task in partition.sending}:
            _, late = await asyncio.wait(sending, timeout=within_s)
            for task in late:
                log.warning("an attempt is cut off: its partition goes to another consumer, which will repeat it")
                task.cancel()

    async def _recover(self, partitions: list[_Partition]) -> None:
        positions = {partition.number: await self._reader.position(partition.number) for partition in partitions}
        while True:
            try:
                known = await verdicts_since(positions, self._attempts)
                break
            except NO_ANSWER as silence:
                log.warning("the verdicts on earlier attempts cannot be read, trying again: %r", silence)
                await asyncio.sleep(RECOVER_AGAIN_S)
        for partition in partitions:
            partition.known = known[partition.number]
            partition.ours_since_ms = self._attempts.now_ms()
            partition.tasks.clear()
        self._reader.resume(positions)
        self._missing = ""
        self._health.meet(PARTITIONS)

    async def _watch(self) -> None:
        """Keep readiness true to whether the broker answers and has the topic."""
        topic, broker = self._attempts.topics.injections.name, self._attempts.settings.broker
        answered_s, why = time.monotonic(), ""
        while True:
            await asyncio.sleep(WATCH_S)
            asked_s = time.monotonic()
            try:
                has_topic = await self._reader.broker_has_topic()
            except BrokerUnavailable:
                why = why or silence(broker, time.monotonic() - answered_s)
                self._health.miss(PARTITIONS, why)
                continue
            answered_s, why = asked_s, ""
            if not has_topic:
                self._health.miss(PARTITIONS, f"the broker has no topic {topic}; run `contextengine topics apply`")
            elif not self._missing:
                self._health.meet(PARTITIONS)

    async def _read(self) -> None:
        while True:
            for number, records in (await self._reader.read(READ_WAIT_MS)).items():
                partition = self._partitions.get(number)
                if partition is not None:  # else it is just being revoked
                    for record in records:
                        self._take(partition, record)

    def _take(self, partition: _Partition, record: ConsumerRecord) -> None:
        try:
            injection = self._attempts.codec.decode(record.value or b"")
        except UndecodableRecord as error:
            self._start(partition, self._bury(record, error))
            return
        match injection:
            case InjectionAttempt() if injection.destination.route == ATTACH:
                # The lane's task runs when all that was fetched is taken: a cancellation in it is not too late.
                if partition.lanes.add(Queued(record, injection)):
                    self._start(partition, self._work(partition, injection.session_id))
            case InjectionAttempt():
                self._reader.finish(record)  # handed off: the VoiceEngine makes it
            case InjectionCancelled():
                partition.lanes.cancel(injection)
                self._reader.finish(record)
            case _:
                stranger = UndecodableRecord(f"a {type(injection).__name__} is no record of the injections topic")
                self._start(partition, self._bury(record, stranger))

    def _start(self, partition: _Partition, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks.create_task(work)
        partition.tasks.add(task)
        task.add_done_callback(partition.tasks.discard)

    async def _bury(self, record: ConsumerRecord, error: UndecodableRecord) -> None:
        await self._attempts.bury(record, error, self._reader.group)
        self._reader.finish(record)

    async def _work(self, partition: _Partition, session_id: str) -> None:
        """Make the attempts of one session, one after another, until there is none."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  it runs in one
        while not partition.leaving and (queued := partition.lanes.head(session_id)) is not None:
            try:
                async with self._room[queued.attempt.destination.provider]:
                    partition.sending.add(task)
                    verdict = partition.known.of(queued.attempt) or await self._deliver(partition, queued)
                await self._tell(partition, queued, verdict)
                partition.lanes.pop(session_id)
                self._reader.finish(queued.record)
            finally:
                partition.sending.discard(task)

    async def _deliver(self, partition: _Partition, queued: Queued) -> AttemptVerdict:
        attempt = queued.attempt
        verdict = without_sending(queued, self._attempts.now_ms(), self._adapters)
        if verdict is None:
            return await self._send(attempt)
        if queued.record.timestamp < partition.ours_since_ms:
            return await self._find(attempt) or verdict
        return verdict

    async def _tell(self, partition: _Partition, queued: Queued, verdict: AttemptVerdict) -> None:
        attempt, trace = queued.attempt, trace_of(queued.record.headers)
        if partition.known.of(attempt) is None:
            await self._attempts.add_verdict(verdict, partition.number, trace)
            partition.known.add(verdict)
            ATTEMPTS.labels(verdict.verdict).inc()
            if verdict.verdict not in (Verdict.DELIVERED, Verdict.CANCELLED):
                _complain(attempt, verdict)
            if verdict.verdict is Verdict.DELIVERED:
                EVENT_TO_DELIVERY_SECONDS.observe(max(0, verdict.answered_ms - attempt.injection.trigger_ms) / 1000)
        await self._attempts.report(verdict, partition.number, trace)

    async def _send(self, attempt: InjectionAttempt) -> AttemptVerdict:
        adapter = self._adapters[attempt.destination.provider]
        name = f"{attempt.injection.injection_id}/{attempt.attempt}"
        sent_ms = 0
        allowed_s = timeout_ms(attempt, self._attempts.now_ms()) / 1000
        try:
            payload = adapter.render(attempt)
            sent_ms = self._attempts.now_ms()
            async with asyncio.timeout(allowed_s + OVERTIME_S):
                verdict = await adapter.send(attempt, payload, allowed_s)
        except Unrenderable as error:
            return verdict_on(attempt, Verdict.REFUSED, error_class=type(error).__name__, message=str(error))
        except TimeoutError:
            log.warning("%s: the adapter did not keep to its time", name)
            return verdict_on(
                attempt,
                Verdict.UNKNOWN,
                transient=True,
                error_class="TimeoutError",
                message=f"no answer within {allowed_s * 1000:.0f} ms",
                sent_ms=sent_ms,
            )
        except Exception as bug:
            log.exception("%s: the adapter raises, which it must not", name)
            return verdict_on(
                attempt, Verdict.FAILED, error_class=type(bug).__name__, message=str(bug), sent_ms=sent_ms
            )
        return self._attempts.in_broker_time(verdict)

    async def _find(self, attempt: InjectionAttempt) -> AttemptVerdict | None:
        """The verdict on an attempt that is not to be made, if the owner before us has made it and died of it."""
        adapter = self._adapters.get(attempt.destination.provider)
        if adapter is None:
            return None
        allowed_s = attempt.injection.timeout_ms / 1000
        try:
            async with asyncio.timeout(allowed_s + OVERTIME_S):
                found = await adapter.find(attempt, allowed_s)
        except Exception:
            log.exception("%s: the adapter raises, which it must not", attempt.injection.injection_id)
            return None
        return found and self._attempts.in_broker_time(found)


def _complain(attempt: InjectionAttempt, verdict: AttemptVerdict) -> None:
    """Say in the log that an attempt came to nothing, and why; what the context says stays out of it."""
    injection = attempt.injection
    log.warning(
        "session %s, rule %s, attempt %d of %d at %s: %s%s",
        attempt.session_id,
        injection.rule,
        attempt.attempt,
        injection.policy.max_attempts,
        attempt.destination.provider,
        verdict.verdict.value,
        "".join(f": {told}" for told in (verdict.error_class, verdict.message) if told),
    )
