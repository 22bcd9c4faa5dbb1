"""Duplicates, stragglers and gaps: counted, never fatal, and no context comes twice because of them."""

from __future__ import annotations

import pytest

from contextengine.schemas.events import MessageCompleted, SessionEnded, SessionStarted, TurnStarted
from contextengine.testing import Call

RULES = """
- name: greeting
  when: {keyword: hello}
  inject: {information: {number: "{{ session.messages }}"}}
"""


@pytest.fixture
def call(call_with) -> Call:
    return call_with(RULES)


def say(call, seq, text="hello", **fields):
    return call.send(MessageCompleted, speaker="user", text=text, seq=seq, **fields)


def counted(call):
    return call.state.duplicates, call.state.stragglers, call.state.missing


def test_a_record_that_was_seen_before_changes_nothing_but_a_count(call):
    say(call, 1)
    original = call.log[-1][0]
    before = call.snapshot()
    call.append(original)
    call.append(call.log[0][0])
    assert counted(call) == (2, 0, 0)
    call.state.duplicates = 0
    assert call.snapshot().state == before.state
    assert len(call.injections()) == 1


def test_a_straggler_is_remembered_and_fires_nothing(call):
    say(call, 2, "hello first")
    assert counted(call) == (0, 0, 1)
    say(call, 1, "hello late")
    assert counted(call) == (0, 1, 0)
    assert [line.text for line in call.state.history] == ["hello first", "hello late"]
    assert len(call.injections()) == 1


def test_a_copy_of_a_straggler_is_a_duplicate(call):
    say(call, 2, "well")
    say(call, 1, "late")
    say(call, 1, "late")
    assert counted(call) == (1, 1, 0)
    assert call.state.messages == 2


def test_a_straggler_does_not_undo_what_came_after_it(call):
    """A turn that began before it ended is over."""
    call.send(TurnStarted, speaker="user", seq=5)
    call.state.speaking = None
    call.send(TurnStarted, speaker="user", seq=4)
    assert call.state.speaking is None


def test_a_start_that_straggles_still_starts_the_session(call_with):
    call = call_with(RULES, started=False)
    say(call, 1)
    call.send(SessionStarted, provider="p", model="m", seq=0)
    assert call.state.started_ms == call.now_ms
    say(call, 2)
    assert len(call.injections()) == 1


def test_an_end_that_straggles_still_ends_the_session(call):
    """Otherwise the session would live for another day, and its contexts go into a call that is over."""
    say(call, 1)
    say(call, 3, "bye")
    call.send(SessionEnded, seq=2)
    assert call.state.ended_ms == call.now_ms
    say(call, 4)
    assert [held.filter for held in call.suppressed()] == ["route"]


def test_gaps_are_counted_until_they_are_filled(call):
    say(call, 10, "well")
    assert counted(call) == (0, 0, 9)
    for seq in (4, 5, 6):
        say(call, seq, "well")
    assert counted(call) == (0, 3, 6)


def test_a_record_older_than_the_last_64_counts_as_a_duplicate(call):
    say(call, 64, "well")
    say(call, 1)
    assert counted(call) == (0, 1, 62)
    say(call, 65, "well")
    say(call, 1)
    assert counted(call) == (1, 1, 62)
    say(call, 2)
    assert counted(call) == (1, 2, 61)


@pytest.mark.parametrize("ahead", [1_000, 10**9, 2**62])
def test_a_producer_that_leaps_ahead_costs_no_more_than_one_that_counts(call, ahead):
    say(call, ahead)
    say(call, 1)
    assert counted(call)[0] == 1
    assert len(call.injections()) == 1


def test_each_producer_and_each_incarnation_counts_for_itself(call):
    say(call, 1)
    say(call, 1, producer="transcriber")
    say(call, 1, incarnation=1)
    assert counted(call) == (0, 0, 0)
    assert len({injection.injection_id for injection in call.injections()}) == 3


def test_many_incarnations_take_no_more_room_and_the_one_that_is_speaking_is_not_forgotten(call):
    """A crash-looping side producer must not make the main one's duplicates pass for new."""
    say(call, 1)
    for incarnation in range(20):
        say(call, 0, "well", producer="camera", incarnation=incarnation)
        say(call, 2 + incarnation, "well")
    assert len(call.state.windows) == 8
    say(call, 1)
    assert counted(call) == (1, 0, 0)
    assert len(call.injections()) == 1


def test_a_second_start_changes_nothing(call):
    started_ms = call.state.started_ms
    call.advance_ms(1_000)
    call.send(SessionStarted, provider="other", model="other", incarnation=1)
    assert (call.state.started_ms, call.state.provider) == (started_ms, "simulated")
