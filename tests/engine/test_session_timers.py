"""Timers: a Tick acts when its time has come, on a timer that is set, and once."""

from __future__ import annotations

import pytest

from contextengine.engine.decide import ABANDONED_AFTER_MS, FORGET_AFTER_MS, FORGET_TIMER
from contextengine.schemas.events import (
    AttemptReported,
    MessageCompleted,
    RetryDue,
    SessionEnded,
    SessionStarted,
    Tick,
    UserMuted,
)
from contextengine.schemas.injection import AttemptVerdict, Outcome, Verdict
from contextengine.testing import Call

HOUR_MS = 3_600_000
TIMED = """
- name: minute
  when: {conversation_reaches: 1 min}
  inject: {information: {note: a minute}}
- name: idle
  when: {silence: 10 s}
  inject: {strategy: {silence: offer help}}
- name: greeting
  when: {keyword: hello}
  inject: {information: {note: hello}}
  place: silence
  quiet: 2 s
"""


@pytest.fixture
def call(call_with) -> Call:
    return call_with(TIMED)


def tick(call, timer):
    """The tick that the owner of the session would publish for this timer."""
    return Tick(session_id=call.session_id, timer=timer, due_ms=call.state.timers[timer])


def test_a_tick_that_comes_too_early_changes_nothing_and_is_armed_again(call):
    early = tick(call, "rule:minute")
    call.advance_ms(59_999)
    timers = dict(call.state.timers)
    decision = call.append(early)
    assert decision.timers == [("rule:minute", early.due_ms)]
    assert decision.explanation is None
    assert call.state.timers == timers
    call.advance_ms(1)
    assert len(call.injections("minute")) == 1


def test_the_second_copy_of_a_tick_does_nothing(call):
    due = tick(call, "rule:minute")
    call.advance_ms(60_000)
    before = call.snapshot()
    for _ in range(3):
        call.append(due)
    assert call.snapshot().state == before.state
    assert len(call.injections("minute")) == 1


def test_a_tick_of_a_timer_that_was_set_anew_meanwhile_is_stale_and_ignored(call):
    """The silence was broken: the timer is there, for another time."""
    call.says("well")
    stale = tick(call, "rule:idle")
    call.advance_ms(5_000)
    call.says("so")
    call.now_ms = stale.due_ms
    assert call.append(stale).explanation is None
    assert call.state.timers["rule:idle"] > stale.due_ms
    call.advance_ms(10_000)
    assert len(call.injections("idle")) == 1


def test_a_tick_of_a_timer_that_is_not_set_any_more_is_ignored(call):
    stale = tick(call, "rule:idle")
    call.send(UserMuted)
    assert "rule:idle" not in call.state.timers
    call.now_ms = stale.due_ms
    assert call.append(stale).explanation is None
    assert call.injections() == []


@pytest.mark.parametrize("timer", ["", "rule:", "rule:nobody", "injection:nobody", FORGET_TIMER, "else"])
def test_a_tick_that_nobody_asked_for_is_ignored(call, timer):
    before = call.snapshot()
    decision = call.append(Tick(session_id="call", timer=timer, due_ms=call.now_ms))
    assert (decision.explanation, decision.forget) == (None, False)
    assert call.snapshot().state == before.state


def test_feedback_about_what_is_not_pending_is_ignored(call):
    call.says("hello")
    before = call.snapshot()
    verdict = AttemptVerdict(
        session_id="call", injection_id="nobody", attempt=1, verdict=Verdict.DELIVERED, provider="p"
    )
    call.append(AttemptReported(session_id="call", verdict=verdict))
    call.append(RetryDue(session_id="call", injection_id="nobody", attempt=2))
    [waiting] = call.state.held
    call.append(RetryDue(session_id="call", injection_id=waiting, attempt=1))
    verdict = AttemptVerdict(session_id="call", injection_id=waiting, attempt=0, verdict=Verdict.REFUSED, provider="p")
    call.append(AttemptReported(session_id="call", verdict=verdict))
    assert call.snapshot().state == before.state


def test_only_what_may_happen_without_an_event_is_on_a_timer(call):
    assert set(call.state.timers) == {FORGET_TIMER, "rule:minute", "rule:idle"}
    call.send(MessageCompleted, speaker="user", text="hello")
    [waiting] = call.state.held
    assert call.state.timers[f"injection:{waiting}"] == call.now_ms + 2_000
    call.advance_ms(2_050)
    assert set(call.state.timers) == {FORGET_TIMER, "rule:minute", "rule:idle"}


def test_before_its_start_a_session_has_no_timer_but_the_one_to_forget_it(call_with):
    """Its rules count from a start that nobody has told yet."""
    call = call_with(TIMED, started=False)
    call.says("well")
    assert set(call.state.timers) == {FORGET_TIMER}
    call.send(SessionStarted, provider="p", model="m")
    assert "rule:minute" in call.state.timers


def test_the_timer_to_forget_a_session_is_not_set_anew_with_every_event(call):
    """It finds out by itself that the session has gone on."""
    for _ in range(10):
        call.says("well")
    set_anew = [timer for decision in call.decisions for timer, _ in decision.timers if timer == FORGET_TIMER]
    assert len(set_anew) == 1


def test_a_decision_tells_every_timer_that_it_set(call):
    """Whoever keeps the timers needs nothing but the decisions."""
    armed: dict[str, int] = {}
    for decision in call.decisions:
        armed |= dict(decision.timers)
    assert armed.items() >= call.state.timers.items()


def test_a_session_is_forgotten_an_hour_after_its_end(call):
    call.says("hello")
    call.ends()
    call.advance_ms(FORGET_AFTER_MS - 1)
    assert not call.forgotten
    call.advance_ms(1)
    assert call.forgotten


def test_a_session_without_an_end_is_forgotten_a_day_after_its_last_event(call):
    call.advance_ms(20 * HOUR_MS)
    call.says("hello")
    last_said_ms = call.now_ms
    call.advance_ms(ABANDONED_AFTER_MS - 1)
    assert not call.forgotten
    call.advance_ms(1)
    assert call.forgotten
    assert call.now_ms == last_said_ms + ABANDONED_AFTER_MS


def test_an_ended_session_has_no_timer_but_the_one_to_forget_it(call):
    call.says("hello")
    call.ends()
    assert set(call.state.timers) == {FORGET_TIMER}
    assert call.state.timers[FORGET_TIMER] == call.now_ms + FORGET_AFTER_MS


def test_feedback_never_creates_a_session(call):
    """What comes after a session was forgotten finds nothing."""
    call.ends()
    call.advance_ms(FORGET_AFTER_MS)
    decision = call.append(Tick(session_id="call", timer="rule:minute", due_ms=call.now_ms))
    assert decision.timers == []
    assert call.forgotten


def test_a_session_id_that_is_used_again_after_that_is_a_new_session(call):
    call.says("hello")
    call.ends()
    call.advance_ms(FORGET_AFTER_MS)
    call.send(SessionStarted, provider="simulated", model="m", incarnation=1)
    call.says("hello")
    call.advance_ms(3_000)
    assert call.outcomes("greeting") == [Outcome.CANCELLED, Outcome.DELIVERED]
    assert call.state.messages == 1


def test_a_second_end_makes_the_session_stay_longer_and_is_harmless(call):
    call.ends()
    call.advance_ms(HOUR_MS // 2)
    call.send(SessionEnded, producer="carrier")
    call.advance_ms(HOUR_MS - 1)
    assert not call.forgotten
    call.advance_ms(1)
    assert call.forgotten
