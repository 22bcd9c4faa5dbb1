"""Contexts that another service pushes into a session, and takes back."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from contextengine.engine.builders import Text
from contextengine.engine.rules import NO_RULES, Rule, RuleSet
from contextengine.engine.strategies.semantic import Keyword
from contextengine.errors import UndecodableRecord
from contextengine.schemas.codec import decode, encode
from contextengine.schemas.context import Criticality, Trust
from contextengine.schemas.events import ContextPushed, PendingCancelled, ProviderReconnected
from contextengine.schemas.injection import Outcome
from contextengine.schemas.session import Place
from contextengine.testing import Call
from contextengine.topics.intake import event_in

BALANCE = {"information": {"balance": "12 euro"}, "name": "balance"}


def call():
    """A call without rules that a billing service knows of."""
    return Call(NO_RULES, crash_after_every_record=True)


def push(to, seq, **fields):
    """What the billing service pushes."""
    to.send(ContextPushed, producer="billing", seq=seq, **(BALANCE | fields))


def outcomes(of):
    """How the injections ended, in order."""
    return [(result.rule, result.outcome.value) for result in of.results()]


def test_what_is_pushed_reaches_the_model_as_untrusted_text_and_is_explained():
    talk = call()
    push(talk, 0)
    talk.advance_ms(1_000)
    [injection] = talk.injections()
    assert injection.context.render() == "[Information]\n- balance: 12 euro"
    assert injection.context.metadata.trust is Trust.UNTRUSTED
    assert outcomes(talk) == [("pushed:balance", "delivered")]
    [firing] = [firing for made in talk.explanations() for firing in made.fired]
    assert firing.evidence == {"pushed by": "billing"}


def test_it_is_text_and_never_a_template():
    talk = call()
    push(talk, 0, information={"balance": "{{ session.id }}"})
    [injection] = talk.injections()
    assert "{{ session.id }}" in injection.context.render()


def test_it_waits_for_its_moment_and_expires_when_that_does_not_come_in_time():
    talk = call()
    talk.says("hello")
    push(talk, 0, place=Place.SILENCE, ttl_ms=500)
    talk.advance_ms(10_000)
    assert outcomes(talk) == [("pushed:balance", "expired")]


def test_a_newer_one_supersedes_one_that_still_waits_in_its_slot():
    talk = call()
    push(talk, 0, place=Place.SILENCE)
    push(talk, 1, place=Place.SILENCE, information={"balance": "11 euro"})
    talk.advance_ms(10_000)
    assert outcomes(talk) == [("pushed:balance", "superseded"), ("pushed:balance", "delivered")]


def test_a_copy_of_the_event_changes_nothing_and_a_straggler_is_no_less_meant():
    talk = call()
    push(talk, 3, name="later", information={"later": "yes"})
    push(talk, 3, name="later", information={"later": "yes"})
    push(talk, 2, name="earlier", information={"earlier": "yes"})
    talk.advance_ms(1_000)
    assert outcomes(talk) == [("pushed:later", "delivered"), ("pushed:earlier", "delivered")]


@pytest.mark.parametrize(
    ("scope", "left"),
    [
        ({}, []),
        ({"rule": "pushed:balance"}, ["pushed:offer"]),
        ({"key": "offers"}, ["pushed:balance"]),
        ({"rule": "pushed:balance", "key": "offers"}, ["pushed:balance", "pushed:offer"]),
    ],
)
def test_what_has_not_been_sent_can_be_taken_back_by_rule_by_slot_or_as_a_whole(scope, left):
    talk = call()
    talk.says("hello")
    push(talk, 0, place=Place.SILENCE)
    push(talk, 1, place=Place.SILENCE, name="offer", key="offers", information={"offer": "half price"})
    talk.send(PendingCancelled, producer="billing", seq=2, **scope)
    talk.advance_ms(10_000)
    assert [rule for rule, outcome in outcomes(talk) if outcome == Outcome.DELIVERED] == left
    assert {result.reason for result in talk.results() if result.outcome is Outcome.CANCELLED} <= {
        "billing took it back"
    }


def test_what_asks_for_what_no_rule_may_is_explained():
    talk = call()
    push(talk, 0, ttl_ms=0)
    push(talk, 1, information={})
    assert [(told.rule, told.filter) for told in talk.suppressed()] == [("pushed:balance", "rule")] * 2
    assert "ttl" in talk.suppressed()[0].reason
    assert "must say something" in talk.suppressed()[1].reason


def test_what_is_critical_goes_in_again_when_the_model_has_lost_it():
    talk = call()
    push(talk, 0, criticality=Criticality.CRITICAL)
    talk.advance_ms(1_000)
    talk.send(ProviderReconnected)
    talk.advance_ms(1_000)
    assert outcomes(talk) == [("pushed:balance", "delivered")] * 2


def test_the_state_does_not_grow_with_names_that_were_pushed():
    talk = call()
    for number in range(200):
        push(talk, number, name=f"name-{number}", key="one", information={"n": str(number)})
        talk.advance_ms(100)
    assert talk.state.rules == {}
    assert len(talk.state.live) == 1


def test_a_pushed_context_never_supersedes_a_rules_own():
    talk = Call(
        RuleSet(
            (Rule(name="safety", when=Keyword(("fire",)), build=Text(information={"a": "b"}), place=Place.SILENCE),)
        )
    )
    talk.says("fire")
    push(talk, 0, key="safety")
    talk.advance_ms(10_000)
    assert sorted(outcomes(talk)) == [("pushed:balance", "delivered"), ("safety", "delivered")]


@pytest.mark.parametrize("span", [{"ttl_ms": 2**62}, {"ttl_ms": -1}, {"fallback_ms": 2**62}])
def test_a_time_that_no_rule_could_ask_for_makes_it_no_event(span):
    event = ContextPushed(session_id="s", producer="p", incarnation=0, seq=0, at_ms=0, **(BALANCE | span))
    record = SimpleNamespace(key=b"s", value=encode(event))
    with pytest.raises(UndecodableRecord, match="are allowed"):
        event_in(record, 0, 1, decode)
