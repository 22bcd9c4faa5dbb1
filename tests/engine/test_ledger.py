"""What is in the model's context, and what happens when the model has lost it."""

from __future__ import annotations

import pytest

from contextengine.engine.builders import Text
from contextengine.engine.lives import LIVE
from contextengine.engine.rules import Rule, RuleSet
from contextengine.engine.strategies.semantic import Keyword
from contextengine.schemas.context import Criticality
from contextengine.schemas.events import (
    AgentHandover,
    ContextCompacted,
    ContextPushed,
    PendingCancelled,
    ProviderReconnected,
)
from contextengine.schemas.injection import Outcome
from contextengine.testing import Call

LOST = [(ProviderReconnected, {}), (ContextCompacted, {}), (AgentHandover, {"agent": "billing"})]
ALLERGY = Rule(
    name="allergy",
    when=Keyword(("nuts",)),
    build=Text(information={"allergy": "nuts"}),
    criticality=Criticality.IMPORTANT,
    ttl_ms=5_000,
)
SMALL_TALK = Rule(name="small-talk", when=Keyword(("dog",)), build=Text(information={"dog": "likes them"}))


def delivered(call):
    """The rules whose contexts reached the model, in order."""
    return [result.rule for result in call.results() if result.outcome is Outcome.DELIVERED]


@pytest.mark.parametrize(("kind", "fields"), LOST)
def test_what_matters_goes_in_again_when_the_model_has_lost_it_and_the_rest_may_fire_again(kind, fields):
    call = Call(RuleSet((ALLERGY, SMALL_TALK)), crash_after_every_record=True)
    call.says("I cannot eat nuts, and my dog neither")
    call.advance_ms(60_000)
    assert delivered(call) == ["allergy", "small-talk"]
    call.send(kind, **fields)
    call.advance_ms(1_000)
    assert delivered(call) == ["allergy", "small-talk", "allergy"]
    call.says("my dog")
    call.advance_ms(1_000)
    assert delivered(call)[-1] == "small-talk"


def test_it_goes_in_again_each_time_under_an_id_of_its_own_with_a_life_of_its_own():
    call = Call(RuleSet((ALLERGY,)))
    call.says("no nuts")
    for _ in range(3):
        call.advance_ms(60_000)
        call.send(ProviderReconnected)
    call.advance_ms(60_000)
    assert delivered(call) == ["allergy"] * 4
    assert len({result.injection_id for result in call.results()}) == 4


def test_one_that_is_on_its_way_goes_first():
    waiting = Rule(
        name="allergy-2", when=Keyword(("milk",)), build=Text(information={"allergy": "nuts, milk"}), key="allergy"
    )
    call = Call(RuleSet((ALLERGY, waiting)))
    call.says("no nuts")
    call.advance_ms(1_000)
    call.says("no milk")
    call.send(ProviderReconnected)
    assert [made.rule for decision in call.decisions for made in decision.accepted] == ["allergy", "allergy-2"]


def test_a_rule_says_for_itself_whether_it_is_put_in_again():
    never = Rule(
        name="never",
        when=Keyword(("nuts",)),
        build=Text(information={"a": "b"}),
        criticality=Criticality.CRITICAL,
        reassert=False,
    )
    always = Rule(name="always", when=Keyword(("nuts",)), build=Text(information={"c": "d"}), reassert=True)
    call = Call(RuleSet((never, always)))
    call.says("no nuts")
    call.advance_ms(1_000)
    call.send(ContextCompacted)
    call.advance_ms(1_000)
    assert delivered(call) == ["never", "always", "always"]


def test_a_rule_on_trial_for_a_share_injects_in_those_sessions_and_explains_in_the_others():
    rules = RuleSet((Rule(name="new", when=Keyword(("nuts",)), build=Text(information={"a": "b"}), share=0.3),))
    injected, explained = 0, []
    for number in range(200):
        call = Call(rules, session_id=f"session-{number}")
        call.says("nuts")
        call.advance_ms(1_000)
        injected += len(call.results())
        explained += [told.reason for told in call.suppressed()]
    assert 40 <= injected <= 80
    assert injected + len(explained) == 200
    assert explained[0].startswith("not one of its 30% of sessions: would have injected '[Information]")


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_a_part_of_the_whole(share):
    with pytest.raises(ValueError, match="share is from 0 to 1"):
        Rule(name="r", when=Keyword(("x",)), build=Text(information={"a": "b"}), share=share)


def test_what_was_taken_back_or_whose_rule_is_gone_or_on_trial_goes_in_no_second_time():
    shadow = Rule(name="allergy", when=ALLERGY.when, build=ALLERGY.build, shadow=True)
    for rules, taken_back in ((None, True), (RuleSet(()), False), (RuleSet((shadow,)), False)):
        call = Call(RuleSet((ALLERGY,)))
        call.says("no nuts")
        call.advance_ms(1_000)
        if rules is not None:
            call.change_rules(rules)
        if taken_back:
            call.send(PendingCancelled, rule="allergy")
        call.send(ProviderReconnected)
        call.advance_ms(1_000)
        assert delivered(call) == ["allergy"]


def test_nothing_goes_in_again_after_the_end():
    call = Call(RuleSet((ALLERGY,)))
    call.says("no nuts")
    call.advance_ms(1_000)
    call.ends()
    call.send(ProviderReconnected)
    call.advance_ms(1_000)
    assert delivered(call) == ["allergy"]


def test_of_very_many_contexts_only_the_latest_are_remembered():
    call = Call(RuleSet(()))
    for number in range(LIVE + 20):
        call.send(ContextPushed, name="n", key=f"{number}", information={"n": f"{number}"})
        call.advance_ms(100)
    assert len(call.state.live) == LIVE
    assert next(reversed(call.state.live)) == f"pushed:{LIVE + 19}"
