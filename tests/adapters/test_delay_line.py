"""A delay line holds every retry for its length: never less, and hardly more."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from broker_log import read_raw, until, write
from delivering import FakeAdapter, delivering, now_ms

from contextengine.schemas.codec import decode
from contextengine.schemas.events import RetryDue
from contextengine.schemas.injection import RetryRequested
from contextengine.topics import admin
from contextengine.topics.catalogue import catalogue, partition_for

pytestmark = pytest.mark.broker


def retry(session_id, name, attempt=2):
    return RetryRequested(session_id=session_id, injection_id=name, attempt=attempt, due_ms=now_ms() + 5_000)


async def due(settings, count):
    """The records of the events topic that say that a retry is due."""

    async def enough():
        records = await read_raw(settings, catalogue(settings).events)
        return records if len(records) >= count else None

    return await until(enough)


async def test_no_retry_is_due_early_and_none_waits_behind_another(settings):
    await admin.apply(settings, "log-1")
    topics = catalogue(settings)
    async with delivering(settings, FakeAdapter()):
        for number in range(40):
            await write(settings, topics.retry_1s, retry(f"s{number % 5}", f"i{number}"))
            await asyncio.sleep(0.02)
        records = await due(settings, 40)
    asked = {decode(record.value).injection_id: record for record in await read_raw(settings, topics.retry_1s)}
    waited_ms = []
    for record in records:
        event = decode(record.value)
        assert isinstance(event, RetryDue)
        assert (event.session_id, event.attempt) == (asked[event.injection_id].key.decode(), 2)
        assert record.partition == partition_for(record.key, 4) == asked[event.injection_id].partition
        waited_ms.append(record.timestamp - asked[event.injection_id].timestamp)
    assert len(waited_ms) == 40
    assert min(waited_ms) >= 1_000
    assert sorted(waited_ms)[20] < 1_300


async def test_what_waits_while_nobody_runs_the_line_is_due_at_once_and_once(settings):
    await admin.apply(settings, "log-1")
    topics = catalogue(settings)
    async with delivering(settings, FakeAdapter()):
        pass
    await write(settings, topics.retry_1s, *(retry("s1", f"i{number}") for number in range(300)))
    await asyncio.sleep(1)
    async with delivering(settings, FakeAdapter()):
        await due(settings, 300)
    async with delivering(settings, FakeAdapter()):
        await asyncio.sleep(1.5)
        records = await due(settings, 300)
    assert set(Counter(decode(record.value).injection_id for record in records).values()) == {1}


async def test_what_is_no_retry_is_a_dead_letter(settings):
    await admin.apply(settings, "log-1")
    topics = catalogue(settings)
    async with delivering(settings, FakeAdapter()):
        await write(settings, topics.retry_1s, b"garbage", retry("s1", "i1"))
        await due(settings, 1)
        (record,) = await until(lambda: read_raw(settings, topics.dead))
    assert record.value == b"garbage"
    assert dict(record.headers)["cx-topic"] == topics.retry_1s.name.encode()
