"""A machine whose clock is an hour wrong: it is told, and nothing waits for the wrong hour."""

from __future__ import annotations

from collections import defaultdict

import pytest
from broker_log import read_raw
from fleet import RULES, Fleet, verify

from contextengine.adapters.simulators.openai_realtime import Fault, FaultKind
from contextengine.schemas.codec import decode
from contextengine.schemas.events import RetryDue, Tick
from contextengine.topics.catalogue import catalogue

WRONG = """
import time

HOURS = {hours}
now, now_ns = time.time, time.time_ns
time.time = lambda: now() + HOURS * 3_600
time.time_ns = lambda: now_ns() + HOURS * 3_600_000_000_000
"""
RETRIED = RULES.replace(
    "timeout: 10 s", "timeout: 10 s\n    on_failure: {strategy: retry_async, max_attempts: 5, delay: 1 s}"
)


async def late_ms(fleet):
    """How late each Tick and each retry came: never early, or this would be negative."""
    topics = catalogue(fleet.settings)
    ticks, retries, asked = [], [], {}
    for record in await read_raw(fleet.settings, topics.retry_1s):
        retry = decode(record.value)
        asked.setdefault((retry.injection_id, retry.attempt), []).append(record.timestamp)
    came = defaultdict(list)
    for record in await read_raw(fleet.settings, topics.events):
        event = decode(record.value)
        if isinstance(event, Tick):
            ticks.append(record.timestamp - event.due_ms)
        elif isinstance(event, RetryDue):
            came[event.injection_id, event.attempt].append(record.timestamp)
    for name, times in came.items():
        retries += [at_ms - asked_ms - 1_000 for at_ms, asked_ms in zip(times, asked[name], strict=True)]
    return ticks, retries


@pytest.mark.full_faults
@pytest.mark.parametrize("hours", [1, -1])
async def test_a_clock_that_is_an_hour_wrong_is_told_and_nothing_waits_for_it(
    kafka, tmp_path, base, figures, hours, full
):
    """A worker and a delivery consumer of two have the wrong clock; a tenth of the attempts is refused at first."""
    async with Fleet(kafka, tmp_path, workers=1, delivers=1, rules=RETRIED) as fleet:
        wrong = [fleet.add("worker"), fleet.add("deliver")]
        for process in wrong:
            process.patch(WRONG.format(hours=hours))
            await process.start()
        fleet.provider.fail_next(Fault(FaultKind.REFUSE), times=200 if full else 40)
        async with fleet.under(base) as talk:
            pass
        proof = await verify(fleet, talk)
        said = [process.said for process in fleet.workers + fleet.delivers]
        ticks, retries = await late_ms(fleet)
    figures |= {
        "injections": proof.injections,
        "ticks": len(ticks),
        "latest ms": max(ticks),
        "retries": len(retries),
        "their latest ms": max(retries),
    }
    flagged = ["ms ahead of the broker's" in log for log in said]
    assert flagged == [False, True, False, True]
    assert 0 <= min(ticks) <= max(ticks) <= 1_000
    assert 0 <= min(retries) <= max(retries) <= 1_000
