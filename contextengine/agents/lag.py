"""How far this worker is behind, as Prometheus asks for it: by partition, in seconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, cast

import faust
from faust.types import TP

from contextengine.monitoring.metrics import CONSUMER_LAG_SECONDS, OLDEST_UNCOMMITTED_SECONDS


class PartitionLag:
    """What has been judged and what has been committed of each partition that is owned.

    `now_ms` tells the time of a partition's broker.
    """

    def __init__(self, app: faust.App, topic: str, now_ms: Callable[[int], int]) -> None:
        self._app = app
        self._now_ms = now_ms
        self._topic = topic
        self._judged: dict[int, deque[tuple[int, int]]] = {}
        self._last: dict[int, tuple[int, int]] = {}

    def watch(self, partition: int) -> None:
        """Show this partition's lag from now on."""
        self._judged[partition] = deque()
        number = str(partition)
        CONSUMER_LAG_SECONDS.labels(self._topic, number).set_function(lambda: self.behind_s(partition))
        OLDEST_UNCOMMITTED_SECONDS.labels(self._topic, number).set_function(lambda: self.uncommitted_s(partition))

    def leave(self, partition: int) -> None:
        """The partition goes to somebody else."""
        if self._judged.pop(partition, None) is not None:
            self._last.pop(partition, None)
            CONSUMER_LAG_SECONDS.remove(self._topic, str(partition))
            OLDEST_UNCOMMITTED_SECONDS.remove(self._topic, str(partition))

    def judged(self, partition: int, last_offset: int, first_append_ms: int, last_append_ms: int) -> None:
        """A batch has been judged."""
        batches = self._judged.get(partition)
        if batches is not None:
            self._drop_committed(partition, batches)
            batches.append((last_offset, first_append_ms))
            self._last[partition] = last_offset, last_append_ms

    def behind_s(self, partition: int) -> float:
        """How long ago the last judged record was appended, while there are newer ones; else 0."""
        last = self._last.get(partition)
        end = self._app.consumer.highwater(TP(self._topic, partition))
        if last is None or end is None or last[0] + 1 >= end:
            return 0.0
        return max(0, self._now_ms(partition) - last[1]) / 1_000

    def uncommitted_s(self, partition: int) -> float:
        """How long ago the oldest judged record was appended whose offset is not committed; else 0."""
        batches = self._judged.get(partition)
        if not batches:
            return 0.0
        self._drop_committed(partition, batches)
        return max(0, self._now_ms(partition) - batches[0][1]) / 1_000 if batches else 0.0

    def _drop_committed(self, partition: int, batches: deque[tuple[int, int]]) -> None:
        committed = cast("Any", self._app.consumer)._committed_offset.get(TP(self._topic, partition)) or 0  # noqa: SLF001
        while batches and batches[0][0] < committed:
            batches.popleft()
