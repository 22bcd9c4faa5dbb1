"""A recording is judged again: the same follows, or the first field that differs is named."""

from __future__ import annotations

import json

import msgspec
import pytest
from held_calls import ENDED, GOES_ON
from recorded import call_under, recorded
from typer.testing import CliRunner

from contextengine import __version__
from contextengine.cli import app
from contextengine.engine import decide
from contextengine.errors import ConfigurationError, EngineDefect
from contextengine.replay.exact import accepted, cautions, replay
from contextengine.replay.recorder import record
from contextengine.replay.recording import LogRecord, sessions_of, write
from contextengine.replay.span import Edge, Span
from contextengine.schemas.codec import encode
from contextengine.schemas.events import MessageCompleted, PartitionAssigned, TurnEnded
from contextengine.schemas.injection import InjectionAttempt, InjectionResult

RULES = """
rules:
  - name: greet
    when: {keyword: hello}
    inject: {information: {said: "hello, {{ session.messages }}"}}
  - name: soon
    when: {silence: 5 s}
    inject: {information: {said: "are you there?"}}
"""


@pytest.fixture
def recording():
    """A call in which two rules fire, recorded with what followed."""
    call = call_under(RULES)
    call.says("hello")
    call.advance_ms(20_000)
    call.says("good bye")
    call.ends()
    call.advance_ms(60_000)
    return accepted(recorded(call, RULES))


def changed(recording, wanted, change):
    """Change the first record of which `wanted` holds; returns its place."""
    at = next(at for at, of in enumerate(recording.records) if wanted(of))
    recording.records[at] = change(recording.records[at])
    return at


def with_outputs(change):
    """A record whose outputs are changed."""
    return lambda of: msgspec.structs.replace(of, outputs=tuple(change(list(of.outputs))))


def sends(of):
    return any(isinstance(output, InjectionAttempt) for output in of.outputs)


def ends(of):
    return any(isinstance(output, InjectionResult) for output in of.outputs)


def test_a_recording_is_judged_to_what_it_says_followed(recording):
    done = replay(recording)
    assert done.divergence is None
    assert (done.sessions, done.injections, done.outcomes) == (1, 2, 2)
    assert accepted(recording) == recording


def test_a_word_that_was_said_otherwise_is_a_divergence_at_that_event_in_why_it_was_decided(recording):
    def mumbled(of):
        return msgspec.structs.replace(of, event=msgspec.structs.replace(of.event, text="hullo"))

    at = changed(recording, lambda of: isinstance(of.event, MessageCompleted), mumbled)
    divergence = replay(recording).divergence
    assert (divergence.offset, divergence.event) == (at, "MessageCompleted")
    assert divergence.position == recording.records[at].event.position
    assert (divergence.what, divergence.rule, divergence.after) == ("decision", "greet", "nothing")


def test_other_rules_are_a_divergence_in_the_field_that_they_change(recording):
    [(name, text)] = recording.header.rules.items()
    recording.header.rules[name] = text.replace("hello, ", "hi, ")
    divergence = replay(recording).divergence
    assert (divergence.rule, divergence.field) == ("greet", "accepted[0].text")
    assert ("hello, 1" in divergence.before, "hi, 1" in divergence.after) == (True, True)


@pytest.mark.parametrize(
    ("wanted", "change", "what", "rule", "field", "before", "after"),
    [
        (
            ends,
            lambda outputs: [
                msgspec.structs.replace(one, attempts=7) if isinstance(one, InjectionResult) else one for one in outputs
            ],
            *("outcome", "greet", "attempts", "7", "1"),
        ),
        (sends, lambda outputs: outputs[1:], "attempt", "greet", "all of it", "nothing", None),
        (sends, lambda outputs: [outputs[0], *outputs], "attempt", "greet", "all of it", None, "nothing"),
        (
            sends,
            lambda outputs: [*outputs[:-1], msgspec.structs.replace(outputs[-1], digest="0")],
            *("decision", "", "digest", "0", None),
        ),
    ],
)
def test_what_followed_otherwise_is_named_with_both(recording, wanted, change, what, rule, field, before, after):
    at = changed(recording, wanted, with_outputs(change))
    divergence = replay(recording).divergence
    assert (divergence.offset, divergence.what, divergence.rule, divergence.field) == (at, what, rule, field)
    assert before in (None, divergence.before)
    assert after in (None, divergence.after)


