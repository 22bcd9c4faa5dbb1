"""Workers that are killed under load, at any time and at the worst times: nothing lost, one outcome, states exact."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Iterable

import pytest
from broker_log import read_raw, until
from fleet import Fleet, Load, verify

from contextengine.schemas.codec import decode
from contextengine.schemas.events import PartitionAssigned
from contextengine.topics.catalogue import catalogue

DIE_IN_A_FLUSH = """
import os, signal
from contextengine.agents import owned_partitions
from contextengine.agents.owned_partitions import OwnedPartitions
from contextengine.tables.live import LiveTable

STEP = {step!r}
flush, append, acknowledged, attempts = OwnedPartitions.flush, LiveTable._append, owned_partitions.acknowledged, 0

async def acknowledged_and_counted(sent):
    global attempts
    attempts += sum(output.records for output in sent if output.topic.endswith(".injections"))
    await acknowledged(sent)

async def flush_or_die(self, acked, producer, generation, may_write):
    global attempts
    asked = attempts = 0
    def ask():
        nonlocal asked
        asked += 1  # before anything, after the outputs, after the states
        if attempts and asked == {{"outputs and states": 2, "states and commit": 3}}.get(STEP):
            os.kill(os.getpid(), signal.SIGKILL)
        return may_write()
    return await flush(self, acked, producer, generation, ask)

async def append_or_die(self, partition, records, producer):
    if attempts and STEP == "states and the partition's own" and records and records[0].key.startswith(b"\\0"):
        os.kill(os.getpid(), signal.SIGKILL)
    await append(self, partition, records, producer)

owned_partitions.acknowledged = acknowledged_and_counted
OwnedPartitions.flush, LiveTable._append = flush_or_die, append_or_die
"""


async def takeovers_s(fleet: Fleet, kills_ms: Iterable[int]) -> list[float]:
    """After each kill, how long it took until every partition had been restored and marked by an owner."""
    marks: dict[int, list[int]] = {number: [] for number in range(fleet.settings.partitions)}
    for record in await read_raw(fleet.settings, catalogue(fleet.settings).events):
        if isinstance(decode(record.value), PartitionAssigned):
            marks[record.partition].append(record.timestamp)
    return [
        max(next(at_ms for at_ms in of if at_ms >= kill_ms) - kill_ms for of in marks.values()) / 1_000
        for kill_ms in kills_ms
    ]


@pytest.mark.full_faults
async def test_a_worker_that_is_killed_now_and_then_is_replaced_in_time(kafka, tmp_path, base, full, figures):
    """Its partitions are taken over when its session has run out, and few attempts are made twice."""
    kills, apart_s = (10, 15) if full else (1, 4)
    kills_ms = []
    async with Fleet(kafka, tmp_path) as fleet:
        async with fleet.under(base) as talk:
            await asyncio.sleep(4)
            for number in range(kills):
                victim = fleet.workers[number % len(fleet.workers)]
                victim.kill()
                kills_ms.append(time.time_ns() // 1_000_000)
                victim.launch()
                await asyncio.sleep(apart_s)
        proof = await verify(fleet, talk)
        took_s = await takeovers_s(fleet, kills_ms)
    duplicates = proof.attempt_copies / proof.injections
    figures |= {
        "kills": kills,
        "injections": proof.injections,
        "attempts twice": f"{duplicates:.2%}",
        "takeover median s": round(statistics.median(took_s), 1),
        "takeover max s": round(max(took_s), 1),
    }
    assert max(took_s) <= 15
    assert statistics.median(took_s) <= fleet.settings.session_timeout_ms / 1_000 + 2
    assert not full or duplicates <= 0.03


@pytest.mark.full_faults
async def test_a_hail_of_kills_is_worked_off_within_a_minute(kafka, tmp_path, base, figures):
    """Thirty kills, a tenth of a second to a second apart: most of them hit a worker that is just starting."""
    chance = random.Random(20260101)  # noqa: S311
    async with Fleet(kafka, tmp_path) as fleet:
        async with fleet.under(Load(base.sessions, base.events_per_s, 0)) as talk:
            await asyncio.sleep(5)
            for number in range(30):
                victim = fleet.workers[number % len(fleet.workers)]
                victim.kill()
                victim.launch()
                await asyncio.sleep(chance.uniform(0.1, 1))
        drained_s = await fleet.drained(60)
        proof = await verify(fleet, talk)
    figures |= {"injections": proof.injections, "attempts twice": proof.attempt_copies, "drained s": round(drained_s)}


async def test_workers_killed_between_the_steps_of_a_commit_repeat_and_lose_nothing(kafka, tmp_path, base, figures):
    """One dies with its outputs written and not its states, one between states, one with all but its offsets.

    Each in its first flush that has attempts in it, and then all of them begin again.
    """
    steps = ("outputs and states", "states and the partition's own", "states and commit")
    patches = [DIE_IN_A_FLUSH.format(step=step) for step in steps]
    async with Fleet(kafka, tmp_path, patches=patches) as fleet:
        async with fleet.under(base) as talk:
            await until(lambda: not any(worker.runs for worker in fleet.workers), within_s=30)
            for worker in fleet.workers:
                worker.patch("")
                worker.launch()
            await asyncio.gather(*(worker.ready() for worker in fleet.workers))
        proof = await verify(fleet, talk)
    figures |= {"injections": proof.injections, "attempts twice": proof.attempt_copies}
    assert proof.attempt_copies > 0
