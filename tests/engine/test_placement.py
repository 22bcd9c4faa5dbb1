"""When a waiting context goes in, and which event lets it go."""

from __future__ import annotations

import pytest

from contextengine.schemas.events import (
    ASSISTANT,
    GenerationStarted,
    MessageCompleted,
    PlaybackEnded,
    ResponseCompleted,
    ResponseStarted,
    SilenceDetected,
    TurnEnded,
    TurnStarted,
)
from contextengine.schemas.injection import Outcome
from contextengine.schemas.session import Place


@pytest.fixture
def call_placing(call_with):
    """A call with one rule that fires on `go` and is placed as told."""

    def begin(place, **start):
        return call_with(
            f"- {{name: placed, when: {{keyword: go}}, inject: {{information: {{a: b}}}}, cooldown: 0 s, {place}}}",
            **start,
        )

    return begin


def moments(call):
    """What let each injection go."""
    return [call.moment_of(injection).event for injection in call.injections()]


def test_now_is_with_the_event_itself_also_in_the_middle_of_a_turn(call_placing):
    call = call_placing("place: now")
    call.says("go")
    assert moments(call) == ["MessageCompleted"]


def test_a_turn_boundary_is_the_end_of_the_turn(call_placing):
    call = call_placing("place: turn_boundary")
    call.says("go")
    assert moments(call) == ["TurnEnded"]


def test_a_turn_boundary_has_passed_once_the_models_turn_has_been_asked_for(call_placing):
    """The transcript came late, after generation had started: what comes now is for the next turn."""
    call = call_placing("place: turn_boundary")
    call.send(TurnStarted, speaker="user")
    call.send(TurnEnded, speaker="user")
    call.send(GenerationStarted, response_id="r")
    call.send(MessageCompleted, speaker="user", text="go")
    call.send(ResponseStarted, response_id="r")
    assert moments(call) == []
    call.send(ResponseCompleted, response_id="r")
    assert moments(call) == ["ResponseCompleted"]


def test_a_turn_boundary_does_not_come_while_the_other_one_still_speaks(call_placing):
    call = call_placing("place: turn_boundary")
    call.send(TurnStarted, speaker=ASSISTANT)
    call.send(TurnStarted, speaker="user")
    call.send(MessageCompleted, speaker="user", text="go")
    call.send(TurnEnded, speaker=ASSISTANT)
    assert moments(call) == []
    call.send(TurnEnded, speaker="user")
    assert moments(call) == ["TurnEnded"]


def test_a_silence_must_have_lasted_and_then_a_tick_lets_it_go(call_placing):
    call = call_placing("place: silence, quiet: 700 ms")
    call.says("go")
    call.advance_ms(699)
    assert moments(call) == []
    call.advance_ms(1)
    assert moments(call) == ["Tick"]


def test_a_silence_that_is_known_to_have_lasted_long_enough_lets_it_go_at_once(call_placing):
    call = call_placing("place: silence, quiet: 700 ms")
    call.says("go")
    call.advance_ms(100)
    call.says("wait", ASSISTANT)
    call.advance_ms(600)
    call.send(SilenceDetected, at_ms=call.now_ms - 600)
    assert moments(call) == []
    call.advance_ms(100)
    assert moments(call) == ["Tick"]


def test_somebody_who_speaks_again_starts_the_wait_anew(call_placing):
    call = call_placing("place: silence, quiet: 700 ms")
    call.says("go")
    for _ in range(5):
        call.advance_ms(600)
        call.says("and")
    assert moments(call) == []
    call.advance_ms(700)
    assert moments(call) == ["Tick"]


def test_a_fallback_lets_it_go_whatever_the_moment(call_placing):
    call = call_placing("place: silence, quiet: 10 s, fallback: 3 s")
    call.says("go")
    for _ in range(4):
        call.says("and", lasts_ms=900)
    [injection] = call.injections()
    moment = call.moment_of(injection)
    assert (moment.event, moment.now_ms - injection.trigger_ms) == ("Tick", 3_000)


def test_without_a_fallback_what_never_finds_its_moment_expires_at_the_end_of_its_life(call_placing):
    call = call_placing("place: silence, quiet: 10 s, ttl: 5 s")
    call.says("go")
    for _ in range(6):
        call.says("and", lasts_ms=900)
    assert moments(call) == []
    [result] = call.results()
    assert (result.outcome, result.attempts) == (Outcome.EXPIRED, 0)
    assert result.decided_ms - result.trigger_ms == 5_000
    assert "moment did not come" in result.reason


def test_a_fallback_beyond_the_end_of_its_life_does_not_let_it_go(call_placing):
    call = call_placing("place: silence, quiet: 10 s, ttl: 2 s, fallback: 3 s")
    call.says("go")
    call.says("and on", lasts_ms=9_000)
    assert call.outcomes() == [Outcome.EXPIRED]
    assert moments(call) == []


def test_when_its_moment_comes_in_the_same_instant_as_the_end_of_its_life_it_is_too_late(call_placing):
    call = call_placing("place: silence, quiet: 2 s, ttl: 2 s")
    call.says("go")
    call.advance_ms(10_000)
    assert call.outcomes() == [Outcome.EXPIRED]
    assert moments(call) == []


def test_a_moment_that_an_event_brings_after_the_end_of_its_life_is_too_late_even_if_no_tick_has_come(call_placing):
    """The worker was busy: the turn ends before the tick of the deadline is there."""
    call = call_placing("place: turn_boundary, ttl: 2 s")
    call.send(TurnStarted, speaker="user")
    call.send(MessageCompleted, speaker="user", text="go")
    call.now_ms += 2_000
    call.send(TurnEnded, speaker="user")
    assert call.outcomes() == [Outcome.EXPIRED]
    assert moments(call) == []


def test_quiet_and_fallback_are_the_conversations_own_time(call_placing):
    call = call_placing("place: silence, quiet: 5 s", time_scale=10.0)
    call.says("go")
    call.advance_ms(499)
    assert moments(call) == []
    call.advance_ms(1)
    assert moments(call) == ["Tick"]


def test_those_with_the_highest_priority_go_first_and_among_equals_the_oldest(call_with):
    rules = [("low", "one", 0), ("older", "one", 5), ("newer", "two", 5), ("top", "two", 9)]
    rule = """
- name: {}
  when: {{keyword: {}}}
  priority: {}
  inject: {{information: {{a: b}}}}
  place: turn_boundary
"""
    call = call_with("".join(rule.format(*told) for told in rules))
    call.send(TurnStarted, speaker="user")
    call.send(MessageCompleted, speaker="user", text="one")
    call.send(MessageCompleted, speaker="user", text="two")
    call.send(TurnEnded, speaker="user")
    assert [injection.rule for injection in call.injections()] == ["top", "older", "newer", "low"]


def test_every_place_has_its_moment(call_placing):
    """Also when a call is so calm that nothing but time goes by."""
    for place in Place:
        call = call_placing(f"place: {place.value}, quiet: 1 s")
        call.says("go")
        call.advance_ms(1_000)
        call.send(PlaybackEnded, response_id="r")
        call.advance_ms(60)
        assert call.outcomes() == [Outcome.DELIVERED], place
