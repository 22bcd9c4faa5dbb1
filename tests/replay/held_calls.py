"""Holds calls through a real worker and a real delivery consumer, in this process, with a provider that is made up."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import asynccontextmanager

from broker_log import read, read_raw, until, write
from delivering import FakeAdapter

from contextengine.adapters.consumer import PARTITIONS, deliver
from contextengine.adapters.lanes import verdict_on
from contextengine.app import build_app, publish_rules, run_worker
from contextengine.errors import UndecodableRecord
from contextengine.monitoring.health import Health
from contextengine.schemas.codec import decode
from contextengine.schemas.events import (
    AttemptReported,
    MessageCompleted,
    SessionEnded,
    SessionStarted,
    Tick,
    TurnEnded,
    TurnStarted,
)
from contextengine.schemas.injection import InjectionResult, Verdict
from contextengine.settings import load
from contextengine.topics import admin
from contextengine.topics.catalogue import catalogue, partition_for

RULES = """
rules:
  - name: greet
    when: {keyword: hello}
    inject: {information: {said: "hello for the {{ session.messages }}th time"}}
    cooldown: 1 ms
  - name: doomed
    when: {keyword: doom}
    inject: {information: {said: "doom"}}
    criticality: important
    on_failure: {strategy: retry_async, max_attempts: 2, delay: 100 ms}
  - name: stubborn
    when: {keyword: again}
    inject: {information: {said: "again"}}
    criticality: important
    on_failure: {strategy: retry_async, max_attempts: 3, delay: 1200 ms}
  - name: later
    when: {keyword: later}
    inject: {information: {said: "later"}}
    place: silence
    quiet: 200 ms
    fallback: 1 s
  - name: clock
    when: {every: 10 s}
    inject: {strategy: {minute: "{{ session.minutes }}"}}
  - name: shadow
    when: {keyword: hello}
    inject: {information: {a: b}}
    shadow: true
"""
OTHER_RULES = RULES.replace("for the", "now for the")
ENDED = ("ada", "bob", "eve", "kim")
GOES_ON = "lee"
WORDS = ("hello", "doom", "again", "later", "nothing", "hello", "hello")


async def _behave(attempt):
    if attempt.injection.rule == "doomed" or (attempt.injection.rule == "stubborn" and attempt.attempt == 1):
        return verdict_on(attempt, Verdict.FAILED, transient=True, error_class="Busy", message="come back later")
    return None


async def _be_silent(_attempt):
    await asyncio.sleep(60)


@asynccontextmanager
async def installation(settings, *, answers=True):
    """A worker and a delivery consumer, ready; what this yields ends them before the block does."""
    await admin.apply(settings, uuid.uuid4().hex)
    stop, worker, health = asyncio.Event(), build_app(settings), Health(PARTITIONS)
    adapter = FakeAdapter(_behave if answers else _be_silent)
    working = asyncio.create_task(run_worker(settings, RULES, stop, worker))
    delivering = asyncio.create_task(deliver(settings, {"fake": adapter}, health, stop))
    try:
        await until(lambda: working.done() or (worker.health.ready()["ready"] and health.ready()["ready"]), within_s=30)
        yield stop
        stop.set()
        await working
        if answers:
            await delivering
    finally:
        delivering.cancel()
        await asyncio.wait([working, delivering])


def hold(broker, *, embedded):
    """Hold the calls; the settings of the installation, whose processes have ended."""
    settings = load(environ={}, broker=broker, embedded=embedded, partitions=4, prefix=f"test-{uuid.uuid4().hex[:8]}")
    asyncio.run(_hold(settings))
    return settings


async def _hold(settings):
    topics = catalogue(settings)
    async with installation(settings):
        for at, word in enumerate(("", *WORDS)):
            for name in (*ENDED, GOES_ON):
                await write(settings, topics.events, *_events(name, at, word))
            if at == 3:
                await write(settings, topics.events, b"no event at all", partition=2)
                await publish_rules(settings, OTHER_RULES)
                stray = Tick(session_id="ada", timer="forget", due_ms=5)
                await write(settings, topics.events, stray, partition=(partition_for(b"ada", 4) + 1) % 4)
            await asyncio.sleep(0.15)
        await asyncio.sleep(1.5)
        await write(settings, topics.events, *(event_of(SessionEnded, name, 100) for name in ENDED))

        async def all_is_over():
            ended = [result for result in await read(settings, topics.results) if isinstance(result, InjectionResult)]
            reports = [event for event in await _events_of(settings) if isinstance(event, AttemptReported)]
            return len({result.injection_id for result in ended}) >= 6 * len(ENDED) and len(reports) >= 5 * len(ENDED)

        await until(all_is_over, within_s=20)
        await asyncio.sleep(1)


async def _events_of(settings):
    found = []
    for record in await read_raw(settings, catalogue(settings).events):
        try:
            found.append(decode(record.value))
        except UndecodableRecord:
            continue
    return found


def _events(name, at, word):
    if at == 0:
        return [event_of(SessionStarted, name, 0, provider="fake", model="m", call_id=f"call-{name}", user_id="u")]
    seq = 3 * at
    return [
        event_of(TurnStarted, name, seq, speaker="user", known_ms=0),
        event_of(MessageCompleted, name, seq + 1, speaker="user", text=word),
        event_of(TurnEnded, name, seq + 2, speaker="user", known_ms=0),
    ]


def event_of(kind, name, seq, **fields):
    return kind(session_id=name, producer="voice", incarnation=1, seq=seq, at_ms=1_000 + seq, **fields)
