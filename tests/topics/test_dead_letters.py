"""What could not be decoded, decided or delivered: how it is found again, and how it is sent back."""

from __future__ import annotations

import asyncio
import gzip
import os
import signal
import sys
import time
import uuid
from dataclasses import replace

import pytest
from an_attempt import an_attempt
from broker_log import read, read_raw, until, write

from contextengine.adapters.attempt_log import AttemptLog
from contextengine.app import build_app, run_worker
from contextengine.delivery.dead_letter import Failures, Origin, forms, headers
from contextengine.engine.candidate import redriven_id
from contextengine.engine.lives import REDRIVES_REMEMBERED
from contextengine.errors import ConfigurationError, UndecodableRecord
from contextengine.schemas.codec import decode
from contextengine.schemas.dead_letter import Stage
from contextengine.schemas.events import InjectionRedriven, SessionStarted
from contextengine.schemas.injection import FailurePolicy, FailureStrategy, InjectionResult, Outcome
from contextengine.topics import admin
from contextengine.topics.catalogue import catalogue, partition_for
from contextengine.topics.dead_letters import Place, Selection, plan_purge, purge, survey
from contextengine.topics.redrive import CHUNK_LETTERS, Redriver

POLICY = FailurePolicy(FailureStrategy.RETRY_ASYNC, max_attempts=3)


@pytest.fixture
async def applied(settings):
    await admin.apply(settings, uuid.uuid4().hex)
    return settings


def why(settings, number, stage=Stage.DECODE, *, topic="events", partition=0, error="UndecodableRecord", **more):
    """The headers of a letter about the record at offset `number`."""
    origin = Origin(f"{settings.prefix}.{topic}", partition, number, 1_000, f"{settings.prefix}-worker", "w")
    return headers(stage, error, f"about {number}", origin, **more)


def dead_attempt(session_id, name, rule="r"):
    return an_attempt(session_id, name, attempt=3, rule=rule, policy=POLICY)


async def bury_bytes(settings, number, value=b"garbage", **more):
    await write(
        settings,
        catalogue(settings).dead,
        value,
        partition=0,
        headers=why(settings, number, carried=[("traceparent", b"00-1")], **more),
    )


async def bury_injections(settings, *attempts):
    for number, attempt in enumerate(attempts):
        told = why(settings, number, Stage.DELIVER, failures=Failures(attempt.injection, 3), error="Busy")
        await write(settings, catalogue(settings).dead, attempt, headers=told)


async def redrive(settings, letters, *, stop=None, **more):
    redriver = Redriver(settings, redriven_id, by="ada@here", **more)
    return await redriver.redrive(letters, stop or asyncio.Event(), lambda _: None)


async def test_bytes_go_back_unchanged_to_where_they_were_read_and_that_is_recorded(applied):
    await bury_bytes(applied, 7, b"\x00\xffgarbage")
    [letter] = await survey(applied)
    assert (letter.told["stage"], letter.session_id, letter.sent_back) == ("decode", "raw", 0)
    assert (await redrive(applied, [letter])).sent == 1
    [back] = [record for record in await read_raw(applied, catalogue(applied).events) if record.key == b"raw"]
    assert (back.value, back.partition) == (b"\x00\xffgarbage", 0)
    assert dict(back.headers) == {"traceparent": b"00-1", "cx-redrives": b"1", "cx-letter": str(letter.place).encode()}
    [letter] = await survey(applied)
    [recorded] = letter.redrives
    assert (recorded.number, recorded.by, recorded.outcome) == (1, "ada@here", "not buried again")


async def test_what_is_buried_again_keeps_its_count_and_says_which_letter_it_was(applied):
    """And a record that has come back too often is refused: it would only come back again."""
    await bury_bytes(applied, 7)
    for count in range(3):
        letter = (await survey(applied))[-1]
        assert letter.sent_back == count
        assert (await redrive(applied, [letter])).sent == 1
        back = [record for record in await read_raw(applied, catalogue(applied).events) if record.key == b"raw"][-1]
        async with AttemptLog(applied) as attempts:
            await attempts.bury(back, UndecodableRecord("no Avro"), "group")
    first, second, third, last = await survey(applied)
    assert [letter.told.get("letter") for letter in (second, third)] == [str(first.place), str(second.place)]
    assert first.redrives[0].outcome == f"buried again as {second.place}"
    refused = await redrive(applied, [last])
    assert refused.sent == 0
    assert "sent back 3 times already" in refused.refused[last.place]
    assert (await redrive(applied, [last], max_redrives=4)).sent == 1


