"""The audit: it finds nothing where all is well, and names whatever was lost, changed, doubled or put in."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import msgspec
import pytest
from aiokafka import TopicPartition
from broker_log import until, write
from held_calls import ENDED, GOES_ON, WORDS, event_of, installation

from contextengine.errors import ConfigurationError
from contextengine.replay.audit import audit
from contextengine.replay.exact import replay
from contextengine.replay.log import LogReader
from contextengine.replay.recorder import record
from contextengine.replay.span import Edge, Span
from contextengine.schemas.codec import decode, encode
from contextengine.schemas.events import MessageCompleted, SessionStarted
from contextengine.schemas.injection import AttemptVerdict, InjectionAttempt, InjectionResult, RetryRequested
from contextengine.schemas.session import STATE_HEADER, dump_state, load_state
from contextengine.topics.catalogue import catalogue, partition_for

pytestmark = pytest.mark.broker

CALLS = (*ENDED, GOES_ON)


def found(report):
    """What was found, in short."""
    return [(finding.problem, finding.what, finding.field) for finding in report.findings]


@pytest.fixture
def tampered(monkeypatch):
    """Has every reader see a topic through `change`, which gives the records that are there in place of each one."""

    def tamper(topic, change):
        read = LogReader.read

        async def changed(self, partition, bounds):
            async for kept in read(self, partition, bounds):
                for seen in [kept] if partition.topic != topic.name else change(kept):
                    yield seen

        monkeypatch.setattr(LogReader, "read", changed)

    return tamper


def once(wanted, change):
    """Changes the first record that is wanted, and no other."""
    done = []

    def changed(record):
        if done or not wanted(record):
            return [record]
        done.append(record)
        return change(record)

    return changed


def a(kind, **says):
    """Whether a record is of this kind, and says this."""

    def is_one(record):
        if record.value is None:
            return False
        value = decode(record.value)
        return isinstance(value, kind) and all(getattr(value, name) == said for name, said in says.items())

    return is_one


def saying(**says):
    """The record, its value saying something else."""
    return lambda record: [replace(record, value=encode(msgspec.structs.replace(decode(record.value), **says)))]


def lost(_record):
    """Nothing in place of the record."""
    return []


async def test_calls_that_went_well_leave_nothing_to_find(held):
    report = await audit(held)
    assert (report.findings, report.notes, report.unknown) == ([], [], {})
    assert (report.sessions, report.states) == (len(CALLS), len(CALLS))
    assert (report.undecodable, report.dead_letters) == (2, 2 + len(CALLS))
    assert report.injections == report.outcomes == 6 * len(CALLS)
    assert report.attempts == report.verdicts == 8 * len(CALLS)
    assert (report.open, report.copies, report.unjudged) == (0, 0, 0)
    assert report.events > 3 * len(WORDS) * len(CALLS)


@pytest.mark.kafka
async def test_calls_that_went_well_on_apache_kafka_leave_nothing_to_find(held_on_kafka):
    report = await audit(held_on_kafka)
    assert (report.findings, report.sessions, report.outcomes) == ([], len(CALLS), 6 * len(CALLS))


@pytest.mark.parametrize(
    ("topic", "wanted", "change", "expected"),
    [
        ("results", a(InjectionResult), lost, [("missing", "outcome", "")]),
        ("results", a(InjectionResult), saying(reason="another"), [("differs", "outcome", "reason")]),
        (
            "results",
            a(InjectionResult),
            lambda record: [record, *saying(attempts=7)(record)],
            [("differs", "copy of the outcome", "attempts")],
        ),
        (
            "results",
            a(InjectionResult),
            lambda record: [record, *saying(injection_id="invented")(record)],
            [("unexpected", "outcome", "")],
        ),
        ("injections", a(InjectionAttempt, attempt=2), lost, [("missing", "attempt", "")]),
        (
            "injections",
            a(InjectionAttempt),
            saying(attempt=9),
            [("missing", "attempt", ""), ("unexpected", "attempt", "")],
        ),
        ("retry_1s", a(RetryRequested), lost, [("missing", "retry", "")]),
        ("decisions", lambda _: True, lost, [("missing", "decision", "")]),
        ("attempts", a(AttemptVerdict), saying(role="system"), [("differs", "report", "role")]),
        ("attempts", a(AttemptVerdict), lost, [("missing", "verdict", "")]),
        ("dead", lambda record: record.value == b"no event at all", lost, [("missing", "dead letter (decode)", "")]),
        (
            "dead",
            lambda record: record.value == b"no event at all",
            lambda record: [replace(record, value=b"no event at al")],
            [("differs", "dead letter", "value")],
        ),
        ("dead", lambda record: record.value != b"no event at all" and a(InjectionAttempt)(record), lost, None),
    ],
)
async def test_what_was_tampered_with_is_named(held, tampered, topic, wanted, change, expected):
    tampered(getattr(catalogue(held), topic), once(wanted, change))
    expected = expected or [("missing", "dead letter (deliver)", "")]
    assert sorted(found(await audit(held))) == sorted(expected)


async def test_attempts_of_a_session_that_changed_places_are_out_of_order(held, tampered):
    waiting = []

    def second_first(record):
        if record.key == b"ada" and len(waiting) < 2:
            waiting.append(record)
            return waiting[::-1] if len(waiting) == 2 else []
        return [record]

    tampered(catalogue(held).injections, second_first)
    report = await audit(held)
    assert found(report) == [("out of order", "attempt", "")]
    assert report.findings[0].session_id == "ada"


async def test_a_copy_is_no_finding_and_is_counted(held, tampered):
    tampered(catalogue(held).results, lambda record: [record, record])
    report = await audit(held)
    assert (report.findings, report.copies) == ([], report.outcomes)


async def test_a_state_that_is_not_the_replayed_one_is_named_with_its_first_field(held, tampered):
    def changed(record):
        if record.key == b"ada":
            state = load_state(record.value[STATE_HEADER.size :])
            state.messages += 1
            return [replace(record, value=record.value[: STATE_HEADER.size] + dump_state(state))]
        return [record]

    tampered(catalogue(held).sessions_changelog, changed)
    [finding] = (await audit(held)).findings
    assert (finding.problem, finding.what, finding.session_id, finding.field) == ("differs", "state", "ada", "messages")
    assert (finding.expected, finding.found) == (str(len(WORDS)), str(len(WORDS) + 1))


async def test_a_state_that_was_lost_or_is_behind_is_named(held, tampered):
    tampered(catalogue(held).sessions_changelog, lambda record: [] if record.key == b"bob" else [record])
    assert found(await audit(held)) == [("missing", "state", "")]


async def test_a_state_that_nobody_has_made_is_named(held, tampered):
    def zombie(record):
        return [record, replace(record, key=b"zombie")] if record.key == b"bob" else [record]

    tampered(catalogue(held).sessions_changelog, zombie)
    assert found(await audit(held)) == [("unexpected", "state", "")]


async def test_a_state_that_is_none_is_named(held, tampered):
    def broken(record):
        return [replace(record, value=record.value[:-9])] if record.key == b"bob" else [record]

    tampered(catalogue(held).sessions_changelog, broken)
    [finding] = (await audit(held)).findings
    assert (finding.problem, finding.what, finding.session_id) == ("differs", "state", "bob")
    assert "state: Input data was truncated" in finding.found


@pytest.mark.parametrize("start", [1, 12, 25, 40])
async def test_a_log_whose_start_is_gone_is_audited_with_what_compaction_has_left(held, monkeypatch, start):
    """The events before `start` have outlived their retention, and the changelog has the last state of each key only.

    A session that began earlier is judged from the first state on that is left of it.
    """
    topics, read, bounds = catalogue(held), LogReader.read, LogReader.bounds

    async def compacted(self, partition, within):
        kept = [one async for one in read(self, partition, within)]
        if partition.topic == topics.sessions_changelog.name:
            kept = sorted({one.key: one for one in kept}.values(), key=lambda one: one.offset)
        for one in kept:
            yield one

    async def shortened(self, *wanted):
        return {
            partition: between._replace(start=min(start, between.end))
            if partition.topic == topics.events.name
            else between
            for partition, between in (await bounds(self, *wanted)).items()
        }

    monkeypatch.setattr(LogReader, "read", compacted)
    monkeypatch.setattr(LogReader, "bounds", shortened)
    report = await audit(held)
    assert (report.findings, report.unknown) == ([], {})
    assert report.events > 0
    if start < 12:  # later, no session's state is left but that at its end
        recording, _ = await record(held, Span())
        assert replay(recording).divergence is None
    else:
        with pytest.raises(ConfigurationError, match="before the oldest state of their session that is left"):
            await record(held, Span())


async def test_a_session_whose_state_nobody_knows_is_named_and_not_judged(held, monkeypatch, tampered):
    events, number = catalogue(held).events, partition_for(b"ada", held.partitions)
    async with LogReader(held, [events]) as reader:
        partition = TopicPartition(events.name, number)
        whole = (await reader.bounds(events))[partition]
        begins = min([record.offset async for record in reader.read(partition, whole) if record.key == b"ada"])
    tampered(catalogue(held).sessions_changelog, lambda record: [] if record.key == b"ada" else [record])
    bounds = LogReader.bounds

    async def shortened(self, *wanted):
        found = await bounds(self, *wanted)
        return {tp: of._replace(start=begins + 1) if tp == partition else of for tp, of in found.items()}

    monkeypatch.setattr(LogReader, "bounds", shortened)
    report = await audit(held, Span(session_id="ada"))
    assert (report.findings, list(report.unknown)) == ([], ["ada"])
    assert "the changelog has no state of it" in report.unknown["ada"]
    recording, _ = await record(held, Span(session_id="ada"))
    assert list(recording.header.incomplete) == ["ada"]
    assert replay(recording).skipped > 0


async def test_one_session_or_a_part_of_the_log_is_audited_from_the_last_known_state_on(held):
    whole = await audit(held)
    one = await audit(held, Span(session_id="ada"))
    assert (one.findings, one.sessions, one.injections) == ([], 1, 6)
    part = await audit(held, Span(since=Edge(offset=30), until=Edge(offset=50)))
    assert part.findings == []
    assert 0 < part.events < whole.events


async def test_what_is_open_or_not_judged_yet_is_counted_and_no_finding(settings):
    """A call goes on: one injection waits for a provider that does not answer, and the worker has ended."""
    events = catalogue(settings).events
    async with installation(settings, answers=False) as ended:
        await write(settings, events, event_of(SessionStarted, "s", 0, provider="fake", model="m", call_id="c"))
        await write(settings, events, event_of(MessageCompleted, "s", 1, speaker="user", text="hello"))

        async def open_one():
            report = await audit(settings)
            return report if report.open else None

        live = await until(open_one)
        ended.set()
    assert (live.findings, live.injections, live.outcomes, live.attempts) == ([], 1, 0, 1)
    await write(settings, events, event_of(MessageCompleted, "s", 2, speaker="user", text="hello"))
    later = await audit(settings)
    assert later.unjudged >= 1
    assert later.findings == []


async def test_where_no_worker_has_ever_run_nothing_is_judged(settings):
    from contextengine.topics import admin  # noqa: PLC0415

    await admin.apply(settings, "log")
    await write(settings, catalogue(settings).events, event_of(SessionStarted, "s", 0, provider="fake", model="m"))
    report = await asyncio.wait_for(audit(settings), 20)
    assert (report.events, report.unjudged, report.findings) == (0, 1, [])
