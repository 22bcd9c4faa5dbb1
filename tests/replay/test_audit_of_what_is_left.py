"""The audit, of topics in memory: where nothing was judged, some is gone, the engine fails, or a session goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import msgspec
import pytest
from recorded import call_under
from topics_in_memory import TopicsInMemory
from typer.testing import CliRunner

from contextengine.cli import app
from contextengine.engine import decide
from contextengine.replay.audit import audit
from contextengine.replay.span import Edge, Span
from contextengine.rulefile import parse_rules
from contextengine.schemas.codec import encode
from contextengine.schemas.events import AttemptReported, MessageCompleted, PartitionAssigned, RulesChanged
from contextengine.schemas.session import RESERVED
from contextengine.topics.trace import cause_of, caused_by

RULES = """
rules:
  - name: greet
    when: {keyword: hello}
    inject: {information: {said: "hello, {{ session.messages }}"}}
    cooldown: 1 ms
    criticality: important
    on_failure: {strategy: retry_async, max_attempts: 2, delay: 2500 ms}
"""
OTHER_RULES = RULES.replace("keyword: hello", "keyword: [hello, bye]")


@pytest.fixture
def written(monkeypatch):
    """Has the audit read the topics that are made of a log."""

    def write(log, *texts, **kwargs):
        topics = TopicsInMemory(log, *(texts or [RULES]), **kwargs)
        monkeypatch.setattr("contextengine.replay.audit.opened", topics.opened)
        return topics

    return write


@pytest.fixture
def call():
    """Each first attempt fails; the second one is made after two rounds of the delay line and a timer."""
    call = call_under(RULES)
    for _ in range(3):
        call.provider.fails(times=1)
        call.says("hello")
        call.advance_ms(5_000)
    return call


def found(report):
    """What was found, in short."""
    return [(finding.problem, finding.what) for finding in report.findings]


async def audited(topics, span=None):
    return await audit(topics.settings, span)


async def test_all_of_a_call_is_found(call, written):
    report = await audited(written(call.log))
    assert (report.findings, report.notes, report.copies, report.is_clean) == ([], [], 0, True)
    assert (report.sessions, report.injections, report.outcomes, report.attempts, report.verdicts) == (1, 3, 3, 6, 6)


# Nothing judged


@pytest.mark.parametrize(
    ("span", "told"),
    [
        (Span(session_id="nobody"), "session 'nobody' has no event that could be"),
        (Span(since=Edge(offset=5), until=Edge(offset=5)), "that part of the log has no event that could be"),
        (Span(since=Edge(offset=9_999)), "that part of the log has no event that could be"),
    ],
)
async def test_an_audit_of_nothing_has_not_passed(call, written, span, told):
    """Whatever there is of the partition, and of other sessions, before what was asked for."""
    assigned = PartitionAssigned(worker="w", generation=1)
    topics = written([(assigned, call.now_ms), (b"no event", call.now_ms), *call.log])
    changelog = topics.records[topics.topics.sessions_changelog.name]
    for record in changelog[1:-1]:
        if record.key.startswith(RESERVED):
            changelog.remove(record)
    report = await audited(topics, span)
    assert (report.findings, report.is_clean) == ([], False)
    assert report.notes == [f"nothing was judged: {told}"]


async def test_an_audit_of_a_session_of_which_only_its_last_state_is_left_has_not_passed(call, written):
    topics = written(call.log)
    topics.starts[topics.topics.events.name] = 1
    topics.forget_states_before(len(call.log) - 1)
    report = await audited(topics)
    assert (report.findings, report.unknown, report.is_clean) == ([], {}, False)


async def test_an_audit_of_what_no_worker_has_judged_has_not_passed(call, written):
    topics = written(call.log)
    topics.records[topics.topics.sessions_changelog.name].clear()
    report = await audited(topics)
    assert (report.unjudged, report.is_clean) == (len(call.log), False)
    assert "events wait for a worker" in report.notes[0]


def test_the_command_says_that_nothing_was_judged_and_leaves_1(call, written):
    written(call.log)
    run = partial(CliRunner().invoke, app, prog_name="contextengine")
    shown = run(["audit", "--session", "nobody"])
    assert shown.exit_code == 1
    assert shown.stdout.endswith("nothing was judged\n")
    assert "session 'nobody' has no event" in shown.stderr
    as_json = run(["audit", "--session", "nobody", "--json"])
    assert (as_json.exit_code, len(json.loads(as_json.stdout)["notes"])) == (1, 1)
    assert run(["audit", "--session", "call"]).exit_code == 0


# The engine fails


@pytest.fixture
def broken(monkeypatch):
    """Has the engine fail, or not, on what somebody says."""
    arm = decide._arm

    def fail(session, event, *rest):
        if isinstance(event, MessageCompleted):
            raise RuntimeError("the engine is broken")  # noqa: TRY004
        arm(session, event, *rest)

    return lambda is_broken: monkeypatch.setattr(decide, "_arm", fail if is_broken else arm)


async def test_an_event_that_the_engine_fails_on_has_its_dead_letter_and_is_told(call, written, broken):
    broken(True)
    topics = written(call.log[:4])
    report = await audited(topics)
    assert (report.findings, report.dead_letters) == ([], 1)
    assert report.notes == [
        "partition 0: the engine fails on the event at offset 2: RuntimeError: the engine is broken"
    ]
    broken(False)
    assert ("unexpected", "dead letter (decide)") in found(await audited(topics))


async def test_where_only_the_audit_fails_the_dead_letter_is_missing(call, written, broken):
    topics = written(call.log[:4])
    broken(True)
    assert ("missing", "dead letter (decide)") in found(await audited(topics))


# A part of what followed was deleted with the start of its topic


@pytest.mark.parametrize("kind", ["injections", "retry_1s", "results", "decisions", "attempts"])
async def test_what_was_deleted_with_the_start_of_its_topic_is_noted_and_what_came_later_is_missing(
    call, written, kind
):
    topics = written(call.log)
    topic = getattr(topics.topics, kind)
    topics.starts[topic.name] = 1
    report = await audited(topics)
    assert (report.findings, len(report.notes)) == ([], 1)
    assert "1 are not there any more, their topic has lost its start" in report.notes[0]
    last = topics.records[topic.name][-1]
    topics.lose(topic, last)
    [finding] = (await audited(topics)).findings
    assert finding.problem == "missing"
    if kind != "attempts":
        assert finding.offset == cause_of(last.headers)


async def test_of_a_topic_that_was_purged_nothing_is_missing(call, written):
    topics = written(call.log)
    topics.starts[topics.topics.results.name] = 99
    report = await audited(topics)
    assert (report.findings, report.notes) == (
        [],
        ["partition 0: outcome: 3 are not there any more, their topic has lost its start"],
    )


@pytest.mark.parametrize("oldest_is_of_an_event", [True, False])
async def test_a_dead_letter_of_a_later_event_than_the_oldest_one_left_must_be_there(
    call, written, oldest_is_of_an_event
):
    topics = written(call.log)
    dead, ms = topics.topics.dead, call.now_ms
    places = [topics.judge(b"no event", ms + 1_000)]
    if not oldest_is_of_an_event:
        topics.append(dead, b"s", b"an attempt that could not be rendered", ms + 1_500)
    places += [topics.judge(b"no event", ms + after_ms) for after_ms in (2_000, 3_000)]
    letters = topics.records[dead.name]
    if oldest_is_of_an_event:  # then it does not matter when it was judged
        letters[1] = replace(letters[1], timestamp=ms + 60_000)
    topics.starts[dead.name] = 1
    report = await audited(topics)
    assert (report.findings, len(report.notes)) == ([], 1)
    assert "dead letter (decode): 1 are not there any more" in report.notes[0]
    topics.lose(dead, letters[-1])
    [finding] = (await audited(topics)).findings
    assert (finding.problem, finding.what, finding.offset) == ("missing", "dead letter (decode)", places[-1])


# Each cause


async def test_of_a_rest_that_goes_another_round_each_retry_must_be_there_and_no_other(call, written):
    topics = written(call.log)
    retries = topics.topics.retry_1s
    first, second, *_ = topics.records[retries.name]
    assert first.value == second.value
    topics.lose(retries, second)
    [finding] = (await audited(topics)).findings
    assert (finding.problem, finding.what, finding.offset) == ("missing", "retry", cause_of(second.headers))
    for cause in (cause_of(second.headers), cause_of(second.headers) + 1):
        topics.append(retries, second.key, second.value, second.timestamp, [caused_by(cause)])
    [finding] = (await audited(topics)).findings
    assert (finding.problem, finding.what, finding.offset) == ("unexpected", "retry", cause_of(second.headers) + 1)


async def test_what_an_older_worker_wrote_without_saying_why_is_found(call, written):
    topics = written(call.log)
    for name in (topics.topics.retry_1s.name, topics.topics.results.name):
        topics.records[name] = [replace(record, headers=()) for record in topics.records[name]]
    report = await audited(topics)
    assert (report.findings, report.is_clean) == ([], True)


# Where it begins


async def test_a_producer_that_was_restarted_begins_no_session(written):
    call = call_under(RULES)
    call.says("hello")
    call.advance_ms(5_000)
    begins = len(call.log)
    call.send(MessageCompleted, speaker="user", text="hello", incarnation=1)
    call.advance_ms(5_000)
    call.says("hello")
    assert call.log[begins][0].seq == 0
    topics = written(call.log)
    topics.starts[topics.topics.events.name] = begins
    topics.forget_states_before(begins)
    report = await audited(topics)
    assert (report.findings, report.unknown, report.sessions) == ([], {}, 1)
    topics.records[topics.topics.sessions_changelog.name] = [
        record for record in topics.records[topics.topics.sessions_changelog.name] if record.key != b"call"
    ]
    assert list((await audited(topics)).unknown) == ["call"]


@pytest.mark.parametrize("by_states", [True, False])
async def test_rules_that_came_into_force_later_do_not_count_before_they_did(written, by_states):
    """The partition's record is unknown at the log's start; the first explanation there is one of the later rules."""
    call = call_under(RULES)
    call.says("hello")
    call.advance_ms(5_000)
    begins = len(call.log)
    call.says("bye")
    call.change_rules(parse_rules(OTHER_RULES, "rules"))
    changed = len(call.log) - 1
    call.says("bye")
    call.advance_ms(5_000)
    assert isinstance(call.log[changed][0], RulesChanged)
    topics = written(call.log, RULES, OTHER_RULES)
    topics.starts[topics.topics.events.name] = begins
    if by_states:
        topics.starts[topics.topics.decisions.name] = 2
        topics.forget_states_before(begins, of_sessions=False)
    else:
        topics.forget_states_before(changed, of_sessions=False)
    report = await audited(topics)
    assert (report.findings, report.is_clean) == ([], True)
    assert report.decisions > 0


# Verdicts


async def test_a_verdict_that_is_reported_behind_the_part_that_is_judged_is_reported(written):
    """A hand-off ends unheard of; what its consumer says comes later."""
    call = call_under(RULES, route="hand_off")
    call.says("hello")
    call.provider.is_gone()
    call.advance_ms(600_000)
    [attempt] = call.attempts()
    call.provider.delivers()
    _, verdict = call.provider.answer(attempt, call.now_ms)
    call.append(AttemptReported(session_id="call", verdict=verdict))
    topics = written(call.log)
    assert (await audited(topics)).findings == []
    part = Span(until=Edge(offset=len(call.log) - 1))
    report = await audited(topics, part)
    assert (report.findings, report.verdicts) == ([], 1)
    report_event = topics.records[topics.topics.events.name][-1]
    otherwise = msgspec.structs.replace(verdict, role="developer")
    topics.lose(topics.topics.events, report_event)
    topics.append(topics.topics.events, b"call", encode(AttemptReported(session_id="call", verdict=otherwise)), 0)
    assert found(await audited(topics, part)) == [("differs", "report")]
    topics.records[topics.topics.events.name].pop()
    assert found(await audited(topics, part)) == [("missing", "report")]


# States of the version before


async def test_states_that_cannot_hold_all_are_told(call, written):
    report = await audited(written(call.log, state_version=1))
    assert report.findings == []
    [note] = report.notes
    assert "states were written in version 1" in note
