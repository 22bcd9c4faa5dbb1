"""A worker that is killed in the middle of traffic and started again: nothing lost, nothing doubled."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections import Counter

from broker_log import logs_by_session, read, read_raw, until

from contextengine.rulefile import parse_rules
from contextengine.schemas.events import MessageCompleted, SessionStarted, TurnEnded, TurnStarted
from contextengine.schemas.injection import InjectionAttempt
from contextengine.schemas.session import STATE_HEADER, Session, load_state
from contextengine.testing import Call
from contextengine.topics import admin
from contextengine.topics.catalogue import catalogue
from contextengine.topics.publisher import Publisher

RULES = """
rules:
  - name: pong
    when: {keyword: ping}
    inject: {information: {answer: "pong {{ session.messages }}"}}
    ttl: 10 min
  - name: tenth
    when: {every_messages: 10}
    inject: {strategy: {count: "{{ session.messages }}"}}
    ttl: 10 min
"""
SESSIONS = 20
MESSAGES = 200
PINGED_EVERY = 5


def start_worker(settings, rules_file, log_file):
    environment = {**os.environ, "CONTEXTENGINE_EMBEDDED": "true", "CONTEXTENGINE_PARTITIONS": str(settings.partitions)}
    command = [sys.executable, "-m", "contextengine", "worker", "--rules", str(rules_file), "--port", "0"]
    command += ["--broker", settings.broker, "--prefix", settings.prefix]
    with log_file.open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


async def talk(publisher):
    """Every session's conversation, some of it with words that fire, for about twenty-five seconds."""
    sessions = [publisher.session(f"session-{number}") for number in range(SESSIONS)]
    for session in sessions:
        session.publish(SessionStarted, provider="nobody", model="none")
    for message in range(1, MESSAGES + 1):
        for session in sessions:
            said = "ping" if message % PINGED_EVERY == 0 else "and so on"
            session.publish(TurnStarted, speaker="user", known_ms=0)
            session.publish(MessageCompleted, speaker="user", text=said)
            session.publish(TurnEnded, speaker="user", known_ms=0)
        await asyncio.sleep(0.12)
    assert await publisher.flush() == 0


async def states(settings):
    """What the changelog says of every session: for each key the greatest version counts."""
    greatest: dict[bytes, bytes] = {}
    size = STATE_HEADER.size
    for record in await read_raw(settings, catalogue(settings).sessions_changelog):
        if record.value is not None and record.value[:size] >= greatest.get(record.key, b"")[:size]:
            greatest[record.key] = record.value
    return {key: load_state(value[size:]) for key, value in greatest.items()}


async def test_a_worker_killed_twice_in_traffic_loses_no_injection_and_doubles_no_state(embedded_settings, tmp_path):
    """After two kills every injection is there under its one id, and every state equals a replay of the log."""
    rules_file = tmp_path / "rules.yaml"
    rules_file.write_text(RULES)
    await admin.apply(embedded_settings, uuid.uuid4().hex)
    worker = start_worker(embedded_settings, rules_file, tmp_path / "worker.log")

    async def injected(more_than):
        return len(await read_raw(embedded_settings, catalogue(embedded_settings).injections)) > more_than

    async def all_applied():
        found = await states(embedded_settings)
        return sum(isinstance(state, Session) and state.messages == MESSAGES for state in found.values()) == SESSIONS

    try:
        async with Publisher(embedded_settings, name="test") as publisher:
            talking = asyncio.create_task(talk(publisher))
            seen = 0
            for _ in range(2):
                await until(lambda seen=seen: injected(more_than=seen + 50), within_s=30)
                worker.send_signal(signal.SIGKILL)
                worker.wait()
                seen = len(await read_raw(embedded_settings, catalogue(embedded_settings).injections))
                worker = start_worker(embedded_settings, rules_file, tmp_path / "worker.log")
            assert not talking.done(), "the kills fell after the traffic"
            await talking
        await until(all_applied, within_s=60)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0
    finally:
        worker.kill()

    attempts = [
        a
        for a in await read(embedded_settings, catalogue(embedded_settings).injections)
        if isinstance(a, InjectionAttempt)
    ]
    copies = Counter((a.injection.injection_id, a.attempt) for a in attempts)
    rules = parse_rules(RULES, "rules")
    calls = {name: Call.replayed(log, rules) for name, log in (await logs_by_session(embedded_settings)).items()}
    made = [attempt for call in calls.values() for attempt in call.attempts()]
    expected = {(attempt.injection.injection_id, attempt.attempt) for attempt in made}
    assert len(expected) == SESSIONS * (MESSAGES // PINGED_EVERY + MESSAGES // 10)
    assert set(copies) == expected
    print(f"{len(expected)} injections, {len(attempts) - len(copies)} copies after two kills")  # noqa: T201
    found = await states(embedded_settings)
    for session_id, call in calls.items():
        assert found[session_id.encode()].digest == call.digest
        assert found[session_id.encode()].messages == MESSAGES
        assert found[session_id.encode()].duplicates == call.state.duplicates
