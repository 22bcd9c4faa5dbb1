"""Every injection ends in exactly one outcome: which one, when, and why."""

from __future__ import annotations

import re

import pytest

from contextengine.engine.candidate import injection_id
from contextengine.engine.decide import FORGET_AFTER_MS
from contextengine.engine.lives import REPORT_GRACE_MS
from contextengine.schemas.events import HAND_OFF, AttemptReported
from contextengine.schemas.injection import AttemptVerdict, Confirmation, Outcome, Verdict
from contextengine.testing import Call

RULES = """
- name: slot
  when: {keyword: [one, two]}
  inject: {information: {said: "{{ evidence.keywords }}"}}
  ttl: 20 s
- name: waits
  when: {keyword: wait}
  inject: {information: {number: "{{ session.messages }}"}}
  place: silence
  quiet: 8 s
  ttl: 20 s
"""


@pytest.fixture
def call(call_with) -> Call:
    return call_with(RULES)


def cancellations(call):
    """What was called back."""
    return [cancelled for decision in call.decisions for cancelled in decision.cancellations]


@pytest.mark.parametrize(
    ("provider_is_told", "outcome"),
    [
        (lambda provider: provider.delivers(), Outcome.DELIVERED),
        (lambda provider: provider.refuses(), Outcome.REFUSED),
        (lambda provider: provider.fails(), Outcome.SKIPPED),
        (lambda provider: provider.fails(transient=False), Outcome.DEAD),
        (lambda provider: provider.is_silent(), Outcome.SKIPPED),
    ],
)
def test_what_the_provider_did_is_the_outcome_and_it_is_told_once(call, provider_is_told, outcome):
    provider_is_told(call.provider)
    call.says("one")
    call.advance_ms(10_000)
    assert call.outcomes() == [outcome]
    assert call.state.outcomes == {outcome: 1}
    assert call.state.held == {}


def test_a_delivered_context_is_live_in_its_slot(call):
    call.says("one")
    call.advance_ms(50)
    [injection] = call.injections()
    assert call.state.live["slot"].injection_id == injection.injection_id
    assert call.state.live["slot"].since_ms == call.now_ms


def test_a_newer_context_of_the_same_slot_supersedes_one_that_waits(call):
    call.says("wait")
    call.says("wait")
    [result] = call.results()
    assert (result.outcome, result.attempts, result.reason) == (Outcome.SUPERSEDED, 0, "a newer context of waits")
    call.advance_ms(10_000)
    assert [injection.context.information for injection in call.injections()] == [{"number": "2"}]
    assert call.outcomes() == [Outcome.SUPERSEDED, Outcome.DELIVERED]


def test_a_newer_context_of_the_same_slot_supersedes_one_that_rests_before_its_retry(call_with):
    call = call_with(RULES + "  on_failure: {strategy: retry_async, max_attempts: 3, delay: 5 s}\n")
    call.provider.fails(times=1)
    call.says("wait")
    call.advance_ms(9_000)
    assert len(call.attempts()) == 1
    call.says("wait")
    call.advance_ms(20_000)
    assert call.outcomes() == [Outcome.SUPERSEDED, Outcome.DELIVERED]
    assert [attempt.attempt for attempt in call.attempts()] == [1, 1]


def test_a_newer_context_calls_back_one_in_flight_and_its_consumer_says_whether_there_was_time(call):
    call.provider.latency_ms = 5_000
    call.says("one")
    call.says("two")
    assert call.results() == []
    [called_back] = cancellations(call)
    assert called_back.injection_id == call.injections()[0].injection_id
    call.advance_ms(6_000)
    assert call.outcomes() == [Outcome.SUPERSEDED, Outcome.DELIVERED]
    assert call.state.live["slot"].injection_id == call.injections()[1].injection_id


def test_one_that_was_called_back_too_late_is_delivered(call):
    """An outcome must not say superseded of what is in the model's context."""
    call.provider.is_gone()
    call.says("one")
    call.says("two")
    for injection in call.injections():
        verdict = AttemptVerdict(
            session_id="call",
            injection_id=injection.injection_id,
            attempt=1,
            verdict=Verdict.DELIVERED,
            provider="p",
        )
        call.append(AttemptReported(session_id="call", verdict=verdict))
    assert call.outcomes() == [Outcome.DELIVERED, Outcome.DELIVERED]


def test_one_that_was_called_back_and_failed_is_superseded_and_not_tried_again(call_with):
    call = call_with(RULES.replace("ttl: 20 s\n- name: waits", "ttl: 20 s\n  criticality: critical\n- name: waits"))
    call.provider.latency_ms = 1_500
    call.provider.is_silent(times=1)
    call.says("one")
    call.advance_ms(1_500)
    call.says("two", lasts_ms=100)
    call.advance_ms(20_000)
    assert call.outcomes() == [Outcome.SUPERSEDED, Outcome.DELIVERED]
    assert [attempt.attempt for attempt in call.attempts()] == [1, 1]


