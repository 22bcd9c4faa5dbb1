"""What holds a fired rule's context back, each time with its reason."""

from __future__ import annotations

import pytest

from contextengine.engine.builders import Text
from contextengine.engine.filters import BUFFERED, FILTERS
from contextengine.engine.rules import Rule, RuleSet
from contextengine.engine.strategies.temporal import EveryMessages
from contextengine.schemas.context import INJECTION_BYTES, Criticality
from contextengine.schemas.events import MessageCompleted, SessionStarted
from contextengine.schemas.injection import Outcome
from contextengine.testing import Call

GREETING = """
- name: greeting
  when: {keyword: hello}
  inject: {information: {note: "they said hello"}}
  cooldown: 60 s
"""


def held_back(call):
    """The filter and the reason of the only suppression."""
    [suppression] = call.suppressed()
    return suppression.filter, suppression.reason


def test_the_filters_are_asked_in_the_order_that_is_documented():
    assert list(FILTERS) == ["route", "ttl", "size", "slot", "duplicate", "buffer", "share", "shadow"]


def test_before_its_start_a_session_has_no_route_for_contexts(call_with):
    call = call_with(GREETING, started=False)
    call.says("hello")
    name, reason = held_back(call)
    assert (name, "has not started" in reason) == ("route", True)
    call.send(SessionStarted, provider="p", model="m")
    call.says("hello")
    assert len(call.injections()) == 1


def test_after_its_end_a_session_gets_no_contexts(call_with):
    call = call_with(GREETING)
    call.ends()
    call.says("hello")
    assert held_back(call) == ("route", "the session has ended")
    assert call.injections() == []


def test_a_message_that_comes_after_its_contexts_life_brings_nothing(call_with):
    """A life counts from when the message was said, not from when the engine heard of it."""
    call = call_with(GREETING.replace("cooldown", "ttl"))
    call.advance_ms(100_000)
    call.send(MessageCompleted, speaker="user", text="hello", at_ms=call.now_ms - 60_000)
    assert held_back(call) == ("ttl", "its life ended 0 ms before it was decided")
    call.send(MessageCompleted, speaker="user", text="hello", at_ms=call.now_ms - 59_999)
    assert len(call.injections()) == 1


def test_a_context_of_more_than_32_kib_of_text_is_too_large(call_with):
    rule = GREETING.replace("they said hello", "{{ facts.a }}{{ facts.a }}" * 17)
    call = call_with(rule, facts={"a": "é" * 500})
    call.says("hello")
    size = len("[Information]\n- note: ") + 34 * len("é".encode()) * 500
    assert held_back(call) == ("size", f"{size} bytes of text, at most {INJECTION_BYTES} are allowed")


def test_a_context_of_exactly_32_kib_is_not_too_large():
    text = "x" * (INJECTION_BYTES - len("[Information]\n- n: "))
    call = Call(RuleSet((Rule(name="r", when=EveryMessages(1), build=Text(information={"n": text})),)))
    call.says("hello")
    assert len(call.injections()) == 1


def test_the_same_content_stays_out_of_its_slot_for_the_cool_down_after_it_went_in(call_with):
    call = call_with(GREETING)
    call.says("hello")
    call.advance_ms(50)
    call.advance_ms(58_000)
    call.says("hello")
    assert held_back(call) == ("duplicate", "the same content went in 59 s ago; cool-down 60 s")
    call.says("hello")
    assert len(call.injections()) == 2


def test_the_cool_down_is_the_conversations_own_time(call_with):
    call = call_with(GREETING, time_scale=10.0)
    call.says("hello")
    call.advance_ms(50)
    call.advance_ms(4_900)
    call.says("hello")
    assert held_back(call) == ("duplicate", "the same content went in 59 s ago; cool-down 60 s")
    call.advance_ms(100)
    call.says("hello")
    assert len(call.injections()) == 2


def test_the_same_content_that_is_on_its_way_is_not_sent_twice(call_with):
    call = call_with(GREETING)
    call.provider.is_gone()
    call.says("hello")
    call.says("hello")
    assert held_back(call) == ("duplicate", "the same content is on its way (in_flight)")
    waiting = call_with(GREETING + "  place: silence\n  quiet: 30 s\n")
    waiting.says("hello")
    waiting.says("hello")
    assert held_back(waiting) == ("duplicate", "the same content is on its way (waiting)")


def test_content_that_was_not_delivered_is_no_duplicate(call_with):
    call = call_with(GREETING)
    call.provider.refuses(times=1)
    call.says("hello")
    call.advance_ms(50)
    call.says("hello")
    assert call.suppressed() == []
    call.advance_ms(50)
    assert call.outcomes() == [Outcome.REFUSED, Outcome.DELIVERED]


def test_other_content_in_the_same_slot_is_no_duplicate(call_with):
    call = call_with(GREETING.replace("they said hello", "{{ session.messages }}"))
    call.says("hello")
    call.says("hello")
    assert call.suppressed() == []
    assert len(call.injections()) == 2


def full_call(criticality):
    """A call with as many injections under way as may wait, and then one more of this criticality."""
    rules = [
        Rule(
            name=f"rule-{at}",
            when=EveryMessages(1),
            build=Text(information={"n": str(at)}),
            priority=-at,
            criticality=criticality if at == BUFFERED else Criticality.OPTIONAL,
        )
        for at in range(BUFFERED + 1)
    ]
    call = Call(RuleSet(tuple(rules)))
    call.provider.is_gone()
    call.says("go")
    return call


@pytest.mark.parametrize("criticality", [Criticality.IMPORTANT, Criticality.HELPFUL, Criticality.OPTIONAL])
def test_when_too_many_injections_have_not_ended_another_one_is_held_back(criticality):
    call = full_call(criticality)
    assert held_back(call) == ("buffer", "64 injections of this session have not ended, at most 64 may wait")
    assert len(call.injections()) == BUFFERED


def test_a_critical_context_is_not_held_back_because_many_others_wait():
    call = full_call(Criticality.CRITICAL)
    assert call.suppressed() == []
    assert len(call.injections()) == BUFFERED + 1


def test_what_waits_has_a_limit_in_bytes_too_so_that_the_state_can_be_written():
    told = "x" * 30_000
    rules = [
        Rule(
            name=f"rule-{at}",
            when=EveryMessages(1),
            build=Text(information={"n": f"{at}{told}"}),
            criticality=Criticality.CRITICAL,
        )
        for at in range(20)
    ]
    call = Call(RuleSet(tuple(rules)))
    call.provider.is_gone()
    call.says("go")
    assert {held.filter for held in call.suppressed()} == {"buffer"}
    assert 16 <= len(call.injections()) <= 17


def test_a_rule_on_trial_explains_what_it_would_have_injected_and_injects_nothing(call_with):
    call = call_with(GREETING + "  shadow: true\n")
    call.says("hello")
    assert held_back(call) == ("shadow", "on trial: would have injected '[Information]\\n- note: they said hello'")
    assert call.injections() == []


def test_every_firing_ends_in_an_acceptance_or_an_explained_suppression(call_with):
    call = call_with(GREETING)
    for _ in range(5):
        call.says("hello")
    for made in call.explanations():
        assert len(made.fired) == len(made.accepted) + len(made.suppressed)
    assert sum(len(made.fired) for made in call.explanations()) == 5


def test_a_route_that_nobody_delivers_by_holds_contexts_back(call_with):
    call = call_with(GREETING, route="carrier_pigeon")
    call.says("hello")
    name, reason = held_back(call)
    assert (name, "'carrier_pigeon'" in reason) == ("route", True)
