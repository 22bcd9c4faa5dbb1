"""Other rules on recorded calls: what differs, and only that, with what is modelled said."""

from __future__ import annotations

import json
from textwrap import dedent

import pytest
from recorded import call_under, recorded
from typer.testing import CliRunner

from contextengine.cli import app
from contextengine.errors import ConfigurationError, RulesInvalid
from contextengine.replay.counterfactual import Change, try_rules
from contextengine.replay.recording import write
from contextengine.schemas.events import AttemptReported, Tick, UserMuted
from contextengine.schemas.session import dump_state, load_state
from contextengine.testing import Call

RULES = dedent("""\
    rules:
      - name: pets
        when: {keyword: [dog, cat]}
        inject: {strategy: {small talk: ask after the animal}}
        cooldown: 10 s
      - name: booking
        when: {keyword: book}
        inject: {information: {booking: a reference number is needed}}
        criticality: important
        on_failure: {strategy: retry_async, max_attempts: 3, delay: 1500 ms}
        place: turn_boundary
      - name: quiet
        when: {silence: 12 s}
        inject: {strategy: {silence: offer help}}
        cooldown: 20 s
      - name: pace
        when: {every: 30 s}
        inject: {information: {time: "{{ session.minutes }} min"}}
""")


HOME = RULES.replace("[dog, cat]", "dog").replace(
    "rules:\n", "rules:\n  - {name: home, when: {keyword: home}, inject: {information: {address: is known}}}\n"
)


@pytest.fixture
def call() -> Call:
    """Half a minute in which every rule fires, and the provider fails twice."""
    call = call_under(RULES)
    call.provider.fails(times=2)
    call.says("I want to book a table for me and my dog")
    call.says("for how many?", "assistant")
    call.says("two, and the dog")
    call.advance_ms(13_000)
    call.says("the cat stays at home")
    call.advance_ms(20_000)
    call.ends()
    call.advance_ms(1_000)
    return call


def tried(call: Call, rules: str, *, latency_ms: int | None = None):
    """The one session of the call's recording, under other rules."""
    [session] = try_rules([recorded(call, RULES)], rules, latency_ms).sessions
    return session


def differences(session) -> list[tuple[Change, str, list[str]]]:
    """Everything that is not the same: how, of which rule, and in what."""
    return [(one.change, one.either.rule, one.changed) for one in session.injections if one.change is not Change.SAME]


def test_the_rules_that_were_in_force_give_what_was_recorded_to_the_last_digest(call):
    session = tried(call, RULES)
    assert not session.differs
    assert session.now.state == session.before.state
    assert session.now.state.digest == call.digest != ""
    assert [one.either.rule for one in session.injections] == ["pets", "booking", "pets", "quiet", "pets", "pace"]
    assert {one.either.outcome for one in session.injections} == {"delivered", "skipped"}
    assert session.answers == {"attempts as recorded": 7, "timers as recorded": 4, "retries as recorded": 1}


def test_the_same_holds_from_the_middle_of_a_call_with_what_waits_there_in_flight_and_at_rest(call):
    """A recording may begin anywhere, so wherever it is cut the rest must be the same."""
    for cut in range(1, len(call.log)):
        begun = Call.replayed(call.log[:cut], call.rules)
        recording = recorded(call, RULES)
        recording.sessions["call"] = load_state(dump_state(begun.state))
        del recording.records[:cut]
        [session] = try_rules([recording], RULES).sessions
        assert not session.differs
        assert session.now.state.digest == call.digest


def test_a_changed_text_is_told_and_nothing_else_is(call):
    session = tried(call, RULES.replace("offer help", "wait"))
    assert differences(session) == [(Change.CHANGED, "quiet", ["text"])]


def test_a_changed_moment_is_told(call):
    session = tried(call, RULES.replace("turn_boundary", "silence"))
    assert differences(session) == [(Change.CHANGED, "booking", ["moment"])]


def test_what_fires_no_more_and_what_fires_newly_is_told(call):
    assert differences(tried(call, HOME)) == [(Change.ONLY_BEFORE, "pets", []), (Change.ONLY_NOW, "home", [])]


def test_how_often_a_filter_held_back_is_told(call):
    session = tried(call, RULES.replace("20 s", "5 s"))
    assert session.suppressed == {("duplicate", "quiet"): (1, 0)}
    assert differences(session) == [(Change.ONLY_NOW, "quiet", [])]


def test_a_timer_that_never_fired_fires_when_it_is_due(call):
    session = tried(call, RULES.replace("silence: 12 s", "silence: 5 s"))
    [new, *_] = [one.now for one in session.injections if one.change is Change.ONLY_NOW]
    assert (new.rule, new.event, new.outcome) == ("quiet", "Tick", "delivered")
    assert session.answers["timers when due"] > 0
    assert session.answers["attempts delivered by the model"] > 0


def test_an_attempt_that_was_never_made_takes_as_long_as_the_others_or_as_long_as_asked_for(call):
    for latency_ms, takes_ms in ((None, 50), (700, 700)):
        session = tried(call, HOME, latency_ms=latency_ms)
        decided = {result.injection_id: result.decided_ms for made in session.now.decisions for result in made.results}
        sent = {attempt.injection.injection_id: made for made in session.now.decisions for attempt in made.attempts}
        new = sent.keys() - {attempt.injection.injection_id for attempt in call.attempts()}
        assert {decided[name] - sent[name].explanation.now_ms for name in new} == {takes_ms}