def test_contexts_of_different_slots_leave_each_other_alone(call):
    call.says("wait one")
    call.advance_ms(10_000)
    assert sorted(call.outcomes()) == [Outcome.DELIVERED, Outcome.DELIVERED]


def test_two_rules_that_share_a_slot_supersede_each_other(call_with):
    call = call_with("""
      - {name: first, when: {keyword: one}, inject: {information: {a: one}}, key: mood, place: silence}
      - {name: second, when: {keyword: two}, inject: {information: {a: two}}, key: mood, place: silence}
    """)
    call.says("one")
    call.says("two")
    call.advance_ms(2_000)
    assert call.outcomes("first") == [Outcome.SUPERSEDED]
    assert call.outcomes("second") == [Outcome.DELIVERED]


def test_the_end_of_a_session_cancels_what_waits_and_calls_back_what_is_in_flight(call):
    call.says("wait one")
    call.ends()
    assert [(result.rule, result.outcome, result.reason) for result in call.results()] == [
        ("waits", Outcome.CANCELLED, "the session has ended")
    ]
    assert [cancelled.reason for cancelled in cancellations(call)] == ["the session has ended"]
    call.advance_ms(50)
    assert call.outcomes("slot") == [Outcome.CANCELLED]
    assert call.state.held == {}


def test_what_was_delivered_just_before_the_end_is_delivered(call):
    call.says("one")
    call.advance_ms(50)
    call.ends()
    assert call.outcomes() == [Outcome.DELIVERED]


def test_forgetting_a_session_ends_what_nobody_reported(call):
    call.provider.is_gone()
    call.says("one")
    call.ends()
    call.advance_ms(FORGET_AFTER_MS)
    [result] = call.results()
    assert (result.outcome, result.reason) == (Outcome.EXPIRED, "nobody reported what became of it")
    assert call.forgotten


def test_a_hand_off_that_reports_nothing_expires_after_its_deadline_and_a_grace(call_with):
    """Its VoiceEngine may have died with it: nobody else will ever say."""
    call = call_with(RULES, route=HAND_OFF)
    call.provider.is_gone()
    call.says("one")
    [injection] = call.injections()
    call.advance_ms(20_000 + REPORT_GRACE_MS - 1)
    assert call.results() == []
    call.advance_ms(1)
    [result] = call.results()
    assert (result.outcome, result.confirmation) == (Outcome.EXPIRED, Confirmation.NONE)
    assert result.decided_ms == injection.deadline_ms + REPORT_GRACE_MS


def test_a_hand_off_that_is_reported_in_time_ends_as_reported(call_with):
    call = call_with(RULES, route=HAND_OFF)
    call.provider.latency_ms = 20_000 + REPORT_GRACE_MS - 1
    call.says("one")
    call.advance_ms(60_000)
    assert call.outcomes() == [Outcome.DELIVERED]


def test_a_result_says_what_an_analyst_needs(call):
    call.says("one")
    said_ms = call.now_ms
    call.advance_ms(1_000)
    [result] = call.results()
    assert (result.rule, result.provider, result.criticality, result.attempts) == ("slot", "simulated", "helpful", 1)
    assert (result.trigger_ms, result.decided_ms, result.answered_ms) == (said_ms, said_ms + 50, said_ms + 50)
    assert result.confirmation is Confirmation.IN_CONTEXT


def test_an_attempt_names_where_it_goes_as_the_sessions_start_named_it(call_with):
    call = call_with(RULES, provider="acme", model="m-1", call_id="rtc_1")
    call.says("one")
    destination = call.attempts()[0].destination
    assert (destination.provider, destination.model, destination.route, destination.call_id) == (
        "acme",
        "m-1",
        "attach",
        "rtc_1",
    )


def test_an_injections_id_is_32_hex_characters_and_the_same_whoever_works_it_out(call, call_with):
    call.says("one")
    [injection] = call.injections()
    assert re.fullmatch(r"[0-9a-f]{32}", injection.injection_id)
    assert injection.injection_id == injection_id("call", "slot", "voice/0/2", "slot")
    again = call_with(RULES)
    again.says("one")
    assert again.injections() == call.injections()


def test_an_injections_id_differs_with_session_rule_position_and_slot():
    told = [
        ("s", "r", "p", "k"),
        ("t", "r", "p", "k"),
        ("s", "q", "p", "k"),
        ("s", "r", "o", "k"),
        ("s", "r", "p", "l"),
    ]
    assert len({injection_id(*names) for names in told}) == len(told)
    assert injection_id("a", "b", "c", "d") != injection_id("ab", "", "c", "d")


def test_of_two_rules_that_share_a_slot_and_fire_on_the_same_event_the_one_with_priority_has_it(call_with):
    call = call_with("""
      - {name: minor, when: {keyword: one}, inject: {information: {a: minor}}, key: mood}
      - {name: major, when: {keyword: one}, inject: {information: {a: major}}, key: mood, priority: 9}
    """)
    call.says("one")
    assert [injection.rule for injection in call.injections()] == ["major"]
