"""An installation of one partition in memory: all that a worker and a delivery consumer write about a log."""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import asynccontextmanager

from aiokafka import ConsumerRecord, TopicPartition

from contextengine.delivery.dead_letter import Origin, headers
from contextengine.errors import UndecodableRecord
from contextengine.replay.log import Bounds
from contextengine.replay.partition import PartitionReplay, RuleSets, outputs_of
from contextengine.replay.source import Source
from contextengine.rulefile import rules_hash
from contextengine.schemas.codec import SINGLE_OBJECT, encode
from contextengine.schemas.dead_letter import Stage
from contextengine.schemas.decision import DecisionMade
from contextengine.schemas.events import AttemptReported
from contextengine.schemas.injection import InjectionResult, RetryRequested
from contextengine.schemas.session import (
    RESERVED,
    STATE_HEADER,
    STATE_VERSION,
    TOMBSTONE_HEADER,
    Partition,
    dump_state,
)
from contextengine.settings import load
from contextengine.topics.catalogue import catalogue
from contextengine.topics.intake import event_in
from contextengine.topics.rulebook import Entry
from contextengine.topics.trace import caused_by


class TopicsInMemory:
    """What has become of a call's log, judged under the rule sets `texts`, the one that it began with first.

    `records` are those of each topic; a test takes some out, or puts some in. `starts` are the topics' first offsets.
    """

    def __init__(self, log, *texts, state_version=STATE_VERSION):
        self.settings = load(environ={}, broker="in-memory:9092", partitions=1)
        self.topics = catalogue(self.settings)
        self.records = defaultdict(list)
        self.starts = Counter()
        self._entries = {rules_hash(text): Entry(version, text.encode()) for version, text in enumerate(texts)}
        self._state_version = state_version
        first = Partition(0, rules_version=0, rules_hash=rules_hash(texts[0]))
        self._replay = PartitionReplay(first, {}, RuleSets({rules_hash(text): text for text in texts}))
        self._put_partition()
        for event, at_ms in log:
            self.judge(event, at_ms)

    def judge(self, event, at_ms):
        """An event (or bytes that are none) is appended, and judged; what follows is written. Returns its offset."""
        topics, key = self.topics, getattr(event, "session_id", "").encode()
        if isinstance(event, AttemptReported):
            self.append(topics.attempts, key, encode(event.verdict), at_ms)
        record = self.append(topics.events, key or None, event if isinstance(event, bytes) else encode(event), at_ms)
        try:
            event = event_in(record, record.partition, 1, SINGLE_OBJECT.decode)
        except UndecodableRecord:
            event = None
            self._bury(record, Stage.DECODE, record.value)
        decision = self._replay.judge(record.offset, at_ms, event)
        if decision is not None:
            self._write(record, decision)
        self._put_partition()
        return record.offset

    def append(self, topic, key, value, at_ms, told=()):
        """A record is appended to a topic."""
        records = self.records[topic.name]
        offset = records[-1].offset + 1 if records else 0
        records.append(ConsumerRecord(topic.name, 0, offset, at_ms, 1, key, value, None, 0, 0, tuple(told)))
        return records[-1]

    def lose(self, topic, record):
        """A record is not there."""
        self.records[topic.name].remove(record)

    def forget_states_before(self, offset, *, of_sessions=True):
        """Compaction has left nothing of the states that know of less than the event at `offset`."""
        changelog = self.topics.sessions_changelog.name
        self.records[changelog] = [
            record
            for record in self.records[changelog]
            if (not of_sessions and not record.key.startswith(RESERVED))
            or (record.value is not None and STATE_HEADER.unpack_from(record.value)[0] >= offset)
        ]

    @asynccontextmanager
    async def opened(self, _settings=None):
        """In place of `contextengine.replay.source.opened`."""
        source = Source(self.settings, self, SINGLE_OBJECT, self._entries)
        await source.look()
        yield source

    # As a LogReader

    async def bounds(self, *topics):
        found = {}
        for topic in topics:
            records = self.records[topic.name]
            end = max([self.starts[topic.name], *(record.offset + 1 for record in records)])
            found[TopicPartition(topic.name, 0)] = Bounds(self.starts[topic.name], end)
        return found

    async def read(self, partition, bounds):
        for record in self.records[partition.topic]:
            if bounds.start <= record.offset < bounds.end:
                yield record

    # As a worker

    def _write(self, record, decision):
        topics = self.topics
        homes = {RetryRequested: topics.retry_1s, InjectionResult: topics.results, DecisionMade: topics.decisions}
        for output in outputs_of(decision):
            home = homes.get(type(output), topics.injections)
            self.append(home, record.key, encode(output), record.timestamp, [caused_by(record.offset)])
        for dead in decision.dead:
            self._bury(record, Stage.DELIVER, encode(dead.attempt))
        if decision.defect:
            self._bury(record, Stage.DECIDE, record.value)
        if decision.forget:
            version = STATE_HEADER.pack(record.offset, 1)
            self.append(topics.sessions_changelog, record.key, None, record.timestamp, [(TOMBSTONE_HEADER, version)])
        else:
            self._put_state(record.key, self._replay.sessions[record.key.decode()], record.offset)

    def _bury(self, record, stage, value):
        origin = Origin(record.topic, 0, record.offset, record.timestamp, group="g", worker="w")
        self.append(self.topics.dead, record.key, value, record.timestamp, headers(stage, "E", "why", origin))

    def _put_partition(self):
        partition = self._replay.partition
        self._put_state(RESERVED + b"partition:0", partition, max(partition.floor, 0))

    def _put_state(self, key, state, offset):
        value = STATE_HEADER.pack(offset, 1) + dump_state(state, self._state_version)
        self.append(self.topics.sessions_changelog, key, value, 0)
