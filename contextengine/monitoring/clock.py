"""Says when this machine's clock is not the broker's.

Deadlines and timers go by the broker's time, so a wrong clock breaks none of them. But people read logs and dashboards
by it, and a VoiceEngine on the same machine says by it when things happened.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from contextengine.monitoring.metrics import CLOCK_AHEAD_SECONDS

log = logging.getLogger(__name__)

SKEW_MS: Final = 5_000
"""How far this machine's clock may be from the broker's before it is said."""


class ClockWatch:
    """Compares this machine's clock with the broker's; keeps the metric, and tells the log once when they differ."""

    def __init__(self) -> None:
        self._told = False

    def compare(self, broker_ms: int) -> None:
        """The broker's clock shows `broker_ms` now."""
        ahead_ms = time.time_ns() // 1_000_000 - broker_ms
        CLOCK_AHEAD_SECONDS.set(ahead_ms / 1_000)
        if abs(ahead_ms) > SKEW_MS and not self._told:
            self._told = True
            log.warning("this machine's clock is %d ms ahead of the broker's; deadlines go by the broker's", ahead_ms)
