"""A switch stops a rule, a provider or everything, at once."""

from __future__ import annotations

import pytest

from contextengine.engine.builders import Text
from contextengine.engine.partition import follow
from contextengine.engine.rules import Rule, RuleSet
from contextengine.engine.strategies.semantic import Keyword
from contextengine.schemas.events import EVERYTHING, SwitchesChanged
from contextengine.schemas.injection import FailurePolicy, FailureStrategy, Outcome
from contextengine.schemas.session import Partition, Place
from contextengine.testing import Call


def rule(name="nuts", **fields):
    """A rule that fires on its own name."""
    return Rule(name=name, when=Keyword((name,)), build=Text(information={name: "yes"}), cooldown_ms=0, **fields)


@pytest.mark.parametrize("switch", ["rule:nuts", "provider:simulated", EVERYTHING])
def test_what_is_switched_off_fires_and_is_held_back_until_it_is_switched_on(switch):
    call = Call(RuleSet((rule(),)), crash_after_every_record=True)
    call.switch_off(switch)
    call.says("nuts")
    [told] = call.suppressed()
    assert (told.filter, told.reason) == ("switch", f"switched off: {switch}")
    call.switch_off()
    call.says("nuts")
    call.advance_ms(1_000)
    assert [result.outcome for result in call.results()] == [Outcome.DELIVERED]


def test_others_go_on():
    call = Call(RuleSet((rule("nuts"), rule("milk"))))
    call.switch_off("rule:nuts", "provider:another")
    call.says("nuts and milk")
    assert [injection.rule for injection in call.injections()] == ["milk"]


def test_what_waits_for_its_moment_is_skipped_when_that_comes():
    call = Call(RuleSet((rule(place=Place.SILENCE, quiet_ms=2_000),)))
    call.says("nuts")
    call.switch_off("rule:nuts")
    call.advance_ms(10_000)
    [result] = call.results()
    assert (result.outcome, result.reason) == (Outcome.SKIPPED, "switched off: rule:nuts")
    assert call.injections() == []


def test_what_rests_before_a_retry_is_not_tried_again():
    policy = FailurePolicy(FailureStrategy.RETRY_ASYNC, max_attempts=3, delay_ms=500)
    call = Call(RuleSet((rule(policy=policy),)))
    call.provider.fails()
    call.says("nuts")
    call.advance_ms(100)
    call.switch_off(EVERYTHING)
    call.advance_ms(5_000)
    [result] = call.results()
    assert (result.outcome, result.attempts) == (Outcome.SKIPPED, 1)


def test_an_older_switch_does_not_undo_a_newer_one():
    partition = Partition(0)
    follow(partition, SwitchesChanged(version=4, off=["rule:a"]))
    follow(partition, SwitchesChanged(version=3, off=[]))
    assert (partition.off, partition.switches_version) == (["rule:a"], 4)
