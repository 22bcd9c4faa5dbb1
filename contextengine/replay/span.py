"""Which part of the events topic is meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from contextengine.errors import ConfigurationError
from contextengine.replay.log import Bounds
from contextengine.topics.catalogue import partition_for

if TYPE_CHECKING:
    from aiokafka import TopicPartition

    from contextengine.replay.log import LogReader


@dataclass(frozen=True, slots=True)
class Edge:
    """Where a part begins, or just before which it ends: an offset, the same in each partition, or a time (Unix ms)."""

    offset: int | None = None
    time_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """A part of the events topic, all of it by default. `partition` and `session_id` ask for these only."""

    since: Edge = Edge()
    until: Edge = Edge()
    partition: int | None = None
    session_id: str | None = None

    def partitions(self, count: int) -> list[int]:
        """Which of so many partitions are meant."""
        if self.session_id is not None:
            return [partition_for(self.session_id.encode(), count)]
        if self.partition is None:
            return list(range(count))
        if self.partition >= count:
            raise ConfigurationError(f"there is no partition {self.partition}: there are {count}, from 0 on")
        return [self.partition]

    async def bounds(self, reader: LogReader, partition: TopicPartition, log: Bounds) -> Bounds:
        """The bounds of what is meant in a partition that has those of `log`."""
        start = await _offset(self.since, reader, partition, log.start, log.end)
        end = await _offset(self.until, reader, partition, log.end, log.end)
        return Bounds(max(log.start, min(start, log.end)), min(end, log.end))


async def _offset(edge: Edge, reader: LogReader, partition: TopicPartition, default: int, end: int) -> int:
    if edge.offset is not None:
        return edge.offset
    if edge.time_ms is None:
        return default
    found = await reader.offset_at(partition, edge.time_ms)
    return end if found is None else found
