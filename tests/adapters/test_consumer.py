"""The delivery consumer makes each session's attempts in order; a crash repeats no attempt that has a verdict."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
from broker_log import read, read_raw, until, write
from delivering import FakeAdapter, attempt_for, delivering, now_ms

from contextengine.adapters import attempt_log
from contextengine.adapters.consumer import PARTITIONS, deliver
from contextengine.broker import EmbeddedBroker, free_port
from contextengine.errors import BrokerUnavailable, ConfigurationError, RecordRefused, Unrenderable
from contextengine.monitoring.health import Health
from contextengine.schemas.codec import encode
from contextengine.schemas.events import AttemptReported, Tick
from contextengine.schemas.injection import AttemptVerdict, InjectionCancelled, Verdict
from contextengine.settings import load
from contextengine.topics import admin
from contextengine.topics.catalogue import catalogue, partition_for

pytestmark = pytest.mark.broker


@pytest.fixture
async def topics(settings):
    await admin.apply(settings, "log-1")
    return catalogue(settings)


async def reported(settings):
    """The verdicts that sessions were told, by injection and attempt, in order."""
    events = await read(settings, catalogue(settings).events)
    return [event.verdict for event in events if isinstance(event, AttemptReported)]


async def reports(settings, count):
    async def enough():
        told = await reported(settings)
        return told if len(told) >= count else None

    return await until(enough)


async def test_an_attempt_is_made_recorded_and_reported(settings):
    await admin.apply(settings, "log-1")
    topics = catalogue(settings)
    adapter = FakeAdapter()
    async with delivering(settings, adapter):
        await write(settings, topics.injections, attempt_for("s1", "i1"), headers=[("traceparent", b"00-1")])
        (told,) = await reports(settings, 1)
    assert (told.injection_id, told.attempt, told.verdict) == ("i1", 1, Verdict.DELIVERED)
    assert abs(told.answered_ms - now_ms()) < 10_000
    assert adapter.sent == ["i1"]
    assert await read(settings, topics.attempts) == [told]
    for topic in (topics.attempts, topics.events):
        (record,) = [record for record in await read_raw(settings, topic) if record.value is not None]
        assert (record.partition, record.key) == (partition_for(b"s1", 4), b"s1")
        assert record.headers == (("traceparent", b"00-1"),)


async def test_a_sessions_attempts_are_made_in_order_and_no_session_waits_for_another(settings, topics):
    blocked = asyncio.Event()

    async def block_the_first(attempt):
        if attempt.injection.injection_id == "a0":
            await blocked.wait()

    adapter = FakeAdapter(block_the_first)
    names = [f"{session}{number}" for number in range(5) for session in "abc"]
    await write(settings, topics.injections, *(attempt_for(name[0], name) for name in names), partition=0)
    async with delivering(settings, adapter):
        await until(lambda: len(adapter.sent) == 11)
        assert [name for name in adapter.sent if name[0] == "a"] == ["a0"]
        blocked.set()
        await until(lambda: len(adapter.sent) == 15)
        for session in "abc":
            assert [name for name in adapter.sent if name[0] == session] == [f"{session}{n}" for n in range(5)]
        await reports(settings, 15)


async def test_what_was_committed_does_not_come_again(settings, topics):
    adapter = FakeAdapter()
    async with delivering(settings, adapter):
        await write(settings, topics.injections, attempt_for("s1", "i1"))
        await reports(settings, 1)
    await write(settings, topics.injections, attempt_for("s1", "i2"))
    async with delivering(settings, adapter):
        await reports(settings, 2)
    assert adapter.sent == ["i1", "i2"]
    assert len(await reported(settings)) == 2


@pytest.mark.parametrize(
    ("step", "sends", "reports_in_all"),
    [("before the verdict", 2, 1), ("before the report", 1, 1), ("before the commit", 1, 2)],
)
async def test_a_crash_repeats_only_the_steps_that_were_not_acknowledged(
    settings, monkeypatch, step, sends, reports_in_all
):
    """After its verdict an attempt is never made again, however often its record comes."""
    topics = catalogue(settings)
    await admin.apply(settings, "log-1")
    reached = asyncio.Event()

    async def never(*_):
        reached.set()
        await asyncio.Event().wait()

    adapter = FakeAdapter()
    with monkeypatch.context() as broken:
        if step == "before the verdict":
            broken.setattr(attempt_log.AttemptLog, "add_verdict", never)
        elif step == "before the report":
            broken.setattr(attempt_log.AttemptLog, "report", never)
        else:
            broken.setattr("contextengine.adapters.group_reader.GroupReader._commit", never)
        async with delivering(settings, adapter) as running:
            await write(settings, topics.injections, attempt_for("s1", "i1"))
            await reached.wait()
            if step == "before the commit":
                await reports(settings, 1)
            running.cancel()
            await asyncio.wait([running])
    async with delivering(settings, adapter):
        told = await reports(settings, reports_in_all)
    assert adapter.sent == ["i1"] * sends
    assert len(await read(settings, topics.attempts)) == 1
    assert [verdict.verdict for verdict in told] == [Verdict.DELIVERED] * reports_in_all


async def test_what_a_dead_consumer_had_sent_is_delivered_though_it_is_called_back_or_late_by_now(
    settings, topics, monkeypatch
):
    """The new one does not send, and asks the provider: its outcome must not say that it is not in the call."""

    async def never(*_):
        await asyncio.Event().wait()

    adapter = FakeAdapter()
    with monkeypatch.context() as broken:
        broken.setattr(attempt_log.AttemptLog, "add_verdict", never)
        async with delivering(settings, adapter) as running:
            late = attempt_for("s1", "late", lives_ms=2_000)
            await write(settings, topics.injections, late, attempt_for("s2", "called back"))
            await until(lambda: len(adapter.sent) == 2)
            running.cancel()
            await asyncio.wait([running])
    cancellations = [
        InjectionCancelled(session_id="s2", injection_id=name, reason="") for name in ("called back", "new")
    ]
    await write(settings, topics.injections, attempt_for("s2", "new"), *cancellations)
    await asyncio.sleep(2)
    async with delivering(settings, adapter):
        told = await reports(settings, 3)
    assert {verdict.injection_id: verdict.verdict for verdict in told} == {
        "late": Verdict.DELIVERED,
        "called back": Verdict.DELIVERED,
        "new": Verdict.CANCELLED,
    }
    assert sorted(adapter.sent) == ["called back", "late"]


async def test_a_second_copy_of_an_attempt_is_reported_and_not_made(settings, topics):
    adapter = FakeAdapter()
    async with delivering(settings, adapter):
        copy = attempt_for("s1", "i1")
        await write(settings, topics.injections, copy, copy, attempt_for("s1", "i1", attempt=2))
        told = await reports(settings, 3)
    assert [verdict.attempt for verdict in told] == [1, 1, 2]
    assert adapter.sent == ["i1", "i1"]


async def test_an_attempt_whose_deadline_has_passed_is_not_sent(settings, topics):
    async def slow(_):
        await asyncio.sleep(0.4)

    adapter = FakeAdapter(slow)
    async with delivering(settings, adapter):
        await write(
            settings,
            topics.injections,
            attempt_for("s1", "late", lives_ms=-1),
            attempt_for("s1", "slow"),
            attempt_for("s1", "overtaken", lives_ms=300),
        )
        told = await reports(settings, 3)
    assert {verdict.injection_id: verdict.verdict for verdict in told} == {
        "late": Verdict.EXPIRED,
        "slow": Verdict.DELIVERED,
        "overtaken": Verdict.EXPIRED,
    }
    assert adapter.sent == ["slow"]


async def test_an_attempt_gets_the_time_of_its_injection_and_no_more_than_to_its_deadline(settings, topics):
    async def hang(_):
        await asyncio.Event().wait()

    adapter = FakeAdapter(hang)
    async with delivering(settings, adapter):
        started_s = time.monotonic()
        await write(
            settings,
            topics.injections,
            attempt_for("s1", "short", timeout_ms=200),
            attempt_for("s2", "soon", lives_ms=400, timeout_ms=60_000),
        )
        told = await reports(settings, 2)
        assert time.monotonic() - started_s < 5
    assert {verdict.verdict for verdict in told} == {Verdict.UNKNOWN}
    assert all(verdict.error_class == "TimeoutError" and verdict.transient for verdict in told)
    allowed = dict(zip(adapter.sent, adapter.timeouts, strict=True))
    assert allowed["short"] == 0.2
    assert 0 < allowed["soon"] <= 0.4


async def test_a_provider_without_an_adapter_is_refused_by_name(settings, topics):
    async with delivering(settings, FakeAdapter()):
        await write(settings, topics.injections, attempt_for("s1", "i1", provider="elsewhere"))
        (told,) = await reports(settings, 1)
    assert (told.verdict, told.error_class) == (Verdict.REFUSED, "UnknownProvider")
    assert told.message == "no adapter for provider 'elsewhere'; this consumer has: fake"


async def test_an_adapter_that_raises_is_a_failed_attempt_and_one_that_cannot_render_a_refused_one(settings, topics):
    class Broken(FakeAdapter):
        def render(self, attempt):
            if attempt.injection.injection_id == "unrenderable":
                raise Unrenderable("too long for this provider")
            return super().render(attempt)

    async def bug(attempt):
        if attempt.injection.injection_id == "bug":
            raise ZeroDivisionError("by zero")

    adapter = Broken(bug)
    async with delivering(settings, adapter):
        await write(
            settings,
            topics.injections,
            *(attempt_for("s1", name) for name in ("bug", "unrenderable", "fine")),
        )
        told = await reports(settings, 3)
    assert [(verdict.verdict, verdict.error_class, verdict.message) for verdict in told] == [
        (Verdict.FAILED, "ZeroDivisionError", "by zero"),
        (Verdict.REFUSED, "Unrenderable", "too long for this provider"),
        (Verdict.DELIVERED, "", ""),
    ]


async def test_a_cancelled_attempt_that_was_not_sent_never_is_and_is_reported_as_such(settings, topics):
    blocked = asyncio.Event()

    async def block(_):
        await blocked.wait()

    def cancellation(name):
        return InjectionCancelled(session_id="s1", injection_id=name, reason="superseded")

    adapter = FakeAdapter(block)
    await write(settings, topics.injections, attempt_for("s1", "before"), cancellation("before"))
    async with delivering(settings, adapter):
        names = ["sent", "queued", "kept"]
        await write(settings, topics.injections, *(attempt_for("s1", name) for name in names))
        await until(lambda: adapter.sent)
        await write(settings, topics.injections, cancellation("sent"), cancellation("queued"))
        await asyncio.sleep(0.3)
        blocked.set()
        told = await reports(settings, 4)
    assert [(verdict.injection_id, verdict.verdict, verdict.message) for verdict in told] == [
        ("before", Verdict.CANCELLED, "superseded"),
        ("sent", Verdict.DELIVERED, ""),
        ("queued", Verdict.CANCELLED, "superseded"),
        ("kept", Verdict.DELIVERED, ""),
    ]
    assert adapter.sent == ["sent", "kept"]


async def test_what_is_handed_off_is_left_alone(settings, topics):
    adapter = FakeAdapter()
    async with delivering(settings, adapter):
        await write(
            settings, topics.injections, attempt_for("s1", "theirs", route="hand_off"), attempt_for("s1", "ours")
        )
        (told,) = await reports(settings, 1)
    assert told.injection_id == "ours"
    assert adapter.sent == ["ours"]


async def test_what_cannot_be_decoded_is_a_dead_letter_with_the_same_bytes_and_the_partition_goes_on(settings, topics):
    broken = [b"", b"garbage", encode(attempt_for("s1", "cut off"))[:-3], encode(tick())]
    adapter = FakeAdapter()
    partition = partition_for(b"s1", settings.partitions)
    async with delivering(settings, adapter) as running:
        await write(settings, topics.injections, attempt_for("s1", "i0"))
        offsets = await write(settings, topics.injections, *broken, partition=partition)
        await write(settings, topics.injections, attempt_for("s1", "i1"))
        await reports(settings, 2)
        dead = await until(lambda: dead_letters(settings, 4))
        assert not running.done()
    assert sorted(record.value for record in dead) == sorted(broken)
    for record in dead:
        told = {name: value.decode() for name, value in record.headers}
        assert record.value == broken[offsets.index(int(told["cx-offset"]))]
        assert (told["cx-stage"], told["cx-class"]) == ("decode", "UndecodableRecord")
        assert (told["cx-topic"], told["cx-partition"]) == (topics.injections.name, str(partition))
        assert told["cx-group"] == settings.deliver_group
    async with delivering(settings, adapter):
        pass
    assert len(await read_raw(settings, topics.dead)) == 4


def tick():
    return Tick(session_id="s1", timer="idle", due_ms=1)


async def dead_letters(settings, count):
    found = await read_raw(settings, catalogue(settings).dead)
    return found if len(found) >= count else None


async def test_a_dead_letter_that_cannot_be_written_ends_the_process_with_nothing_committed(
    settings, topics, monkeypatch
):
    write_as_ever = attempt_log.AttemptLog.write

    async def refuse(self, topic, *rest):
        if topic.name == topics.dead.name:
            raise RecordRefused("no room")
        return await write_as_ever(self, topic, *rest)

    with monkeypatch.context() as broken:
        broken.setattr(attempt_log.AttemptLog, "write", refuse)
        await write(settings, topics.injections, b"garbage")
        running = asyncio.create_task(deliver(settings, {}, Health(PARTITIONS), asyncio.Event()))
        with pytest.raises(RecordRefused, match="no room"):
            await running
    async with delivering(settings, FakeAdapter()):
        (record,) = await until(lambda: dead_letters(settings, 1))
    assert record.value == b"garbage"


async def test_stopping_finishes_what_is_under_way_and_leaves_what_is_queued(settings, topics):
    async def slow(_):
        await asyncio.sleep(0.3)

    adapter = FakeAdapter(slow)
    async with delivering(settings, adapter):
        await write(settings, topics.injections, *(attempt_for("s1", f"i{number}") for number in range(4)))
        await until(lambda: adapter.sent)
    assert adapter.sent == ["i0"]
    assert [verdict.injection_id for verdict in await reported(settings)] == ["i0"]
    async with delivering(settings, adapter):
        await reports(settings, 4)
    assert adapter.sent == ["i0", "i1", "i2", "i3"]


async def test_partitions_move_to_a_second_consumer_without_an_attempt_made_twice(settings, topics):
    first, second = FakeAdapter(), FakeAdapter()
    names = [f"i{number}" for number in range(60)]

    async def publish():
        for number, name in enumerate(names):
            await write(settings, topics.injections, attempt_for(f"s{number % 8}", name))
            await asyncio.sleep(0.05)

    async with delivering(settings, first):
        publishing = asyncio.create_task(publish())
        async with delivering(settings, second):
            await publishing
            told = await reports(settings, 60)
    assert sorted(first.sent + second.sent) == sorted(names)
    assert second.sent
    assert {verdict.injection_id for verdict in told} == set(names)


async def test_a_full_partition_is_not_read_on_and_goes_on_when_it_has_room(settings, topics, monkeypatch):
    monkeypatch.setattr("contextengine.adapters.group_reader.FULL", 10)
    monkeypatch.setattr("contextengine.adapters.group_reader.FETCH_BYTES", 2_000)
    blocked = asyncio.Event()

    async def block(_):
        await blocked.wait()

    adapter = FakeAdapter(block)
    async with delivering(settings, adapter):
        await write(settings, topics.injections, *(attempt_for("s1", f"i{number}") for number in range(100)))
        await until(lambda: adapter.sent)
        blocked.set()
        await reports(settings, 100)
    assert adapter.sent == [f"i{number}" for number in range(100)]
    assert all(isinstance(record, AttemptVerdict) for record in await read(settings, topics.attempts))


async def test_an_attempt_that_outlasts_the_handing_over_of_its_partition_is_cut_off_and_made_by_the_next_owner(
    settings, topics
):
    """At least once: the provider may see it twice, with the same id."""
    hung = []

    async def hang_once(attempt):
        if not hung:
            hung.append(attempt.injection.injection_id)
            await asyncio.Event().wait()

    first, second = FakeAdapter(hang_once), FakeAdapter(hang_once)
    async with delivering(settings, first):
        await write(settings, topics.injections, attempt_for("s1", "i1", timeout_ms=60_000))
        await until(lambda: hung)
        async with delivering(settings, second):
            (told,) = await reports(settings, 1)
    assert told.verdict is Verdict.DELIVERED
    assert first.sent + second.sent == ["i1", "i1"]


async def test_it_is_not_ready_while_the_broker_is_silent(monkeypatch):
    monkeypatch.setattr("contextengine.adapters.group_reader.ANSWER_MS", 2_000)
    monkeypatch.setattr("contextengine.adapters.consumer.WATCH_S", 0.2)
    with EmbeddedBroker() as broker:
        settings = load(environ={}, broker=broker.bootstrap, embedded=True)
        await admin.apply(settings, "log-1")
        health, stop = Health(PARTITIONS), asyncio.Event()
        running = asyncio.create_task(deliver(settings, {}, health, stop))
        await until(lambda: health.ready()["ready"])
        os.killpg(broker._process.pid, signal.SIGSTOP)
        await until(lambda: not health.ready()["ready"])
        assert health.ready()["missing"][PARTITIONS].startswith(f"no broker at {settings.broker} answers since ")
        os.killpg(broker._process.pid, signal.SIGCONT)
        await until(lambda: health.ready()["ready"])
        stop.set()
        await running


async def test_without_a_broker_it_says_so_at_the_start():
    nobody = load(environ={}, broker=f"127.0.0.1:{free_port(0)}", embedded=True)
    with pytest.raises(BrokerUnavailable):
        await deliver(nobody, {}, Health(PARTITIONS), asyncio.Event())


async def test_without_topics_it_says_so_at_the_start(settings):
    with pytest.raises(ConfigurationError, match="topics apply"):
        await deliver(settings, {}, Health(PARTITIONS), asyncio.Event())


async def test_it_stops_within_seconds_and_leaves_nothing_behind_while_the_broker_is_away():
    with EmbeddedBroker() as broker:
        settings = load(environ={}, broker=broker.bootstrap, embedded=True)
        await admin.apply(settings, "log-1")
        async with delivering(settings, FakeAdapter()):
            await write(settings, catalogue(settings).injections, attempt_for("s1", "i1"))
            await reports(settings, 1)
            os.killpg(broker._process.pid, signal.SIGKILL)
            await asyncio.sleep(0.5)
            started_s = time.monotonic()
        assert time.monotonic() - started_s < 8
        assert asyncio.all_tasks() == {asyncio.current_task()}
