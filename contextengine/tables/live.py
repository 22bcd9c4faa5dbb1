"""Live objects over a Faust table: the changelog gets each changed one once per flush, not once per event.

An agent works on objects, under the lock of their partition; a flush takes what has changed, under the same lock, and
writes it. A changelog value begins with the version of the state: the last offset that the state has seen, then the
generation of the worker that wrote it.

The law of a restore: **for each key the greatest version is kept, not the last record**; of equal versions the last.
A worker that stalled past its session timeout may write once more when it wakes up, behind the new owner's back; this
undoes it. A key whose last record is not its greatest is written again at the next flush, because compaction keeps the
last. A key that nobody changes is written again every half hour, for the same reason: the owner cannot see such a
record, and nothing is compacted within its first hour. A tombstone has no value, so it carries its version in a header.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Protocol, TypeAlias, TypeVar, cast

from contextengine.errors import RecordRefused, UndecodableRecord
from contextengine.schemas.session import RESERVED, STATE_HEADER, TOMBSTONE_HEADER
from contextengine.tables.stores import ChangelogTable, PartitionStore

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    import faust
    from aiokafka import AIOKafkaProducer, ConsumerRecord
    from aiokafka.producer.message_accumulator import BatchBuilder

S = TypeVar("S")

Headers: TypeAlias = Sequence[tuple[str, bytes]]

UNKNOWN: Final = b""
"""Less than every version."""
REWRITE_AFTER_S: Final = 1_800
REWRITES_PER_FLUSH: Final = 1_000
MAX_STATE_BYTES: Final = 1_000_000
"""What a producer sends by default; the changelog takes a little more."""


class StateCodec(Protocol[S]):
    """How a state becomes bytes and back; its version is not its business."""

    def encode(self, state: S) -> bytes:
        """The bytes of a state."""

    def decode(self, body: bytes) -> S:
        """The state, of bytes that any version of this software wrote."""


class PartitionClosed(Exception):
    """A batch of this partition failed half-way: its state and its outputs no longer belong together."""


class PartitionHalted(PartitionClosed):
    """The same, and what failed is that the broker refuses a record: the others can go on without this partition."""


class PartitionLock:
    """Held by whoever changes a partition's state or outputs, and by the flush while it takes both.

    A holder that fails (or is cancelled) closes the partition: nothing of it may be written any more, so `async with`
    raises PartitionClosed from then on, or PartitionHalted when the failure was RecordRefused.
    """

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._lock = asyncio.Lock()
        self._broken_by: BaseException | None = None

    async def __aenter__(self) -> None:
        await self._lock.acquire()
        if self._broken_by is not None:
            self._lock.release()
            closed = PartitionHalted if isinstance(self._broken_by, RecordRefused) else PartitionClosed
            raise closed(
                f"partition {self._partition}: an earlier batch failed with {self._broken_by!r}"
            ) from self._broken_by

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.close(error)
        self._lock.release()

    def close(self, error: BaseException) -> None:
        """Nothing may be written any more because of this error; whoever holds the lock holds it to the end."""
        self._broken_by = self._broken_by or error


@dataclass(slots=True)
class _Entry(Generic[S]):
    """A live object, or None once removed, and the last offset that it has seen."""

    state: S | None
    offset: int


@dataclass(slots=True)
class _Partition(Generic[S]):
    """What is live of one partition."""

    lock: PartitionLock
    live: dict[bytes, _Entry[S]] = field(default_factory=dict)
    changed: dict[bytes, _Entry[S]] = field(default_factory=dict)
    written: OrderedDict[bytes, float] = field(default_factory=OrderedDict)
    """When each key was last written (monotonic seconds), oldest first; -inf when it must be written again."""


class _Partitions(dict[int, "_Partition[S]"], Generic[S]):
    """What is live, by partition; nothing of one that was not asked for before."""

    def __missing__(self, partition: int) -> _Partition[S]:
        of = self[partition] = _Partition(PartitionLock(partition))
        return of


class ChangelogRecord(NamedTuple):
    """What a flush writes for one key."""

    key: bytes
    value: bytes | None
    headers: Headers


@dataclass(slots=True)
class _Step:
    """Changelog records, and the batches in which they are sent."""

    records: list[ChangelogRecord]
    batches: list[BatchBuilder]


@dataclass(slots=True)
class Snapshot(Generic[S]):
    """What a flush took from a partition: its changed states, and then its own record, ready to be sent."""

    partition: int
    steps: list[_Step]
    changed: dict[bytes, _Entry[S]]


class LiveTable(Generic[S]):
    """The states of a Faust table, live, by partition and key.

    A partition's own record is a state too, under a reserved key: it is written after all other records of a flush
    are acknowledged. Everything but `items`, `own` and `forget` is called under the partition's lock.
    """

    def __init__(
        self,
        app: faust.App,
        name: str,
        codec: StateCodec[S],
        *,
        store: str = "memory://",
        partitions: int | None = None,
    ) -> None:
        table = ChangelogTable(
            app,
            name=name,
            store=store,
            key_type=bytes,
            value_type=bytes,
            partitions=partitions,
            beacon=app.tables.beacon,
        )
        self.faust_table: Any = app.tables.add(table)
        self.changelog_topic: str = table.changelog_topic_name
        self._codec = codec
        self._partitions = _Partitions[S]()
        self._versions: defaultdict[int, dict[bytes, bytes]] = defaultdict(dict)
        self._outdated: defaultdict[int, set[bytes]] = defaultdict(set)

    @property
    def _store(self) -> PartitionStore:
        return cast("PartitionStore", self.faust_table.data)

    # What the agent uses

    def lock(self, partition: int) -> PartitionLock:
        """The lock of a partition: the batch holds it from its first record until its outputs are sent."""
        return self._partitions[partition].lock

    def get(self, partition: int, key: bytes) -> S | None:
        """The live object of `key`, made from the table when it is not live yet; None when there is none."""
        of = self._partitions[partition]
        entry = of.live.get(key)
        if entry is None:
            value = self._store.read(partition, key)
            if value is None:
                return None
            entry = of.live[key] = _Entry(self._decode(value), _offset(value))
        return entry.state

    def put(self, partition: int, key: bytes, state: S, offset: int) -> None:
        """Have `state` written at the next flush; `offset` is the last one of the partition that it has seen."""
        self._change(partition, key, state, offset)

    def remove(self, partition: int, key: bytes, offset: int) -> None:
        """Have a tombstone written at the next flush."""
        self._change(partition, key, None, offset)

    def get_partition(self, partition: int) -> S | None:
        """The partition's own record."""
        return self.get(partition, partition_key(partition))

    def put_partition(self, partition: int, state: S, offset: int) -> None:
        """Have the partition's own record written at the next flush, after all others."""
        self._change(partition, partition_key(partition), state, offset)

    def items(self, partition: int) -> Iterator[tuple[bytes, S]]:
        """Every key and state of a partition, without its own record. An object that is not live stays so."""
        live, own = self._partitions[partition].live, partition_key(partition)
        for key, value in self._store.contents(partition):
            if key != own and key not in live:
                yield key, self._decode(value)
        for key, entry in list(live.items()):
            if key != own and entry.state is not None:
                yield key, entry.state

    # What the transport uses

    def snapshot(self, partition: int, generation: int, producer: AIOKafkaProducer) -> Snapshot[S]:
        """Take what has changed since the last one. RecordRefused when a state is too large for the changelog."""
        of = self._partitions[partition]
        unchanged = self._unchanged_records(partition, of)
        changed, of.changed = of.changed, {}
        records = [self._record(key, entry, generation) for key, entry in changed.items()] + unchanged
        own_key = partition_key(partition)
        steps = [r for r in records if r.key != own_key], [r for r in records if r.key == own_key]
        return Snapshot(
            partition, [_Step(step, list(record_batches(producer, step))) for step in steps if step], changed
        )

    def put_back(self, snapshot: Snapshot[S]) -> None:
        """Undo a snapshot that was not written: the next one takes the same states, as they are then."""
        of = self._partitions[snapshot.partition]
        of.changed = snapshot.changed | of.changed

    async def write(self, snapshot: Snapshot[S], producer: AIOKafkaProducer) -> None:
        """Write a snapshot, and wait until the broker has all of it."""
        for step in snapshot.steps:
            await self._append(snapshot.partition, step, producer)
        of = self._partitions[snapshot.partition]
        for key, entry in snapshot.changed.items():
            if entry.state is None and of.live.get(key) is entry and key not in of.changed:
                del of.live[key]

    def restore(self, partition: int, records: Sequence[ConsumerRecord]) -> None:
        """Apply consecutive changelog records."""
        versions, outdated = self._versions[partition], self._outdated[partition]
        values: dict[bytes, bytes | None] = {}
        for record in records:
            key: bytes = record.key
            version = _version(record)
            known = versions.get(key)
            if known is None:
                stored = self._store.read(partition, key)
                known = UNKNOWN if stored is None else stored[: STATE_HEADER.size]
            if version >= known:
                values[key], versions[key] = record.value, version
                outdated.discard(key)
            else:
                versions[key] = known
                outdated.add(key)
        if records:
            self._store.write(partition, values, records[-1].offset)

    def own(self, partition: int) -> None:
        """Begin with a partition: its restore is complete."""
        of = self._partitions[partition] = _Partition(PartitionLock(partition))
        now, outdated = time.monotonic(), self._outdated.pop(partition, set())
        for key, _ in self._store.contents(partition):
            of.written[key] = now
        for key in outdated & of.written.keys():
            of.written[key] = -float("inf")
            of.written.move_to_end(key, last=False)
        self._versions.pop(partition, None)

    def forget(self, partition: int) -> None:
        """Drop what is live of a partition, changed or not: it belongs to somebody else, or is read again."""
        self._partitions.pop(partition, None)
        self._versions.pop(partition, None)
        self._outdated.pop(partition, None)

    # Inside

    def _change(self, partition: int, key: bytes, state: S | None, offset: int) -> None:
        of = self._partitions[partition]
        entry = of.live.get(key)
        if entry is None:
            entry = of.live[key] = _Entry(state, offset)
        else:
            entry.state, entry.offset = state, offset
        of.changed[key] = entry

    def _record(self, key: bytes, entry: _Entry[S], generation: int) -> ChangelogRecord:
        version = STATE_HEADER.pack(max(entry.offset, 0), generation)
        if entry.state is None:
            return ChangelogRecord(key, None, [(TOMBSTONE_HEADER, version)])
        value = version + self._codec.encode(entry.state)
        if len(value) > MAX_STATE_BYTES:
            raise RecordRefused(f"{self.changelog_topic}: the state of {key!r} has {len(value)} bytes, too many")
        return ChangelogRecord(key, value, ())

    def _unchanged_records(self, partition: int, of: _Partition[S]) -> list[ChangelogRecord]:
        """What must be written again although it has not changed: see the module's docstring."""
        records: list[ChangelogRecord] = []
        due = time.monotonic() - REWRITE_AFTER_S
        for key, written in of.written.items():
            if written > due or len(records) == REWRITES_PER_FLUSH:
                break
            value = self._store.read(partition, key)
            if value is not None and key not in of.changed:
                records.append(ChangelogRecord(key, value, ()))
        return records

    async def _append(self, partition: int, step: _Step, producer: AIOKafkaProducer) -> None:
        sent = [await producer.send_batch(batch, self.changelog_topic, partition=partition) for batch in step.batches]
        acknowledged = await asyncio.gather(*sent)
        changelog_offset = acknowledged[-1].offset + step.batches[-1].record_count() - 1
        self._store.write(partition, {record.key: record.value for record in step.records}, changelog_offset)
        written, now = self._partitions[partition].written, time.monotonic()
        for record in step.records:
            written.pop(record.key, None)
            if record.value is not None:
                written[record.key] = now

    def _decode(self, value: bytes) -> S:
        return self._codec.decode(value[STATE_HEADER.size :])


