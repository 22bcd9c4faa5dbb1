"""What the demo tells of a call, from records in any order."""

from __future__ import annotations

import itertools

import pytest
from telling import DECIDED, ENDED, RESULT, SAID, VERDICT, WITH_IT, WITHOUT_IT, story, summary

from contextengine.demo.story import Kind, Story
from contextengine.demo.voice_engine import Asked


def kinds(known: Story) -> list[Kind]:
    return [line.kind for line in known.calls["s"].lines]


def test_a_context_is_told_of_from_the_rule_that_fired_to_the_turn_that_had_it():
    known = story(SAID, DECIDED, VERDICT, RESULT, WITH_IT)
    assert kinds(known) == [Kind.SAID, Kind.FIRED, Kind.HELD_BACK, Kind.DELIVERED, Kind.IN_CONTEXT]
    assert "keywords dog" in known.calls["s"].lines[1].text
    assert known.calls["s"].lines[1].elapsed_ms == 2_100


def test_lines_carry_the_calls_own_time():
    known = story(SAID)
    assert known.calls["s"].lines[0].elapsed_ms == (1_250 - 1_000) * 10


@pytest.mark.parametrize("order", list(itertools.permutations([DECIDED, VERDICT, RESULT, WITH_IT])))
def test_whatever_the_order_of_the_records_the_same_is_known_in_the_end(order):
    known = story(*order)
    turn = known.next_turn(known.injections["i1"])
    assert (turn.number, turn.ahead_ms, turn.in_context) == (1, 60, True)
    assert known.open_injections == []
    assert sorted(kinds(known)).count(Kind.IN_CONTEXT) == 1


def test_a_delivered_context_that_the_next_turn_did_not_have_is_a_problem():
    known = story(DECIDED, VERDICT, RESULT, WITHOUT_IT)
    assert summary(known).in_context == 0
    assert summary(known).problems == ["s: pets was delivered, and not in context for turn 1"]


def test_a_context_after_which_no_turn_was_asked_for_is_no_problem_and_not_counted():
    known = story(DECIDED, VERDICT, RESULT, Asked("s", "resp_1", 1_220, ("item_1",)))
    assert (summary(known).with_next_turn, summary(known).problems) == (0, [])


def test_an_injection_without_an_outcome_is_a_problem():
    assert "s: pets has no outcome" in summary(story(DECIDED, VERDICT)).problems


def test_a_rule_that_was_to_deliver_and_did_not_is_a_problem():
    assert summary(story(DECIDED, VERDICT, RESULT), expected=["other"]).problems == ["rule other delivered nothing"]


def test_violations_and_dead_letters_are_problems():
    known = story(DECIDED, VERDICT, RESULT)
    known.dead_letters = 2
    assert summary(known, violations=["s: item.role"], problems=["mine"]).problems == [
        "mine",
        "the simulator took offence: s: item.role",
        "2 dead letters",
    ]


def test_the_summary_counts_outcomes_filters_rules_and_events():
    told = summary(story(SAID, DECIDED, VERDICT, RESULT, WITH_IT, ENDED))
    assert told.injections == {"delivered": 1}
    assert told.held_back == {"shadow": 1}
    assert told.fired == {"pets": 1, "upset": 1}
    assert (told.events, told.messages, told.calls) == (3, 1, 1)


def test_latency_counts_from_the_event_that_released_the_context():
    told = summary(story(DECIDED, VERDICT, RESULT)).event_to_provider
    assert (told.count, told.p50_ms, told.p99_ms) == (1, 1_240 - 1_210, 1_240 - 1_210)
