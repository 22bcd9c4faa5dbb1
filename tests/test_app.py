"""The worker's process: rules put in force, and a whole conversation through a worker in this process."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from broker_log import read, read_raw, until, write

from contextengine.app import build_app, publish_rules, run_worker
from contextengine.broker import EmbeddedBroker
from contextengine.errors import ConfigurationError, LogReplaced, RulesInvalid
from contextengine.replay.audit import audit
from contextengine.replay.span import Span
from contextengine.schemas.codec import decode
from contextengine.schemas.events import MessageCompleted, RulesChanged, SessionStarted
from contextengine.schemas.injection import InjectionAttempt
from contextengine.settings import load
from contextengine.topics import admin, rulebook
from contextengine.topics.broadcast import switch, switched_off
from contextengine.topics.catalogue import catalogue

GREET = "rules: [{name: greet, when: {keyword: hello}, inject: {information: {name: Ada}}}]"
OTHER = "rules: [{name: other, when: {keyword: hello}, inject: {information: {name: Eve}}}]"


async def changes(settings):
    """The changes of rules in each partition of the log, as versions."""
    found = {number: [] for number in range(settings.partitions)}
    for record in await read_raw(settings, catalogue(settings).events):
        event = decode(record.value)
        if isinstance(event, RulesChanged):
            found[record.partition].append(event.version)
    return found


async def test_rules_are_stored_once_and_broadcast_to_every_partition_under_a_growing_version(settings):
    await admin.apply(settings, uuid.uuid4().hex)
    for text in (GREET, GREET, OTHER, GREET):
        await publish_rules(settings, text)
    [versions, *others] = (await changes(settings)).values()
    assert others == [versions] * (settings.partitions - 1)
    first, again, other, back = versions
    assert first == again < other < back


async def test_rules_with_a_mistake_change_nothing(settings):
    await admin.apply(settings, uuid.uuid4().hex)
    with pytest.raises(RulesInvalid):
        await publish_rules(settings, "rules: [{name: nothing}]")
    assert set(map(tuple, (await changes(settings)).values())) == {()}


async def test_a_worker_does_not_start_without_its_topics(settings):
    with pytest.raises(ConfigurationError, match="contextengine topics apply"):
        await run_worker(settings, GREET, asyncio.Event(), build_app(settings))


async def test_new_rules_reach_the_partitions_of_a_worker_that_has_never_seen_them(settings):
    """Another worker, or nobody's, puts them in force: the owner reads them from the rules topic."""
    await admin.apply(settings, uuid.uuid4().hex)
    stop, worker = asyncio.Event(), build_app(settings)
    running = asyncio.create_task(run_worker(settings, GREET, stop, worker))
    await until(lambda: worker.health.ready()["ready"] or running.done())

    def event(kind, seq, **fields):
        return kind(session_id="s1", producer="v", incarnation=1, seq=seq, at_ms=0, **fields)

    async def fired():
        return [
            record.injection.rule
            for record in await read(settings, catalogue(settings).injections)
            if isinstance(record, InjectionAttempt)
        ]

    events = catalogue(settings).events
    await write(settings, events, event(SessionStarted, 0, provider="p", model="m"))
    await write(settings, events, event(MessageCompleted, 1, speaker="user", text="hello"))
    await until(fired)
    await publish_rules(settings, OTHER)
    await write(settings, events, event(MessageCompleted, 2, speaker="user", text="hello"))

    async def both():
        return await fired() == ["greet", "other"]

    await until(both)
    stop.set()
    await running


async def test_a_switch_stops_every_partition_at_once_also_of_a_worker_that_starts_later_and_an_audit_knows(settings):
    await admin.apply(settings, uuid.uuid4().hex)
    assert await switch(settings, on=["rule:greet"]) == []
    assert await switch(settings, off=["rule:greet", "everything"]) == ["everything", "rule:greet"]
    stop, worker = asyncio.Event(), build_app(settings)
    running = asyncio.create_task(run_worker(settings, GREET, stop, worker))
    await until(lambda: worker.health.ready()["ready"] or running.done())
    events, said = catalogue(settings).events, {"session_id": "s1", "producer": "v", "incarnation": 1, "at_ms": 0}

    async def filters():
        made = await read(settings, catalogue(settings).decisions)
        return [told.filter for decision in made for told in decision.suppressed]

    await write(settings, events, SessionStarted(**said, seq=0, provider="p", model="m"))
    await write(settings, events, MessageCompleted(**said, seq=1, speaker="user", text="hello"))
    await until(filters)
    assert await switch(settings, on=["everything"]) == await switched_off(settings) == ["rule:greet"]
    await switch(settings, on=["rule:greet"])
    await write(settings, events, MessageCompleted(**said, seq=2, speaker="user", text="hello"))
    await until(lambda: read(settings, catalogue(settings).injections))
    assert await filters() == ["switch"]
    stop.set()
    await running
    report = await audit(settings, Span())
    assert not report.findings


async def test_a_worker_whose_broker_is_gone_is_not_ready_and_says_why():
    with EmbeddedBroker() as broker:
        settings = load(environ={}, broker=broker.bootstrap, embedded=True)
        await admin.apply(settings, uuid.uuid4().hex)
        stop, worker = asyncio.Event(), build_app(settings)
        running = asyncio.create_task(run_worker(settings, GREET, stop, worker))
        await until(lambda: worker.health.ready()["ready"] or running.done())
    await until(lambda: "the broker answers" in worker.health.ready()["missing"])
    stop.set()
    await asyncio.wait([running])
    running.exception()


async def test_a_worker_without_a_partition_is_ready_and_takes_over_when_it_gets_one(kafka):
    """Two workers for one partition: an orchestrator that waits for readiness need not wait for ever."""
    settings = load(environ={}, broker=kafka, partitions=1, prefix=f"test-{uuid.uuid4().hex[:8]}")
    await admin.apply(settings, uuid.uuid4().hex)
    workers, stops, running = [], [], []
    for _ in range(2):
        worker, stop = build_app(settings), asyncio.Event()
        workers.append(worker)
        stops.append(stop)
        running.append(asyncio.create_task(run_worker(settings, GREET, stop, worker)))
        await until(lambda: all(worker.health.ready()["ready"] for worker in workers), within_s=30)
    owners = [worker for worker in workers if worker.app.consumer.assignment()]
    assert len(owners) == 1
    owner = workers.index(owners[0])
    stops[owner].set()
    await running[owner]
    said = {"session_id": "s1", "producer": "v", "incarnation": 1, "at_ms": 0}
    started = SessionStarted(**said, seq=0, provider="p", model="m")
    greeted = MessageCompleted(**said, seq=1, speaker="user", text="hello")
    await write(settings, catalogue(settings).events, started, greeted)
    await until(lambda: read(settings, catalogue(settings).injections), within_s=30)
    stops[1 - owner].set()
    await running[1 - owner]


async def test_a_running_worker_whose_log_gets_another_id_stops_by_name(settings, monkeypatch):
    """Nothing else may tell it: an events topic that is made anew at once has as many partitions as before."""
    monkeypatch.setattr("contextengine.app.CHECK_TOPICS_S", 0.2)
    await admin.apply(settings, uuid.uuid4().hex)
    worker = build_app(settings)
    running = asyncio.create_task(run_worker(settings, GREET, asyncio.Event(), worker))
    await until(lambda: worker.health.ready()["ready"] or running.done())
    await rulebook.append(settings, rulebook.LOG_ID, uuid.uuid4().hex.encode())
    with pytest.raises(LogReplaced, match="was recreated"):
        await running
