"""The examples run as they stand, against a broker and a worker."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from pathlib import Path

import pytest
from broker_log import read, until

from contextengine.app import build_app, run_worker
from contextengine.schemas.events import SessionEnded
from contextengine.schemas.injection import Outcome
from contextengine.topics import admin
from contextengine.topics.catalogue import catalogue

EXAMPLES = Path(__file__).parents[1] / "examples"
RULES = "rules: [{name: hotel, when: {keyword: hotel}, inject: {information: {cancellation: until six}}}]"


@pytest.fixture
async def running_worker(settings):
    await admin.apply(settings, uuid.uuid4().hex)
    stop, worker = asyncio.Event(), build_app(settings)
    running = asyncio.create_task(run_worker(settings, RULES, stop, worker))
    await until(lambda: worker.health.ready()["ready"] or running.done())
    yield
    stop.set()
    await running


async def run(example, settings):
    """What an example prints."""
    environ = os.environ | {
        "CONTEXTENGINE_PREFIX": settings.prefix,
        "CONTEXTENGINE_EMBEDDED": str(settings.embedded),
        "CONTEXTENGINE_PARTITIONS": str(settings.partitions),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLES / example), settings.broker), env=environ, stdout=asyncio.subprocess.PIPE
    )
    told, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    return told.decode()


@pytest.mark.usefixtures("running_worker")
async def test_the_publishing_example_publishes_a_whole_call(settings):
    await run("publish_events.py", settings)
    assert any(isinstance(event, SessionEnded) for event in await read(settings, catalogue(settings).events))


@pytest.mark.usefixtures("running_worker")
async def test_the_hand_off_example_takes_an_injection_and_reports_it(settings):
    assert "cancellation: until six" in await run("hand_off.py", settings)

    async def outcomes():
        return [result.outcome for result in await read(settings, catalogue(settings).results)]

    assert await until(outcomes) == [Outcome.DELIVERED]


@pytest.mark.parametrize("example", ["publish_events.py", "hand_off.py"])
async def test_without_a_broker_an_example_says_so_in_a_line(example):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLES / example), "127.0.0.1:1"), stderr=asyncio.subprocess.PIPE
    )
    _, told = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1
    assert b"broker" in told.splitlines()[-1]
    assert b"Traceback" not in told
