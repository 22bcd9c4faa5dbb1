"""A VoiceEngine that delivers by itself sees its own sessions' injections, and says what became of them."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from broker_log import read, read_raw, until, write, write_together

sys.path.append(str(Path(__file__).parents[1] / "adapters"))
from delivering import FakeAdapter, attempt_for, delivering

from contextengine.errors import BrokerUnavailable
from contextengine.schemas.events import AttemptReported
from contextengine.schemas.injection import Confirmation, InjectionCancelled, Verdict
from contextengine.settings import load
from contextengine.streaming.injections import Injections
from contextengine.topics import admin
from contextengine.topics.catalogue import catalogue, partition_for

pytestmark = pytest.mark.broker


def handed_off(session_id, name, **more):
    return attempt_for(session_id, name, route="hand_off", **more)


@pytest.fixture
async def topics(settings):
    await admin.apply(settings, "log-1")
    return catalogue(settings)


async def take(injections, count, within_s=10):
    """The ids of the next injections."""
    async with asyncio.timeout(within_s):
        return [(await anext(injections)).injection.injection_id for _ in range(count)]


async def test_only_what_follows_the_watch_and_belongs_to_the_session_comes_in_order(settings):
    await admin.apply(settings, "log-1")
    topics = catalogue(settings)
    await write(settings, topics.injections, *(handed_off("s1", f"old{number}") for number in range(30)))
    async with Injections(settings) as injections:
        await injections.watch("s1")
        await injections.watch("s2")
        everything = [handed_off(f"s{1 + number % 3}", f"i{number}") for number in range(30)]
        await write(settings, topics.injections, *everything)
        names = await take(injections, 20)
        assert [name for name in names if int(name[1:]) % 3 == 0] == [f"i{number}" for number in range(0, 30, 3)]
        assert [name for name in names if int(name[1:]) % 3 == 1] == [f"i{number}" for number in range(1, 30, 3)]


async def test_nothing_that_is_appended_after_the_watch_is_missed(settings, topics):
    """Each session's first injection is appended the moment its watch returns, as a quick rule would."""
    async with Injections(settings) as injections:
        for number in range(12):
            await injections.watch(f"s{number}")
            await write(settings, topics.injections, handed_off(f"s{number}", f"i{number}"))
        assert sorted(await take(injections, 12)) == sorted(f"i{number}" for number in range(12))


async def test_a_report_is_a_verdict_and_then_an_event_in_the_sessions_partition(settings, topics):
    async with Injections(settings) as injections:
        await injections.watch("s1")
        await write(settings, topics.injections, handed_off("s1", "i1"), handed_off("s1", "i2"))
        async for attempt in injections:
            if attempt.injection.injection_id == "i1":
                await injections.report(attempt, Verdict.DELIVERED, role="system")
            else:
                await injections.report(attempt, Verdict.FAILED, transient=True, error_class="Busy", message="later")
                break
    delivered, failed = await read(settings, topics.attempts)
    assert (delivered.verdict, delivered.confirmation, delivered.achieved, delivered.role) == (
        *(Verdict.DELIVERED, Confirmation.SENT, "native", "system"),
    )
    assert delivered.answered_ms > 0
    assert (failed.verdict, failed.transient, failed.error_class, failed.achieved) == (
        *(Verdict.FAILED, True, "Busy", "none"),
    )
    assert await read(settings, topics.events) == [
        AttemptReported(session_id="s1", verdict=delivered),
        AttemptReported(session_id="s1", verdict=failed),
    ]
    assert {record.partition for record in await read_raw(settings, topics.events)} == {partition_for(b"s1", 4)}


async def test_what_is_cancelled_late_or_repeated_does_not_come(embedded_settings):
    """Not on Apache Kafka: what it sends first is one record or all, and no cancellation is known before it is read."""
    settings, topics = embedded_settings, catalogue(embedded_settings)
    await admin.apply(settings, "log-1")
    async with Injections(settings) as injections:
        await injections.watch("s1")
        await write_together(
            settings,
            topics.injections,
            handed_off("s1", "first"),
            handed_off("s1", "first"),
            handed_off("s1", "cancelled"),
            handed_off("s1", "late", lives_ms=-1),
            handed_off("s1", "last"),
        )
        assert await take(injections, 1) == ["first"]
        await write(
            settings, topics.injections, InjectionCancelled(session_id="s1", injection_id="cancelled", reason="")
        )
        await asyncio.sleep(1)
        assert await take(injections, 1) == ["last"]
    verdicts = await read(settings, topics.attempts)
    assert [(verdict.injection_id, verdict.verdict) for verdict in verdicts] == [
        ("cancelled", Verdict.CANCELLED),
        ("late", Verdict.EXPIRED),
    ]


async def test_attached_sessions_can_be_looked_at_and_not_reported(settings, topics):
    async with Injections(settings) as injections:
        await injections.watch("s1")
        await write(settings, topics.injections, attempt_for("s1", "i1"))
        attempt = await anext(injections)
        assert attempt.destination.route == "attach"
        with pytest.raises(ValueError, match="delivery consumer"):
            await injections.report(attempt, Verdict.DELIVERED)


async def test_a_session_that_is_no_longer_watched_does_not_come(settings, topics):
    async with Injections(settings) as injections:
        await injections.watch("s1")
        await injections.watch("s2")
        await write(settings, topics.injections, handed_off("s1", "i1"), handed_off("s1", "i2"))
        assert await take(injections, 1) == ["i1"]
        injections.unwatch("s1")
        await write(settings, topics.injections, handed_off("s1", "i3"), handed_off("s2", "i4"))
        assert await take(injections, 1) == ["i4"]


async def test_leaving_the_block_ends_the_iteration(settings, topics):
    names = []

    async def listen(injections):
        names.extend([attempt.injection.injection_id async for attempt in injections])

    async with Injections(settings) as injections:
        await injections.watch("s1")
        listening = asyncio.create_task(listen(injections))
        await write(settings, topics.injections, handed_off("s1", "i1"))
        await asyncio.sleep(0.5)
    async with asyncio.timeout(5):
        await listening
    assert names == ["i1"]


async def test_a_delivery_consumer_beside_it_makes_only_its_own_attempts(settings, topics):
    adapter = FakeAdapter()
    async with Injections(settings) as injections, delivering(settings, adapter):
        await injections.watch("s1")
        await write(settings, topics.injections, handed_off("s1", "mine"), attempt_for("s2", "its"))
        attempt = await anext(injections)
        await injections.report(attempt, Verdict.DELIVERED)
        await until(lambda: adapter.sent)
    assert adapter.sent == ["its"]


async def test_no_broker_is_an_error_at_the_start():
    with pytest.raises(BrokerUnavailable):
        async with Injections(load(environ={}, broker="127.0.0.1:9", embedded=True)):
            pass