async def test_a_dead_injection_comes_back_as_an_event_of_its_session_and_its_outcome_is_shown(applied):
    await bury_injections(applied, dead_attempt("s1", "i1"))
    [letter] = await survey(applied)
    assert (letter.provider, letter.rule, letter.session_id) == ("fake", "r", "s1")
    await redrive(applied, [letter])
    [event] = await read_raw(applied, catalogue(applied).events)
    assert (event.key, event.partition) == (b"s1", partition_for(b"s1", applied.partitions))
    assert decode(event.value) == InjectionRedriven(
        session_id="s1", injection=dead_attempt("s1", "i1").injection, number=1
    )
    [letter] = await survey(applied)
    assert (letter.redrives[0].injection_id, letter.redrives[0].outcome) == (redriven_id("i1", 1), "open")
    result = InjectionResult(
        session_id="s1",
        injection_id=redriven_id("i1", 1),
        rule="r",
        outcome=Outcome.EXPIRED,
        provider="fake",
        criticality="helpful",
        attempts=0,
        trigger_ms=1,
        decided_ms=2,
        reason="the session is over",
    )
    await write(applied, catalogue(applied).results, result)
    [letter] = await survey(applied)
    assert letter.redrives[0].outcome == "expired: the session is over"


async def test_the_second_redrive_of_a_dead_injection_is_another_injection(applied):
    await bury_injections(applied, dead_attempt("s1", "i1"))
    for _ in range(2):
        await redrive(applied, await survey(applied))
    [letter] = await survey(applied)
    assert [redriven.injection_id for redriven in letter.redrives] == [redriven_id("i1", 1), redriven_id("i1", 2)]
    assert [event.number for event in await read(applied, catalogue(applied).events)] == [1, 2]


async def test_what_cannot_be_redriven_says_why_and_stops_nothing(applied):
    await bury_bytes(applied, 1, stage=Stage.DECIDE, error="EngineDefect")
    await bury_bytes(applied, 2, stage=Stage.DELIVER)  # whose value is no attempt
    await write(applied, catalogue(applied).dead, b"x", partition=0, headers=why(applied, 3, topic="strange"))
    cut = [("cx-encoding", b"cut"), ("cx-size", b"900"), ("cx-sha256", b"")]
    await write(applied, catalogue(applied).dead, b"x", partition=0, headers=[*why(applied, 4), *cut])
    nowhere = why(applied, 5, partition=applied.partitions)  # of an installation that had more
    await write(applied, catalogue(applied).dead, b"x", partition=0, headers=nowhere)
    await bury_bytes(applied, 6)
    done = await redrive(applied, await survey(applied))
    assert done.sent == 1
    told = " | ".join(done.refused.values())
    for reason in ("Report the defect", "no single-object Avro", "no topic of test-", "900 bytes only the first 1"):
        assert reason in told
    assert f"events has no partition {applied.partitions}" in told


async def test_letters_that_are_gone_before_they_can_be_sent_back_are_counted(applied):
    await bury_bytes(applied, 1)
    [letter] = await survey(applied)
    gone = [replace(letter, place=Place(letter.place.partition, offset)) for offset in (7, 8)]
    done = await redrive(applied, [letter, *gone])
    assert (done.sent, done.gone, done.refused) == (1, 2, {})


async def test_a_letter_that_was_kept_as_gzip_goes_back_whole(applied):
    """It came compressed: as it is, its topic would not take it."""
    value = b"x" * 2_000_000
    [_, (packed, how), _] = forms(value)
    await write(applied, catalogue(applied).dead, packed, partition=0, headers=[*why(applied, 1), *how])
    assert (await redrive(applied, await survey(applied))).sent == 1
    [back] = await read_raw(applied, catalogue(applied).events)
    assert back.value == value


async def test_a_broken_or_monstrous_gzip_is_refused_and_listed_all_the_same(applied):
    packed = [("cx-encoding", b"gzip")]
    await write(applied, catalogue(applied).dead, b"no gzip", partition=0, headers=[*why(applied, 1), *packed])
    bomb = gzip.compress(bytes(40_000_000))
    await write(applied, catalogue(applied).dead, bomb, partition=0, headers=[*why(applied, 2), *packed])
    done = await redrive(applied, await survey(applied))
    assert [reason.split(":")[0] for reason in done.refused.values()] == [
        "it is no gzip",
        "it has more than 16777216 bytes",
    ]


async def test_letters_are_found_by_what_they_are_about_and_a_copy_is_no_other_letter(applied):
    await bury_injections(applied, dead_attempt("s1", "i1", rule="a"), dead_attempt("s2", "i2", rule="b"))
    for _ in range(2):  # whoever buried it was killed before it could commit
        await bury_bytes(applied, 7)
    await write(applied, catalogue(applied).dead, b"whatever somebody else writes there", partition=0)
    everything = await survey(applied)
    assert len(everything) == 3
    middle_ms = everything[1].buried_ms

    async def count(**wanted):
        return len(await survey(applied, Selection(**wanted)))

    assert await count(stage="deliver") == 2
    assert await count(error_class="Busy", session_id="s1") == 1
    assert await count(rule="b", provider="fake") == 1
    assert await count(provider="other") == 0
    assert await count(until_ms=middle_ms) + await count(since_ms=middle_ms) == 3
    assert await count(places=frozenset({everything[0].place})) == 1


