"""Strategies made of strategies: when they fire, what they remember, and that a crash changes nothing."""

from __future__ import annotations

import pytest
from test_strategies import MINUTE_MS, call_under, fired

from contextengine.engine.strategies.compose import After, All, AnyOf, AtMost, CoolDown, Hysteresis, Not, Within
from contextengine.engine.strategies.semantic import Emotion, Keyword
from contextengine.engine.strategies.state_based import ConversationReaches, Phase, Silence, UserState
from contextengine.engine.strategies.temporal import Every, EveryMessages
from contextengine.schemas.session import Memory

HELP, BILL, BYE = Keyword(("help",)), Keyword(("bill",)), Keyword(("bye",))


def said(strategy, *messages, **start):
    """The numbers of the messages (from 1) at which a rule fired."""
    call = call_under(strategy, crash_after_every_record=True, **start)
    numbers = []
    for number, text in enumerate(messages, 1):
        before = len(fired(call))
        call.says(text)
        numbers += [number] * (len(fired(call)) - before)
    return numbers


def test_any_fires_once_when_one_or_several_of_its_parts_do_and_shows_what_all_of_them_saw():
    assert said(AnyOf((HELP, BILL)), "help", "no", "my bill", "help with my bill") == [1, 3, 4]
    call = call_under(AnyOf((HELP, EveryMessages(1))))
    call.says("help")
    assert fired(call) == [{"keywords": "help", "messages": "1"}]


def test_any_of_worded_parts_is_asked_only_about_messages_with_one_of_their_phrases():
    assert AnyOf((HELP, BILL)).phrases == {"help", "bill"}
    assert AnyOf((HELP, Emotion(("joy",)))).phrases == frozenset()


def test_two_counting_parts_of_all_count_for_themselves():
    """They fire with what both have reached and neither has told yet."""
    assert said(All((EveryMessages(2), EveryMessages(3))), *["well"] * 12) == [3, 6, 9, 12]


def test_all_takes_a_state_for_a_part_that_need_not_begin_just_now():
    late = All((HELP, ConversationReaches(5 * MINUTE_MS)))
    call = call_under(late)
    call.says("help")
    call.advance_ms(5 * MINUTE_MS)
    assert fired(call) == []
    call.says("help")
    assert [firing["keywords"] for firing in fired(call)] == ["help"]


def test_all_of_states_fires_when_the_last_of_them_begins_and_asks_no_timer_for_the_same_silence_twice():
    call = call_under(All((Silence(3_000), ConversationReaches(MINUTE_MS))))
    call.says("well")
    call.advance_ms(2 * MINUTE_MS)
    assert len(fired(call)) == 1
    ticks = [event for event, _ in call.log if type(event).__name__ == "Tick" and event.timer == "rule:rule-0"]
    assert len(ticks) <= 3


def test_not_denies_a_state_and_an_event_and_looks_for_its_own_phrases():
    assert said(All((HELP, Not(BILL))), "help with my bill", "help") == [2]
    assert said(All((EveryMessages(1), Not(BYE))), "bye", "so", "bye") == [2]
    call = call_under(All((Silence(2_000), Not(Phase("start")))))
    call.says("one")
    call.advance_ms(5_000)
    for text in ("two", "three", "four", "five"):
        call.says(text)
    call.advance_ms(5_000)
    assert len(fired(call)) == 1


def test_within_fires_only_in_this_order_and_in_time():
    strategy = Within(HELP, BILL, 10_000)
    assert said(strategy, "bill", "help", "bill", "bill") == [3]
    call = call_under(strategy)
    call.says("help")
    call.advance_ms(10_001)
    call.says("bill")
    assert fired(call) == []


def test_within_counts_the_sessions_own_time():
    call = call_under(Within(HELP, BILL, 10_000), time_scale=10.0)
    call.says("help", lasts_ms=10)
    call.advance_ms(1_500)
    call.says("bill", lasts_ms=10)
    assert fired(call) == []


def test_after_fires_when_the_delay_is_over_and_not_if_something_else_came_first():
    call = call_under(After(HELP, 5_000, unless=BYE))
    call.says("help")
    call.advance_ms(4_999)
    assert fired(call) == []
    call.advance_ms(1)
    assert fired(call) == [{"after": "5 s"}]
    call.says("help")
    call.says("bye")
    call.advance_ms(MINUTE_MS)
    assert len(fired(call)) == 1


def test_at_most_begins_its_window_with_a_firing():
    call = call_under(AtMost(HELP, 2, MINUTE_MS))
    for _ in range(4):
        call.says("help")
    assert [firing["in the window"] for firing in fired(call)] == ["1 of 2", "2 of 2"]
    call.advance_ms(MINUTE_MS)
    call.says("help")
    assert len(fired(call)) == 3


def test_a_cool_down_rests_after_each_firing():
    call = call_under(CoolDown(HELP, MINUTE_MS))
    call.says("help")
    call.advance_ms(MINUTE_MS - 2_000)
    call.says("help")
    assert len(fired(call)) == 1
    call.advance_ms(2_000)
    call.says("help")
    assert len(fired(call)) == 2


def test_hysteresis_fires_again_only_after_it_was_switched_off():
    assert said(Hysteresis(HELP, BYE), "help", "help", "bye", "bye", "help") == [1, 5]


def test_what_is_made_of_what_is_made_of_others_remembers_at_every_depth():
    strategy = AnyOf((CoolDown(All((EveryMessages(2), Not(BYE))), 1_000), Within(HELP, BILL, 60_000)))
    assert said(strategy, "a", "b", "help", "c", "bill") == [2, 4, 5]
    call = call_under(strategy)
    call.says("a")
    call.says("b")
    assert call.state.rules["rule-0"].parts["0"].parts["of"].parts["0"] == Memory(counter=1)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: AnyOf((HELP,)), "at least two"),
        (lambda: All((HELP, Every(1_000))), "these never do: Keyword, Every"),
        (lambda: AtMost(HELP, 0, 1_000), "times must be at least 1"),
        (lambda: UserState("idle", 10), "at least 1 s"),
        (lambda: Not(EveryMessages(3)), "EveryMessages counts or waits"),
    ],
)
def test_what_cannot_be_meant_is_refused_when_it_is_made(make, told):
    with pytest.raises(ValueError, match=told):
        make()
