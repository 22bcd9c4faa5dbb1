"""The broker's time, as far as this process can know it.

Deadlines and delays are broker times, and this machine's wall clock may be an hour off. What is known: a record that
was seen at a monotonic time had been appended by then, so the broker's clock showed at least its append time. Between
such observations the monotonic clock goes on. So `now_ms` never runs ahead of the broker, and lags behind it by the
shortest way that a record took.
"""

from __future__ import annotations

from typing import Final

DRIFT: Final = 200e-6
"""How much faster than the broker's clock this machine's may run: 200 ppm is four times what NTP corrects."""


class BrokerClock:
    """Broker time from append times; before the first one, the wall clock that it is made with.

    Monotonic times come in as arguments, in milliseconds.
    """

    def __init__(self, wall_ms: float, monotonic_ms: float) -> None:
        self._offset_ms = wall_ms - monotonic_ms
        self._learned_ms: float | None = None

    def learn(self, append_ms: float, monotonic_ms: float) -> None:
        """At `monotonic_ms` a record was there whose append time, written by the broker, is `append_ms`."""
        seen = append_ms - monotonic_ms
        if self._learned_ms is None:
            self._offset_ms = seen
        else:
            drifted = self._offset_ms - (monotonic_ms - self._learned_ms) * DRIFT
            self._offset_ms = max(drifted, seen)
        self._learned_ms = monotonic_ms

    def now_ms(self, monotonic_ms: float) -> int:
        """The broker's time at `monotonic_ms`, never ahead of its own clock."""
        return int(monotonic_ms + self._offset_ms)