async def test_a_redrive_that_is_stopped_goes_on_where_it_was(applied):
    await bury_injections(applied, *(dead_attempt("s1", f"i{n}") for n in range(30)))
    stop = asyncio.Event()
    redriver = Redriver(applied, redriven_id, by="ada", rate=100)
    done = await redriver.redrive(await survey(applied), stop, lambda _: stop.set())
    assert (done.sent, done.stopped) == (10, True)
    rest = [letter for letter in await survey(applied) if not letter.redrives]
    assert (await redrive(applied, rest)).sent == 20
    names = [event.injection.injection_id for event in await read(applied, catalogue(applied).events)]
    assert names == [f"i{n}" for n in range(30)]


async def test_however_fast_a_redrive_is_a_session_remembers_all_that_a_kill_sends_twice(applied, monkeypatch):
    chunks = []

    async def send(_self, _producer, chunk, _done):
        chunks.append(len(chunk))

    monkeypatch.setattr(Redriver, "_send", send)
    await bury_injections(applied, *(dead_attempt("s1", f"i{n}") for n in range(CHUNK_LETTERS + 1)))
    await redrive(applied, await survey(applied), rate=10_000)
    assert chunks == [CHUNK_LETTERS, 1]
    assert CHUNK_LETTERS < REDRIVES_REMEMBERED


async def test_a_redrive_that_is_killed_midway_and_repeated_loses_nothing_and_doubles_nothing(applied):
    """What was sent and not recorded is sent again under the same id, and `decide` knows it for a copy."""
    names = [f"s{n}" for n in range(60)]
    start = {"producer": "v", "incarnation": 1, "seq": 0, "at_ms": 1, "provider": "fake", "model": "m", "call_id": "c"}
    await write(applied, catalogue(applied).events, *(SessionStarted(session_id=name, **start) for name in names))
    await bury_injections(applied, *(dead_attempt(name, f"i-{name}") for name in names))
    letters = await survey(applied)
    command = [sys.executable, "-m", "contextengine", "deadletters", "redrive", "--all", "--yes"]
    environ = os.environ | {
        "CONTEXTENGINE_BROKER": applied.broker,
        "CONTEXTENGINE_PREFIX": applied.prefix,
        "CONTEXTENGINE_PARTITIONS": str(applied.partitions),
        "CONTEXTENGINE_EMBEDDED": str(applied.embedded),
    }

    async def sent():
        return len(await read_raw(applied, catalogue(applied).events)) - len(names)

    killed = await asyncio.create_subprocess_exec(*command, "--rate", "40", env=environ)
    await until(lambda: any_sent(sent))
    killed.send_signal(signal.SIGKILL)
    await killed.wait()
    assert 0 < await sent() < len(names)
    await redrive(applied, letters[:1])  # as if it had been killed before it recorded this one
    again = await asyncio.create_subprocess_exec(*command, env=environ)
    assert await again.wait() == 0
    assert await sent() > len(names)  # copies among them
    assert all(len(letter.redrives) == 1 for letter in await survey(applied))
    stop, worker = asyncio.Event(), build_app(applied)
    running = asyncio.create_task(run_worker(applied, None, stop, worker))

    async def attempts():
        found = [attempt.injection.injection_id for attempt in await read(applied, catalogue(applied).injections)]
        return found if len(found) >= len(names) else None

    made = await until(attempts, 30)
    await asyncio.sleep(0.5)  # a doubled one would follow
    made = await attempts()
    stop.set()
    await running
    assert sorted(made) == sorted(redriven_id(f"i-{name}", 1) for name in names)


async def any_sent(sent):
    return await sent() > 0


async def test_a_thousand_letters_go_back_at_the_rate_that_was_asked_for(applied):
    topics = catalogue(applied)
    async with AttemptLog(applied) as attempts:
        writing = [
            attempts.write(topics.dead, n % 4, b"raw", b"garbage %d" % n, why(applied, n, partition=n % 4))
            for n in range(1_000)
        ]
        await asyncio.gather(*writing)
    letters = await survey(applied)
    started = time.monotonic()
    done = await redrive(applied, letters, rate=500)
    took_s = time.monotonic() - started
    assert (done.sent, done.refused) == (1_000, {})
    assert 1.9 <= took_s < 5
    back = [record.value for record in await read_raw(applied, topics.events)]
    assert sorted(back) == sorted(b"garbage %d" % n for n in range(1_000))
    assert all(letter.redrives for letter in await survey(applied))


async def test_kafka_deletes_the_letters_before_a_time_and_the_embedded_broker_says_that_it_cannot(applied):
    for number in range(3):
        await bury_bytes(applied, number)
        await asyncio.sleep(0.01)
    letters = await survey(applied)
    await redrive(applied, letters[:1])
    planned = await plan_purge(applied, letters[2].buried_ms)
    assert [(each.partition, each.letters, each.never_redriven) for each in planned] == [(0, 2, 1)]
    if applied.embedded:
        with pytest.raises(ConfigurationError, match="embedded broker deletes no records"):
            await purge(applied, planned)
    else:
        await purge(applied, planned)
        assert [letter.place for letter in await survey(applied)] == [letters[2].place]
        await bury_bytes(applied, 4)
        assert len(await survey(applied)) == 2