@pytest.fixture
def broken(monkeypatch, recording):  # noqa: ARG001  which is made before
    """An engine that fails on the end of a turn, of which nothing follows otherwise."""
    arm = decide._arm

    def fail(session, event, *rest):
        arm(session, event, *rest)
        if isinstance(event, TurnEnded):
            raise RuntimeError("the engine is broken")  # noqa: TRY004

    monkeypatch.setattr(decide, "_arm", fail)


@pytest.mark.usefixtures("broken")
def test_an_event_that_the_engine_fails_on_is_a_divergence_whatever_followed(recording):
    at = next(at for at, of in enumerate(recording.records) if isinstance(of.event, TurnEnded))
    assert recording.records[at].outputs == ()
    divergence = replay(recording).divergence
    assert (divergence.offset, divergence.what, divergence.before) == (at, "defect", "nothing")
    assert (divergence.position, divergence.after) == ("voice/0/3", "RuntimeError: the engine is broken")
    with pytest.raises(EngineDefect, match="the engine is broken"):
        accepted(recording)


@pytest.mark.usefixtures("broken")
def test_a_file_that_the_engine_fails_on_is_not_accepted_and_the_command_leaves_1(recording, tmp_path):
    file = tmp_path / "call.jsonl"
    write(recording, file)
    before = file.read_bytes()
    run = CliRunner().invoke(app, ["replay", str(tmp_path), "--accept", "--json"])
    assert run.exit_code == 1
    told = json.loads(run.stdout)
    assert (told["files"], told["rewritten"], list(told["defects"])) == (1, [], [str(file)])
    assert "not rewritten: session call, TurnEnded voice/0/3" in run.stderr
    assert file.read_bytes() == before


def test_it_stops_at_the_first_divergence(recording):
    first = changed(recording, ends, with_outputs(lambda _: []))
    last = len(recording.records) - 1
    recording.records[last] = with_outputs(lambda _: [recording.records[0]])(recording.records[last])
    assert replay(recording).divergence.offset == first


def test_bytes_that_were_no_event_and_are_one_now_are_a_divergence(recording):
    hello = next(of.event for of in recording.records if isinstance(of.event, MessageCompleted))
    read_now = LogRecord(partition=0, offset=99, appended_ms=0, key=b"call", value=encode(hello))
    recording.records += [msgspec.structs.replace(read_now, offset=98, value=b"no event"), read_now]
    divergence = replay(recording).divergence
    assert (divergence.offset, divergence.what, divergence.before) == (99, "record", "no event")


def test_another_engine_and_a_session_of_unknown_state_are_told(recording):
    recording.records.insert(
        0,
        LogRecord(
            partition=0, offset=-1, appended_ms=0, event=PartitionAssigned(worker="w", generation=1, engine="0.0.1")
        ),
    )
    recording.header.incomplete["call"] = "nobody knows its state"
    assert cautions(recording) == [
        f"recorded with engine 0.0.1; this is {__version__}",
        "session call is not replayed: nobody knows its state",
    ]
    done = replay(recording)
    assert (done.events, done.divergence) == (0, None)
    assert done.skipped > 5


def test_a_recording_without_its_rules_cannot_be_judged(recording):
    recording.header.rules.clear()
    with pytest.raises(ConfigurationError, match="no rule set"):
        replay(recording)


@pytest.mark.broker
async def test_everything_that_was_recorded_of_a_log_is_judged_the_same(held):
    recording, unjudged = await record(held, Span())
    assert (unjudged, cautions(recording)) == (0, [])
    done = replay(recording)
    assert (done.divergence, done.sessions) == (None, len(ENDED) + 1)
    assert done.injections == done.outcomes == 6 * done.sessions
    assert sum(of.event is None for of in recording.records) == 2
    assert len(recording.header.rules) == 2
    assert accepted(recording) == recording


@pytest.mark.broker
async def test_one_session_recorded_is_judged_the_same(held):
    recording, _ = await record(held, Span(session_id="ada"))
    done = replay(recording)
    assert (sessions_of(recording), done.divergence, done.injections, done.outcomes) == (["ada"], None, 6, 6)


@pytest.mark.broker
async def test_a_part_begins_with_the_states_that_there_were_then(held):
    """Wherever it is cut: the session that goes on begins with its state, and the same follows."""
    with_state = set()
    for since in range(0, 60, 4):
        recording, _ = await record(held, Span(session_id=GOES_ON, since=Edge(offset=since)))
        assert replay(recording).divergence is None
        with_state.add(bool(recording.sessions))
    assert with_state == {False, True}


@pytest.mark.broker
async def test_there_is_no_recording_of_nothing(held):
    with pytest.raises(ConfigurationError, match="session 'nobody' has no event"):
        await record(held, Span(session_id="nobody"))
