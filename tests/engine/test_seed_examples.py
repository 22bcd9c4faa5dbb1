"""The three examples that the product began with, under the demo's own rules."""

from __future__ import annotations

from pathlib import Path

import pytest

import contextengine
from contextengine.rulefile import parse_rules
from contextengine.schemas.context import Trust
from contextengine.schemas.events import ASSISTANT, USER
from contextengine.schemas.injection import Outcome
from contextengine.testing import Call

DEMO = Path(contextengine.__file__).parent / "demo" / "rules.yaml"
RULES = parse_rules(DEMO.read_text(), "rules.yaml")
MINUTE_MS = 60_000


@pytest.fixture
def call() -> Call:
    return Call(RULES, facts={"startup_talks": "last Tuesday: runway until June", "goal": "a table for Friday"})


def test_stress_about_a_startup_brings_earlier_talks_a_supportive_tone_and_feelings_over_advice(call):
    """It goes in when the person has finished speaking, not into the middle of their turn."""
    call.says("I'm feeling really stressed about my startup")
    [support] = call.injections()
    assert support.context.information == {"earlier talks about the startup": "last Tuesday: runway until June"}
    assert support.context.strategy == {"tone": "supportive and unhurried", "questions": "one at a time"}
    assert support.context.attention == {
        "focus": ["how the person feels"],
        "avoid": ["advice", "plans", "numbers"],
    }
    moment = call.moment_of(support)
    assert moment.event == "TurnEnded"
    [fired] = [firing for made in call.explanations() for firing in made.fired]
    assert fired.evidence == {"emotion": "stress", "words": "stressed", "keywords": "startup"}
    call.advance_ms(1_000)
    assert call.outcomes() == [Outcome.DELIVERED]


def test_stress_alone_or_a_startup_alone_brings_nothing(call):
    call.says("I'm really stressed about my exam")
    call.says("My startup sells lamps")
    assert call.injections() == []


def test_the_assistants_own_words_about_stress_bring_nothing(call):
    call.says("You sound stressed about your startup", speaker=ASSISTANT)
    assert call.injections() == []


def test_every_ten_messages_the_summary_the_personality_and_the_goal_are_refreshed(call):
    """It quotes what people said, so it is untrusted; it waits for 300 ms of silence after the tenth message."""
    for turn in range(1, 6):
        call.says(f"question {turn}")
        if turn == 5:
            assert call.injections() == []
        call.says(f"answer {turn}", speaker=ASSISTANT)
    tenth_said_ms = call.now_ms
    assert call.injections() == []
    call.advance_ms(299)
    assert call.injections() == []
    call.advance_ms(1)
    [refresh] = call.injections()
    lately = [f"user: question {turn} / assistant: answer {turn}" for turn in (3, 4, 5)]
    assert refresh.context.information == {"said lately": " / ".join(lately)}
    assert refresh.context.strategy == {"personality": "stay as warm and brief as at the start"}
    assert refresh.context.attention == {"focus": ["a table for Friday"]}
    assert refresh.context.metadata.trust is Trust.UNTRUSTED
    moment = call.moment_of(refresh)
    assert (moment.event, moment.now_ms - tenth_said_ms) == ("Tick", 300)


def test_the_twentieth_message_brings_a_second_refresh_and_the_ones_between_none(call):
    for turn in range(20):
        call.says(f"message {turn}", speaker=ASSISTANT if turn % 2 else USER)
        call.advance_ms(500)
    refreshes = call.injections("refresh-every-ten-messages")
    assert ["message 9" in str(refresh.context.information) for refresh in refreshes] == [True, False]
    assert call.outcomes("refresh-every-ten-messages") == [Outcome.DELIVERED] * 2


def test_a_conversation_that_reaches_thirty_minutes_is_told_its_figures_its_pace_and_its_focus(call):
    """Nobody has the turn at that moment, so it goes in with the tick itself."""
    call.says("hello")
    call.advance_ms(29 * MINUTE_MS)
    assert call.injections("wrap-up-at-thirty-minutes") == []
    call.advance_ms(1 * MINUTE_MS)
    [wrap_up] = call.injections("wrap-up-at-thirty-minutes")
    assert wrap_up.context.information == {"duration": "30 minutes, 1 messages, 1 turns"}
    assert wrap_up.context.strategy == {"pace": "start to wrap up gracefully; open no new subject"}
    assert wrap_up.context.attention == {"focus": ["action items", "next steps"]}
    moment = call.moment_of(wrap_up)
    assert (moment.event, moment.elapsed_ms) == ("Tick", 30 * MINUTE_MS)


def test_the_thirtieth_minute_that_falls_into_somebodys_turn_waits_for_its_end(call):
    call.advance_ms(30 * MINUTE_MS - 500)
    call.says("and then there was this", lasts_ms=1_000)
    [wrap_up] = call.injections("wrap-up-at-thirty-minutes")
    assert call.moment_of(wrap_up).event == "TurnEnded"
    assert call.moment_of(wrap_up).elapsed_ms == 30 * MINUTE_MS + 500


def test_in_a_rehearsal_at_ten_times_the_speed_the_thirtieth_minute_comes_after_three():
    call = Call(RULES, time_scale=10.0, facts={"startup_talks": ""})
    call.advance_ms(3 * MINUTE_MS - 1)
    assert call.injections("wrap-up-at-thirty-minutes") == []
    call.advance_ms(1)
    [wrap_up] = call.injections("wrap-up-at-thirty-minutes")
    assert wrap_up.context.information == {"duration": "30 minutes, 0 messages, 0 turns"}
    assert wrap_up.deadline_ms - wrap_up.trigger_ms == 30_000, "five minutes of its life last thirty seconds"


def test_every_rule_of_the_demo_can_be_seen_at_work(call):
    """Each is sent or, on trial, explained, in one conversation."""
    call.says("I'm stressed about my company, and worried")
    call.says("Can I book a table? I would bring my dog")
    for turn in range(10):
        call.says(f"so {turn}", speaker=ASSISTANT)
    call.advance_ms(31 * MINUTE_MS)
    call.says("this is unacceptable")
    on_trial = {held.rule for held in call.suppressed() if held.filter == "shadow"}
    assert on_trial == {"upset-customer"}
    assert {injection.rule for injection in call.injections()} | on_trial == {rule.name for rule in RULES.rules}
