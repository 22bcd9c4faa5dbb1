"""The timers of the sessions of this worker's partitions: when one is due, a Tick goes to the events topic.

A timer is session state; here it is only waited for. So a timer may be armed twice, armed again after a restore, or
have been moved since: what is due is checked against the state first, and a Tick too many changes nothing.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from contextengine.delivery.broker_time import BrokerClock
from contextengine.monitoring.clock import ClockWatch
from contextengine.schemas.events import Tick

MARGIN_MS = 2
"""How much later than due a Tick is published, so that its append time is hardly ever too early."""
LOOK_AGAIN_MS = 60_000
AGAIN_MS = 1_000
"""How long to wait before a Tick that the broker did not take is published again."""


class PublishTick(Protocol):
    """How a Tick gets into the log."""

    async def __call__(self, partition: int, tick: Tick) -> int:
        """Append it to this partition of the events topic; its append time (ms), once acknowledged."""


class Timers:
    """Waits for the timers of all sessions that this worker owns."""

    def __init__(self, publish: PublishTick, is_armed: Callable[[int, str, str, int], bool]) -> None:
        self._publish = publish
        self._is_armed = is_armed
        self._due: dict[int, list[tuple[int, str, str]]] = {}
        self._clocks: dict[int, BrokerClock] = {}
        self._clock_watch = ClockWatch()
        self._moved = asyncio.Event()
        self._publishing: set[asyncio.Task[None]] = set()

    def own(self, partition: int) -> None:
        """Wait for this partition's timers from now on."""
        self._due[partition] = []
        self._clocks[partition] = BrokerClock(time.time() * 1_000, time.monotonic() * 1_000)

    def disown(self, partition: int) -> None:
        """Another worker waits for this partition's timers."""
        self._due.pop(partition, None)
        self._clocks.pop(partition, None)

    def learn(self, partition: int, append_ms: int) -> None:
        """The partition's broker has just appended a record at this time: each has a clock of its own."""
        clock = self._clocks.get(partition)
        if clock is not None:
            clock.learn(append_ms, time.monotonic() * 1_000)
            self._clock_watch.compare(self.now_ms(partition))

    def now_ms(self, partition: int) -> int:
        """The time of the partition's broker; this machine's, when another worker owns the partition."""
        clock = self._clocks.get(partition)
        return time.time_ns() // 1_000_000 if clock is None else clock.now_ms(time.monotonic() * 1_000)

    def arm(self, partition: int, session_id: str, timer: str, due_ms: int) -> None:
        """Wait for a timer; one of a partition that is not owned is ignored."""
        due = self._due.get(partition)
        if due is None:
            return
        heapq.heappush(due, (due_ms, session_id, timer))
        if due[0][0] == due_ms:
            self._moved.set()

    async def run(self) -> None:
        """Publish a Tick for each timer when it is due, until cancelled. No Tick waits for another."""
        try:
            while True:
                await self._publish_due()
        finally:
            for publishing in self._publishing:
                publishing.cancel()

    async def _publish_due(self) -> None:
        self._moved.clear()
        nearest_ms = LOOK_AGAIN_MS
        for partition, due in list(self._due.items()):
            now_ms = self.now_ms(partition) - MARGIN_MS
            for due_ms, session_id, timer in _take(due, now_ms):
                if self._is_armed(partition, session_id, timer, due_ms):
                    publishing = asyncio.create_task(self._tick(partition, session_id, timer, due_ms))
                    self._publishing.add(publishing)
                    publishing.add_done_callback(self._publishing.discard)
            if due:
                nearest_ms = min(nearest_ms, due[0][0] - now_ms)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._moved.wait(), max(1, nearest_ms) / 1_000)

    async def _tick(self, partition: int, session_id: str, timer: str, due_ms: int) -> None:
        try:
            tick = Tick(session_id=session_id, timer=timer, due_ms=due_ms)
            self.learn(partition, await self._publish(partition, tick))
        except Exception:  # noqa: BLE001 - whatever kept the broker from taking it, the timer is still due
            await asyncio.sleep(AGAIN_MS / 1_000)
            self.arm(partition, session_id, timer, due_ms)


def _take(due: list[tuple[int, str, str]], now_ms: int) -> list[tuple[int, str, str]]:
    """Remove from the heap what is due, each timer once."""
    taken: dict[tuple[int, str, str], None] = {}
    while due and due[0][0] <= now_ms:
        taken[heapq.heappop(due)] = None
    return list(taken)