def partition_key(partition: int) -> bytes:
    """The reserved key of a partition's own record; no other key begins with a zero byte."""
    return RESERVED + b"partition:%d" % partition


def record_batches(producer: AIOKafkaProducer, records: Iterable[Any]) -> Iterator[BatchBuilder]:
    """Records (key, value, headers) in as few of the producer's batches as they fit in; a large one has its own."""
    batch = producer.create_batch()
    for key, value, headers in records:
        if batch.append(key=key, value=value, headers=list(headers), timestamp=None) is None:
            yield batch
            batch = producer.create_batch()
            if batch.append(key=key, value=value, headers=list(headers), timestamp=None) is None:
                raise RecordRefused(f"a record with key {key!r} does not fit into an empty batch")
    if batch.record_count():
        yield batch


def _offset(value: bytes) -> int:
    offset: int = STATE_HEADER.unpack_from(value)[0]
    return offset


def _version(record: ConsumerRecord) -> bytes:
    """The version of a changelog record, as comparable bytes."""
    if record.value is None:
        # A tombstone of somebody else's hand has no version: it is meant, so it counts.
        return next((value for name, value in record.headers if name == TOMBSTONE_HEADER), b"\xff")
    if len(record.value) < STATE_HEADER.size:
        raise UndecodableRecord(
            f"changelog {record.topic} partition {record.partition} offset {record.offset}: no version in front"
        )
    return bytes(record.value[: STATE_HEADER.size])
