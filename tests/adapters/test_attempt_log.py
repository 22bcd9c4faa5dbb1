"""What is written is acknowledged, and teaches the broker's time."""

from __future__ import annotations

import asyncio
import gzip
import os
import signal

import pytest
from aiokafka.structs import ConsumerRecord
from broker_log import read_raw, until, write
from delivering import FakeAdapter, attempt_for, delivering, now_ms

from contextengine.adapters import attempt_log
from contextengine.adapters.attempt_log import AttemptLog
from contextengine.adapters.lanes import MESSAGE_CHARS, verdict_on
from contextengine.adapters.redelivery import verdicts_since
from contextengine.broker import EmbeddedBroker
from contextengine.delivery.broker_time import BrokerClock
from contextengine.errors import RecordRefused, UndecodableRecord
from contextengine.schemas.codec import decode
from contextengine.schemas.injection import Verdict
from contextengine.settings import load
from contextengine.topics import admin
from contextengine.topics.catalogue import catalogue

HOUR_MS = 3_600_000

pytestmark = pytest.mark.broker


@pytest.fixture
def an_hour_fast(monkeypatch):
    """A machine whose wall clock is an hour ahead."""
    monkeypatch.setattr(attempt_log, "BrokerClock", lambda wall_ms, own_ms: BrokerClock(wall_ms + HOUR_MS, own_ms))


@pytest.mark.usefixtures("an_hour_fast")
async def test_a_report_teaches_the_brokers_time(settings):
    if settings.embedded:
        pytest.skip("the embedded broker has no time of its own")
    await admin.apply(settings, "log-1")
    async with AttemptLog(settings) as attempts:
        assert attempts.now_ms() - now_ms() > HOUR_MS - 60_000
        await attempts.report(verdict_on(attempt_for("s1", "i1"), Verdict.DELIVERED), 0)
        assert -5_000 < attempts.now_ms() - now_ms() <= 0


@pytest.mark.usefixtures("an_hour_fast")
async def test_a_consumer_whose_clock_is_an_hour_fast_delivers_what_has_not_expired(settings):
    if settings.embedded:
        pytest.skip("the embedded broker has no time of its own")
    await admin.apply(settings, "log-1")
    adapter = FakeAdapter()
    async with delivering(settings, adapter):
        await write(settings, catalogue(settings).injections, attempt_for("s1", "i1"))
        await until(lambda: adapter.sent)


async def test_earlier_verdicts_are_known_up_to_the_marker_and_no_older_than_the_oldest_uncommitted_attempt(
    settings,
):
    await admin.apply(settings, "log-1")
    topics = catalogue(settings)
    made = [attempt_for("s1", f"i{number}") for number in range(5)]
    async with AttemptLog(settings) as attempts:
        await write(settings, topics.injections, *made, partition=0)
        for attempt in made:
            await attempts.add_verdict(verdict_on(attempt, Verdict.DELIVERED), 0)
        known = await verdicts_since({0: 2, 1: 0}, attempts)
        assert all(known[0].of(attempt) for attempt in made[2:])
        assert known[1].of(made[0]) is None
        known = await verdicts_since({0: 5}, attempts)
        assert known[0].of(made[4]) is None  # nothing is uncommitted, so nothing is read


async def test_what_the_broker_will_never_have_is_an_error_and_not_tried_again(settings):
    await admin.apply(settings, "log-1")
    async with AttemptLog(settings) as attempts:
        with pytest.raises(RecordRefused):
            await attempts.write(attempts.topics.attempts, 0, "s1", b"x" * 2_000_000)


async def test_a_dead_letter_that_its_topic_does_not_take_whole_is_kept_as_gzip(settings, monkeypatch):
    """It came compressed; refusing to bury it would stop its partition."""
    await admin.apply(settings, "log-1")
    value = b"x" * 600_000
    write_as_ever = AttemptLog.write

    async def as_apache_does(self, topic, partition, key, value, headers=()):
        if len(value) > topic.max_message_bytes:
            raise RecordRefused("too large")
        return await write_as_ever(self, topic, partition, key, value, headers)

    monkeypatch.setattr(AttemptLog, "write", as_apache_does)
    record = ConsumerRecord("t.injections", 0, 7, 1, 1, b"k", value, None, 1, len(value), ())
    async with AttemptLog(settings) as attempts:
        await attempts.bury(record, UndecodableRecord("too large"), "group")
    [dead] = await read_raw(settings, catalogue(settings).dead)
    assert gzip.decompress(dead.value) == value
    assert dict(dead.headers)["cx-encoding"] == b"gzip"


async def test_an_error_that_says_too_much_is_cut(settings):
    await admin.apply(settings, "log-1")
    long = verdict_on(attempt_for("s1", "i1"), Verdict.FAILED, message="x" * 1_000_000)
    async with AttemptLog(settings) as attempts:
        await attempts.add_verdict(attempts.in_broker_time(long), 0)
    (record,) = await read_raw(settings, catalogue(settings).attempts)
    assert decode(record.value).message == "x" * MESSAGE_CHARS


async def test_leaving_while_the_broker_is_away_takes_no_longer_than_a_moment():
    with EmbeddedBroker() as broker:
        settings = load(environ={}, broker=broker.bootstrap, embedded=True)
        await admin.apply(settings, "log-1")
        async with asyncio.timeout(5), AttemptLog(settings) as attempts:
            await attempts.report(verdict_on(attempt_for("s1", "i1"), Verdict.DELIVERED), 0)
            os.killpg(broker._process.pid, signal.SIGKILL)
            writing = asyncio.create_task(attempts.report(verdict_on(attempt_for("s1", "i2"), Verdict.DELIVERED), 0))
            await asyncio.sleep(0.3)
            assert not writing.done()
            writing.cancel()
