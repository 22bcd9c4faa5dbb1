"""A machine whose clock is not the broker's is told of it."""

from __future__ import annotations

import logging
import time

from contextengine.monitoring.clock import ClockWatch
from contextengine.monitoring.metrics import CLOCK_AHEAD_SECONDS


def test_a_clock_that_is_far_from_the_brokers_is_told_once(caplog):
    """The metric follows it; the log hears of it when it is more than five seconds off, ahead or behind."""
    watch, now_ms = ClockWatch(), time.time_ns() // 1_000_000
    with caplog.at_level(logging.WARNING):
        watch.compare(now_ms - 1_000)
        assert caplog.messages == []
        watch.compare(now_ms + 3_600_000)
        watch.compare(now_ms + 3_600_000)
    assert len(caplog.messages) == 1
    assert -3_600 <= CLOCK_AHEAD_SECONDS._value.get() < -3_590
