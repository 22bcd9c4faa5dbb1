"""What the sessions changelog says of a partition: where a replay of a range can begin, and what it must come to.

For each key the greatest version counts (last applied offset, then the owner's generation), of equal ones the last, as
in a restore. Kafka compacts the changelog, an hour after a record was written at the earliest, down to the last record
of a key: of a range that begins earlier, the state before it may be gone. A session then begins with the first state
that is left.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import msgspec

from contextengine.errors import UndecodableRecord
from contextengine.schemas.session import (
    RESERVED,
    STATE_HEADER,
    STATE_VERSION,
    TOMBSTONE_HEADER,
    Partition,
    Session,
    load_state,
)

if TYPE_CHECKING:
    from aiokafka import ConsumerRecord


class _Shape(msgspec.Struct):
    version: int = STATE_VERSION


_shape: Final = msgspec.json.Decoder(_Shape).decode


class Version(NamedTuple):
    """A state as it was written; `body` None is a tombstone."""

    offset: int
    generation: int
    body: bytes | None


@dataclass(slots=True)
class States:
    """Of each key of one partition: the last state before `start`, the first one from there on, and the newest."""

    start: int
    before: dict[bytes, Version] = field(default_factory=dict)
    first: dict[bytes, Version] = field(default_factory=dict)
    newest: dict[bytes, Version] = field(default_factory=dict)
    partition_before: Partition | None = None
    partition_first: Partition | None = None
    partition_newest: Partition | None = None
    oldest_shape: int = STATE_VERSION
    """The least `version` that the partition's records have."""
    strange: list[tuple[str, int, str]] = field(default_factory=list)
    """Records that are no states, by topic and offset."""

    async def read(self, records: AsyncIterator[ConsumerRecord]) -> None:
        """Take a partition of the changelog."""
        async for record in records:
            try:
                if not (record.key or b"").startswith(RESERVED):
                    self._add(record.key, _version(record))
                elif record.value is not None:
                    body = record.value[STATE_HEADER.size :]
                    self._add_partition(cast("Partition", load_state(body)))
                    self.oldest_shape = min(self.oldest_shape, _shape(body).version)
            except (UndecodableRecord, struct.error) as error:
                self.strange.append((record.topic, record.offset, str(error)))

    @property
    def floor(self) -> int:
        """Up to which offset everything has been judged, and is durable; -1 before anything has."""
        return self.partition_newest.floor if self.partition_newest is not None else -1

    def rules_told(self) -> list[tuple[int, str]]:
        """Which rule set was in force at which offset, as the partition's records say."""
        records = (self.partition_before, self.partition_first)
        return [(record.floor + 1, record.rules_hash) for record in records if record is not None]

    def session_before(self, key: bytes) -> Session | None:
        """The state of a session just before the range, None when there was none or nobody knows.

        UndecodableRecord when it is none, here and below.
        """
        return _session(self.before.get(key))

    def session_first(self, key: bytes) -> Session | None:
        """The first state of a session within the range, None when there is none."""
        return _session(self.first.get(key))

    def _add(self, key: bytes, version: Version) -> None:
        _keep_greater(self.newest, key, version)
        if version.offset < self.start:
            _keep_greater(self.before, key, version)
        elif key not in self.first or version[:2] < self.first[key][:2]:
            self.first[key] = version

    def _add_partition(self, partition: Partition) -> None:
        if self.partition_newest is None or partition.floor >= self.partition_newest.floor:
            self.partition_newest = partition
        if partition.floor < self.start:
            if self.partition_before is None or partition.floor >= self.partition_before.floor:
                self.partition_before = partition
        elif self.partition_first is None or partition.floor < self.partition_first.floor:
            self.partition_first = partition


def _keep_greater(versions: dict[bytes, Version], key: bytes, version: Version) -> None:
    known = versions.get(key)
    if known is None or version[:2] >= known[:2]:
        versions[key] = version


def _session(version: Version | None) -> Session | None:
    return None if version is None or version.body is None else cast("Session", load_state(version.body))


def _version(record: ConsumerRecord) -> Version:
    if record.value is not None:
        offset, generation = STATE_HEADER.unpack_from(record.value)
        return Version(offset, generation, record.value[STATE_HEADER.size :])
    told: Any = next((value for name, value in record.headers if name == TOMBSTONE_HEADER), None)
    if told is None:  # by somebody else's hand: it is meant, so it counts
        return Version(2**63 - 1, 0, None)
    offset, generation = STATE_HEADER.unpack(told)
    return Version(offset, generation, None)
