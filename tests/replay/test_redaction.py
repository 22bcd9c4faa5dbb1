"""A redacted recording says nothing that people said, names nobody, and is judged as the original was."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import msgspec
import pytest
from recorded import call_under, recorded

from contextengine.replay.exact import accepted, replay
from contextengine.replay.recording import LogRecord, Recording, files_in, read, write
from contextengine.replay.redaction import RedactionFailed, redacted
from contextengine.schemas.decision import DecisionMade
from contextengine.schemas.events import (
    AgentHandover,
    AttemptReported,
    AudioChunkReceived,
    ContextRequested,
    EmotionShifted,
    ErrorOccurred,
    MessageCompleted,
    SessionEnded,
    SessionStarted,
    ToolCallEnded,
    ToolCallStarted,
    TopicChanged,
)
from contextengine.schemas.injection import InjectionResult
from contextengine.schemas.session import dump_state, load_state
from contextengine.testing import Call

RULES = dedent("""\
    rules:
      - name: cancelling
        when: {keyword: [cancel, "money back"]}
        inject:
          information: {customer: "{{ facts.full_name }} ({{ session.user }})", said: "{{ said }}"}
        trust: untrusted
        criticality: important
        on_failure: {strategy: retry_async, max_attempts: 2, delay: 200 ms}
      - name: gold
        when: {every_messages: 2}
        inject: {strategy: {status: "{% if facts.tier == 'gold' %}be generous{% else %}be brief{% endif %}"}}
        cooldown: 1 h
      - name: upset
        when: {all: [{emotion: [anger]}, {keyword: [refund]}]}
        inject: {strategy: {tone: calm}}
        place: turn_boundary
      - name: waiting
        when: {keyword: Lisbon}
        inject: {information: {said before: "{{ history[0].text }}"}}
        trust: untrusted
        place: silence
        quiet: 1 h
        ttl: 2 h
""")
SECRETS = [
    *("Katharina", "Wolkenstein", "k.wolkenstein@example.org", "example", "+49 171 5550199", "5550199", "7Q4-XK"),
    *(
        "Zanzibar",
        "crm_lookup_tool",
        "crm_call_77",
        "user-8812",
        "call_9931",
        "rtc_44771",
        "acme_voice",
        "acme-realtime",
    ),
    *("supervisor_bot", "stored_in_bucket", "billing_question", "timeout_at_host", "db7.internal", "homesick"),
    *("AcmeProviderError", "peer_10_0_0_7", "msg_7781", "diagnosis", "melanoma", "ftacme"),
    *("left_angrily", "req_3141", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "Maria", "Ångström"),
]
"""Planted in the call; none may be found in what leaves the house."""


@pytest.fixture
def call() -> Call:
    """A call that is full of names."""
    call = call_under(RULES, started=False, session_id="call_9931")
    call.send(
        SessionStarted,
        producer="acme_voice",
        provider="acme-realtime",
        model="ftacme",
        call_id="rtc_44771",
        user_id="user-8812",
        facts={"full_name": "Katharina Wolkenstein", "tier": "gold", "diagnosis": "melanoma", "note": "Zanzibar"},
    )
    voice = {"producer": "acme_voice"}
    call.provider.fails(times=1)
    call.send(MessageCompleted, **voice, speaker="user", text="Hi, Katharina Wolkenstein, I want to CANCEL 7Q4-XK!")
    call.advance_ms(100)
    call.send(AudioChunkReceived, **voice, speaker="user", duration_ms=10, reference="stored_in_bucket")
    call.send(ToolCallStarted, **voice, tool="crm_lookup_tool", tool_call_id="crm_call_77")
    call.send(ToolCallEnded, **voice, tool="crm_lookup_tool", tool_call_id="crm_call_77")
    call.send(
        MessageCompleted, **voice, speaker="assistant", text="Your number, Maria Ångström?", message_id="msg_7781"
    )
    call.send(TopicChanged, **voice, topic="billing_question")
    call.send(EmotionShifted, **voice, speaker="user", emotion="homesick")
    call.send(AgentHandover, **voice, agent="supervisor_bot")
    call.send(ContextRequested, **voice, request_id="req_3141", query="where is Zanzibar?")
    call.send(ErrorOccurred, **voice, stage="billing_question", code="timeout_at_host", message="db7.internal is away")
    call.says("I am furious, I want my refund, call +49 171 5550199 or k.wolkenstein@example.org")
    call.says("my money\nBACK! I am not angry, refund it")
    call.says("from Lisbon to Zanzibar")
    call.advance_ms(3_000)
    call.send(SessionEnded, **voice, reason="left_angrily")
    call.advance_ms(1_000)
    return call


def recording_of(call: Call) -> Recording:
    """As `contextengine record` would have made it: with a trace, a bad record, and what followed."""
    recording = recorded(call, RULES)
    for at, of in enumerate(recording.records):
        event = of.event
        if isinstance(event, AttemptReported):
            told = {"error_class": "AcmeProviderError", "message": "peer_10_0_0_7 hung up"}
            event = msgspec.structs.replace(event, verdict=msgspec.structs.replace(event.verdict, **told))
        recording.records[at] = msgspec.structs.replace(of, event=event, traceparent=SECRETS[-3])
    last = recording.records[-1]
    recording.records.append(
        LogRecord(partition=0, offset=last.offset + 1, appended_ms=last.appended_ms, key=b"user-8812", value=b"Maria")
    )
    return accepted(recording)


def text_of(recording: Recording, folder: Path) -> str:
    """What the recording's file holds."""
    write(recording, folder / "redacted.jsonl")
    return (folder / "redacted.jsonl").read_text()


