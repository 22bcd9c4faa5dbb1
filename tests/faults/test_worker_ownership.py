"""Who owns a partition, when that is in doubt: sleepers, doubles, comings and goings. No stale decision survives."""

from __future__ import annotations

import asyncio
from collections import Counter

import msgspec
import pytest
from broker_log import read_raw, until
from fleet import Fleet, verify

from contextengine.schemas.codec import decode
from contextengine.schemas.events import Tick
from contextengine.schemas.session import STATE_HEADER, STATE_VERSION
from contextengine.topics.catalogue import catalogue

SLEEP_BEFORE_STATES = """
import os, signal, pathlib
from contextengine.agents.owned_partitions import OwnedPartitions

flush, flushes = OwnedPartitions.flush, 0

async def flush_asleep(self, acked, producer, generation, may_write):
    global flushes
    flushes += any(acked.values())
    asked = 0
    def ask():
        nonlocal asked
        asked += 1  # before anything, after the outputs, after the states
        may = may_write()
        if flushes == 5 and asked == 2:
            pathlib.Path({asleep!r}).touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        return may
    return await flush(self, acked, producer, generation, ask)

OwnedPartitions.flush = flush_asleep
"""

TICK_TWICE = """
from contextengine.agents.timers import Timers

tick = Timers._tick

async def tick_twice(self, *timer):
    await tick(self, *timer)
    await tick(self, *timer)

Timers._tick = tick_twice
"""


async def undone(settings):
    """How many changelog records are behind a greater one of their key, and how many keys end in such a one."""
    greatest, last, behind = {}, {}, 0
    for record in await read_raw(settings, catalogue(settings).sessions_changelog):
        if record.value is not None:
            version = record.value[: STATE_HEADER.size]
            behind += version < greatest.get(record.key, b"")
            greatest[record.key] = max(version, greatest.get(record.key, b""))
            last[record.key] = version
    return behind, sum(last[key] < version for key, version in greatest.items())


async def test_a_worker_that_slept_through_the_loss_of_its_partitions_undoes_no_newer_state(
    kafka, tmp_path, base, figures
):
    """It falls asleep when it has just made sure that it may write its states, and writes them when it wakes up.

    Then all workers are killed, so that everything is restored from what the changelog holds.
    """
    asleep = tmp_path / "asleep"
    async with Fleet(kafka, tmp_path, patches=[SLEEP_BEFORE_STATES.format(asleep=str(asleep))]) as fleet:
        async with fleet.under(base) as talk:
            await until(asleep.exists, within_s=40)
            await asyncio.sleep(fleet.settings.session_timeout_ms / 1_000 + 6)
            fleet.workers[0].thaw()
            await asyncio.sleep(3)
            behind, _ = await undone(fleet.settings)
            for worker in fleet.workers:
                worker.patch("")
                worker.kill()
            for worker in fleet.workers:
                worker.launch()
            await asyncio.gather(*(worker.ready() for worker in fleet.workers))
        proof = await verify(fleet, talk)
    figures |= {"stale states written": behind, "attempts twice": proof.attempt_copies}
    assert behind > 0, "the sleeper has written nothing stale: the test tests nothing"


@pytest.mark.full_faults
async def test_a_tick_that_two_owners_publish_acts_once(kafka, tmp_path, base, figures):
    """Every Tick is in the log twice, as when two workers hold themselves for the owner."""
    async with Fleet(kafka, tmp_path, workers=2, patches=[TICK_TWICE] * 2) as fleet:
        async with fleet.under(base) as talk:
            pass
        proof = await verify(fleet, talk)
        ticks = [
            record.value
            for record in await read_raw(fleet.settings, catalogue(fleet.settings).events)
            if isinstance(decode(record.value), Tick)
        ]
    figures |= {"ticks": len(set(ticks)), "of them twice": len(ticks) - len(set(ticks)), "injections": proof.injections}
    assert len(ticks) >= 2 * len(set(ticks)) > 0


@pytest.mark.parametrize("leaves", ["in order", "killed"])
@pytest.mark.full_faults
async def test_workers_that_come_and_go_every_three_seconds_decide_nothing_twice(
    kafka, tmp_path, base, figures, leaves
):
    """For a minute and a half a worker joins or leaves, so that the group hardly ever rests."""
    async with Fleet(kafka, tmp_path) as fleet:
        async with fleet.under(base) as talk:
            spare = fleet.add("worker")
            for number in range(30):
                changing = [spare, *fleet.workers[:3]][number // 2 % 4]
                if not changing.runs:
                    changing.launch()
                elif leaves == "killed":
                    changing.kill()
                else:
                    changing.popen.terminate()
                await asyncio.sleep(3)
            for worker in fleet.workers:
                if not worker.runs:
                    worker.launch()
        proof = await verify(fleet, talk, within_s=90)
    figures |= {"injections": proof.injections, "attempts twice": proof.attempt_copies}


@pytest.mark.full_faults
async def test_workers_are_replaced_one_by_one_by_those_that_write_the_next_state_version(
    kafka, tmp_path, base, figures
):
    """Workers that write the version before make room, under load, for workers that write the newest."""
    async with Fleet(kafka, tmp_path, state_version=STATE_VERSION - 1) as fleet:
        async with fleet.under(base) as talk:
            await asyncio.sleep(3)
            for worker in fleet.workers:
                assert await worker.stop() == 0
                await worker.start(state_version=str(STATE_VERSION))
                await asyncio.sleep(1)
        proof = await verify(fleet, talk)
        versions = Counter(
            msgspec.json.decode(record.value[STATE_HEADER.size :])["version"]
            for record in await read_raw(fleet.settings, catalogue(fleet.settings).sessions_changelog)
            if record.value is not None
        )
    figures |= {"injections": proof.injections, "attempts twice": proof.attempt_copies} | {
        f"states of version {version}": count for version, count in sorted(versions.items())
    }
    assert versions.keys() == {STATE_VERSION - 1, STATE_VERSION}
