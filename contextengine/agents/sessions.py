"""The agent of the events topic: decode, load, decide, store, send.

A batch of one partition is one unit: it holds the partition's lock from its first record until the futures of all its
outputs exist, so that a flush never writes a state whose outputs it does not wait for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

from faust.types import StreamT
from msgspec import Struct

from contextengine.agents.consumer_thread import BatchRecord
from contextengine.agents.lag import PartitionLag
from contextengine.agents.outbox import Outbox
from contextengine.agents.rule_sets import RuleSets
from contextengine.agents.timers import Timers
from contextengine.delivery.dead_letter import Failures, Origin, forms, headers
from contextengine.engine.decide import decide
from contextengine.engine.decision import Decision
from contextengine.engine.partition import follow, subject
from contextengine.errors import EngineDefect, LogReplaced, RecordRefused, UndecodableRecord
from contextengine.monitoring.metrics import DEAD_LETTERS, DECIDE_SECONDS, EVENTS, INJECTIONS, SUPPRESSED
from contextengine.schemas.codec import Codec
from contextengine.schemas.dead_letter import Stage
from contextengine.schemas.events import PARTITION_EVENTS
from contextengine.schemas.session import Partition, Session, State
from contextengine.tables.live import LiveTable, PartitionHalted, PartitionLock
from contextengine.topics.catalogue import Catalogue
from contextengine.topics.intake import event_in
from contextengine.topics.trace import caused_by, trace_of

log = logging.getLogger(__name__)


class SessionsAgent:
    """Judges the events of the partitions that this worker owns."""

    def __init__(
        self,
        topics: Catalogue,
        table: LiveTable[State],
        outbox: Outbox,
        rule_sets: RuleSets,
        timers: Timers,
        lag: PartitionLag,
        codec: Codec,
        *,
        group: str,
        worker: str,
    ) -> None:
        self._topics = topics
        self._table = table
        self._outbox = outbox
        self._rule_sets = rule_sets
        self._timers = timers
        self._lag = lag
        self._codec = codec
        self._group = group
        self._worker = worker

    async def run(self, stream: StreamT[Any]) -> None:
        """Judge every batch; an acknowledged batch is one whose outputs are on their way, or whose partition halts."""
        async for batch in stream.events():
            with suppress(RecordRefused, PartitionHalted):  # OwnedPartitions says so, and commits nothing of it
                await self.judge(batch.message.partition, batch.value)

    def lock(self, number: int) -> PartitionLock:
        """Held while a partition's state or outputs change."""
        return self._table.lock(number)

    async def judge(self, number: int, records: Sequence[BatchRecord]) -> None:
        """Judge consecutive records of one partition.

        Raises RecordRefused and PartitionHalted, which halt it; whatever else it raises must stop the worker.
        """
        async with self._table.lock(number):
            started = perf_counter()
            partition = self.partition(number)
            for record in records:
                if record.offset <= partition.floor:
                    continue
                partition.now_ms = max(partition.now_ms, record.timestamp)
                await self._judge(record, partition)
                partition.floor = record.offset
                if self._outbox.is_due(number):
                    await self._outbox.send(number)
            self._table.put_partition(number, partition, partition.floor)
            await self._outbox.send(number)
        self._lag.judged(number, records[-1].offset, records[0].timestamp, records[-1].timestamp)
        EVENTS.inc(len(records))
        DECIDE_SECONDS.observe((perf_counter() - started) / len(records))

    def partition(self, number: int) -> Partition:
        """The record of a partition; one that nobody has owned before begins with the newest rules and switches."""
        found = self._table.get_partition(number)
        if isinstance(found, Partition):
            return found
        newest = self._rule_sets
        born = Partition(
            number,
            log_id=newest.log_id,
            rules_version=newest.version,
            rules_hash=newest.latest,
            switches_version=newest.switches_version,
            off=newest.off,
        )
        self._table.put_partition(number, born, born.floor)
        return born

    def rearm(self, number: int) -> None:
        """Wait for the timers of all sessions of a partition that has just been restored."""
        for _, state in self._table.items(number):
            if isinstance(state, Session):
                for timer, due_ms in state.timers.items():
                    self._timers.arm(number, state.session_id, timer, due_ms)

    def is_armed(self, number: int, session_id: str, timer: str, due_ms: int) -> bool:
        """Whether the session still waits for this timer."""
        session = self._table.get(number, session_id.encode())
        return isinstance(session, Session) and session.timers.get(timer) == due_ms

    def check_log(self, number: int, start: int, end: int) -> None:
        """Raises LogReplaced when the log, from `start` to `end`, does not go on from where the state has come to."""
        partition = self.partition(number)
        log_id, floor = self._rule_sets.log_id, partition.floor
        if partition.log_id != log_id:
            made_from = partition.log_id or "none"
            told = f"its log id is {log_id or 'none'}, the state was made from {made_from}: it was recreated"
        elif end <= floor:
            told = f"it ends at {end}, the state has come to {floor}: it was recreated"
        elif start > floor + 1 and floor >= 0:
            told = f"it begins at {start}, the state has come to {floor}: what lies between has outlived its retention"
        else:
            return
        raise LogReplaced(
            f"{self._topics.events.name} partition {number}: {told}. To start over with what is there, delete"
            f" {self._topics.sessions_changelog.name} too, then `contextengine topics apply`"
        )

    async def _judge(self, record: BatchRecord, partition: Partition) -> None:
        try:
            event = event_in(record, partition.number, self._topics.events.partitions, self._codec.decode)
            if isinstance(event, PARTITION_EVENTS):
                follow(partition, event)
                return
            session = subject(event, record.offset, self._table.get(partition.number, record.key))
            if session is None:
                return
            rules = self._rule_sets.known(partition.rules_hash) or await self._rule_sets.of(partition.rules_hash)
        except UndecodableRecord as error:
            self._bury(partition.number, record, Stage.DECODE, error)
            return
        decision = decide(session, partition, event, partition.now_ms, rules)
        if decision.defect:
            self._bury(partition.number, record, Stage.DECIDE, EngineDefect(decision.defect))
        session.offset = record.offset
        self._store(partition.number, record, session, decision)
        self._send(partition.number, record, decision)

    def _store(self, number: int, record: BatchRecord, session: Session, decision: Decision) -> None:
        if decision.forget:
            self._table.remove(number, record.key, record.offset)
            return
        self._table.put(number, record.key, session, record.offset)
        for timer, due_ms in decision.timers:
            self._timers.arm(number, session.session_id, timer, due_ms)

    def _send(self, number: int, record: BatchRecord, decision: Decision) -> None:
        if decision.explanation is None and not decision.defect:
            return  # nothing follows from most events; what does is explained, unless a defect came before
        topics = self._topics
        trace = trace_of(record.headers)
        caused = [*trace, caused_by(record.offset)]
        for topic, outputs in (
            (topics.injections, decision.attempts),
            (topics.injections, decision.cancellations),
            (topics.retry_1s, decision.retries),
            (topics.results, decision.results),
            (topics.decisions, [decision.explanation] if decision.explanation else []),
        ):
            for output in outputs:
                self._outbox.add(topic.name, number, record.key, self._encoded(output), caused)
        for suppressed in decision.suppressed:
            SUPPRESSED.labels(suppressed.filter).inc()
        for result in decision.results:
            INJECTIONS.labels(result.outcome, result.criticality, result.provider).inc()
        for dead in decision.dead:
            failures = Failures(
                dead.attempt.injection, dead.attempt.attempt, dead.first_failure_ms, dead.last_failure_ms
            )
            told = headers(
                Stage.DELIVER,
                dead.error_class,
                dead.reason,
                self._origin(number, record),
                failures=failures,
                redrives=dead.attempt.injection.redrives,
                carried=trace,
            )
            self._outbox.add(topics.dead.name, number, record.key, self._encoded(dead.attempt), told)
            DEAD_LETTERS.labels(Stage.DELIVER).inc()

    def _encoded(self, output: Struct) -> bytes:
        """The bytes of an output; one that has none halts its partition, as one that the broker refuses."""
        try:
            return self._codec.encode(output)
        except (TypeError, ValueError) as error:
            raise RecordRefused(f"{type(output).__name__} cannot be encoded: {error}") from error

    def _bury(self, number: int, record: BatchRecord, stage: Stage, error: Exception) -> None:
        """A dead letter with the record's bytes unchanged; the partition goes on.

        Raises RecordRefused when no form of it fits: a record is never dropped.
        """
        told = headers(stage, type(error).__name__, str(error), self._origin(number, record), carried=record.headers)
        for kept, how in forms(record.value):
            try:
                self._outbox.add(self._topics.dead.name, number, record.key, kept, told + how)
                break
            except RecordRefused as refusal:
                refused = refusal
        else:
            raise refused
        DEAD_LETTERS.labels(stage).inc()
        topic = self._topics.events.name
        log.warning("dead letter: %s partition %d offset %d: %s", topic, number, record.offset, error)

    def _origin(self, number: int, record: BatchRecord) -> Origin:
        return Origin(
            self._topics.events.name, number, record.offset, record.timestamp, group=self._group, worker=self._worker
        )