def outputs(recording: Recording, kind: type) -> list:
    """What followed, of this kind."""
    return [output for of in recording.records for output in of.outputs if isinstance(output, kind)]


def test_nothing_that_was_planted_is_left_and_it_still_replays(call, tmp_path):
    original = recording_of(call)
    before = text_of(original, tmp_path)
    assert [secret for secret in SECRETS if secret not in before] == []
    after = redacted(original)
    found = text_of(after, tmp_path)
    assert [secret for secret in SECRETS if secret.casefold() in found.casefold()] == []
    assert after.header.redacted
    assert replay(read(tmp_path / "redacted.jsonl")).divergence is None


def test_the_same_rules_fire_and_contexts_end_alike(call):
    original = recording_of(call)
    after = redacted(original)

    def course(recording: Recording) -> list:
        fired = [[told.rule for told in made.fired] for made in outputs(recording, DecisionMade)]
        ended = [(told.rule, told.outcome, told.attempts) for told in outputs(recording, InjectionResult)]
        return [fired, ended]

    assert course(after) == course(original)
    assert {told.rule for told in outputs(after, InjectionResult)} == {"cancelling", "gold", "upset", "waiting"}
    assert [of.appended_ms for of in after.records] == [of.appended_ms for of in original.records]


def test_words_that_rules_listen_for_are_kept_and_others_keep_their_shape(call):
    [first, *_] = [of.event for of in redacted(recording_of(call)).records if isinstance(of.event, MessageCompleted)]
    assert re.fullmatch(
        r"[A-Z][a-z], [A-Z][a-z]{8} [A-Z][a-z]{10}, [A-Z] [a-z]{4} [a-z]{2} CANCEL \d[A-Z]\d-[A-Z]{2}!", first.text
    )


def test_what_is_the_same_is_renamed_alike(call):
    after = redacted(recording_of(call))
    started = next(of.event for of in after.records if isinstance(of.event, SessionStarted))
    texts = [made.text for decision in outputs(after, DecisionMade) for made in decision.accepted]
    assert f"{started.facts['full_name']} ({started.user_id})" in texts[0]
    assert started.facts["tier"] == "gold"
    assert {of.event.session_id for of in after.records if hasattr(of.event, "session_id")} == {started.session_id}


def test_the_salt_is_another_each_time_and_a_given_one_gives_the_same(call):
    original = recording_of(call)
    assert redacted(original).records != redacted(original).records
    assert redacted(original, b"salt").records == redacted(original, b"salt").records


def test_a_session_that_began_before_is_redacted_with_all_that_it_remembers(call, tmp_path):
    """Also what waits in its state, is on its way, or rests."""
    original = recording_of(call)
    for cut in range(1, len(call.log), 4):
        begun = Call.replayed([(of.event, of.appended_ms) for of in original.records[:cut]], call.rules)
        recording = Recording(original.header, original.partitions, records=original.records[cut:])
        recording.sessions["call_9931"] = load_state(dump_state(begun.state))
        after = redacted(accepted(recording))
        assert replay(after).divergence is None
        found = text_of(after, tmp_path).casefold()
        assert [secret for secret in SECRETS if secret.casefold() in found] == []


def test_a_recording_that_is_not_judged_as_it_was_is_refused(call):
    original = recording_of(call)
    of = original.records[1]
    original.records[1] = msgspec.structs.replace(of, outputs=())
    with pytest.raises(RedactionFailed, match="before anything is redacted, the recording is not judged as it was"):
        redacted(original)


def test_a_rule_that_depends_on_what_is_redacted_is_told_and_nothing_is_written():
    """A template that counts on the text itself: nobody can redact it and keep what follows."""
    rules = dedent("""\
        rules:
          - name: numbers
            when: {every_messages: 1}
            inject: {information: {half: "{{ 1 // (said | select('equalto', '4') | list | length) }}"}}
            trust: untrusted
    """).replace("'4'", "'\\x34'")
    call = call_under(rules)
    call.says("4 of us")
    recording = accepted(recorded(call, rules))
    with pytest.raises(RedactionFailed, match="because a rule depends on what is redacted"):
        redacted(recording)


def test_a_session_that_cannot_be_replayed_is_left_out(call, tmp_path):
    original = recording_of(call)
    original.header.incomplete["call_9931"] = "Maria knows"
    after = redacted(original)
    assert not any(hasattr(of.event, "session_id") for of in after.records)
    assert "Maria" not in text_of(after, tmp_path)


FILES = [file for file in files_in([Path(__file__).parents[1] / "sessions"]) if not file.name.startswith("brain-")]
"""Rules that judge by what words mean are another matter: without the words they judge otherwise."""


@pytest.mark.parametrize("file", FILES[::5], ids=lambda file: file.name)
def test_a_real_recorded_session_is_judged_alike_when_it_is_redacted(file):
    after = redacted(read(file))
    assert replay(after).divergence is None