def test_what_a_provider_refused_it_refuses_with_the_same_content_only():
    call = call_under(RULES)
    call.provider.refuses()
    call.says("my dog")
    call.advance_ms(1_000)
    assert differences(tried(call, RULES)) == []
    reworded = tried(call, RULES.replace("ask after the animal", "ask for its name"))
    assert differences(reworded) == [(Change.CHANGED, "pets", ["text", "outcome"])]
    renamed = tried(call, RULES.replace("name: pets", "name: animals"))
    assert [one.now.outcome for one in renamed.injections if one.now] == ["refused"]


def test_an_attempt_that_nobody_reported_on_stays_open():
    call = call_under(RULES)
    call.provider.is_gone()
    call.says("my dog")
    call.advance_ms(5_000)
    session = tried(call, RULES.replace("offer help", "wait"))
    assert [one.now.outcome for one in session.injections] == ["open"]
    assert session.answers["attempts that nobody reported on, as recorded"] == 1


def test_rules_that_changed_in_the_call_are_what_was_before_and_the_other_rules_hold_throughout():
    later = RULES.replace("offer help", "wait")
    call = call_under(RULES)
    call.advance_ms(13_000)
    call.change_rules(call_under(later).rules)
    call.says("hm")
    call.advance_ms(13_000)
    recording = recorded(call, RULES, later)
    [session] = try_rules([recording], later).sessions
    assert differences(session) == [(Change.CHANGED, "quiet", ["text"]), (Change.ONLY_BEFORE, "quiet", [])]
    del recording.header.rules[call.rules.rules_hash]
    with pytest.raises(ConfigurationError, match="no rule set"):
        try_rules([recording], later)


def test_feedback_is_dropped_and_what_happened_in_the_conversation_is_kept(call):
    call.send(UserMuted)
    session = tried(call, "rules: []")
    assert not any(decision.accepted for decision in session.now.decisions)
    assert not any(decision.event in (Tick.__name__, AttemptReported.__name__) for decision in session.now.decisions)
    assert session.now.state.muted
    assert session.now.state.messages == session.before.state.messages == 4


def test_a_session_that_the_recording_has_no_beginning_of_is_skipped_by_name(call):
    recording = recorded(call, RULES)
    recording.header.incomplete["call"] = "its beginning is gone"
    trial = try_rules([recording], RULES)
    assert (trial.sessions, trial.skipped) == ([], {"call": "its beginning is gone"})


@pytest.fixture
def files(call, tmp_path):
    write(recorded(call, RULES), tmp_path / "recordings.jsonl")
    (tmp_path / "folder").mkdir()
    write(recorded(call, RULES), tmp_path / "folder" / "one.jsonl.gz")
    (tmp_path / "same.yaml").write_text(RULES)
    (tmp_path / "other.yaml").write_text(RULES.replace("offer help", "wait").replace("20 s", "5 s"))
    return tmp_path


def command(*arguments: object):
    """What `rules try` says."""
    return CliRunner().invoke(app, ["rules", "try", *map(str, arguments)])


def test_the_command_tells_each_difference_and_in_the_end_what_is_modelled(files):
    said = command("--recording", files / "recordings.jsonl", "--rules", files / "other.yaml")
    assert said.exit_code == 0
    assert "  changed      00:15.0  quiet  on Tick tick/rule:quiet/" in said.output
    assert "    - - silence: offer help\n    + - silence: wait\n" in said.output
    assert "  only now     00:29.0  quiet  on Tick tick/rule:quiet/" in said.output
    assert "  held back    quiet  by duplicate: 1 before, 0 now" in said.output
    assert "What is recorded and what is modelled:\n  people and the model say what they said" in said.output
    assert "an attempt that was never made takes 50 ms (the median of 7 recorded ones)" in said.output


def test_a_folder_is_all_of_its_recordings_and_a_script_gets_json(files):
    given = ["--recording", files / "folder", "--recording", files / "recordings.jsonl"]
    told = json.loads(command(*given, "--rules", files / "other.yaml", "--json").stdout)
    assert told["differs"] is True
    assert [session["session"] for session in told["sessions"]] == ["call", "call"]
    assert {one["change"] for one in told["sessions"][0]["injections"]} == {"same", "changed", "only now"}
    assert told["sessions"][0]["suppressed"] == [{"filter": "duplicate", "rule": "quiet", "before": 1, "now": 0}]
    assert told["modelled"]


def test_a_difference_is_an_exit_code_only_when_that_is_asked_for(files):
    given = ["--recording", files / "folder", "--rules"]
    assert command(*given, files / "other.yaml").exit_code == 0
    assert command(*given, files / "other.yaml", "--fail-on-difference").exit_code == 1
    assert command(*given, files / "same.yaml", "--fail-on-difference").exit_code == 0


def test_a_folder_without_recordings_and_rules_with_mistakes_are_refused(files):
    (files / "bad.yaml").write_text("rules: 7")
    (files / "empty").mkdir()
    assert isinstance(command("--recording", files, "--rules", files / "bad.yaml").exception, RulesInvalid)
    empty = command("--recording", files / "empty", "--rules", files / "same.yaml")
    assert isinstance(empty.exception, ConfigurationError)
    assert "no recording in it" in str(empty.exception)
