"""A dead injection that somebody sends back: a new injection, decided like any other."""

from __future__ import annotations

import pytest

from contextengine.engine.candidate import redriven_id
from contextengine.engine.decide import ABANDONED_AFTER_MS
from contextengine.schemas.events import InjectionRedriven
from contextengine.schemas.injection import Outcome
from contextengine.testing import Call

RULES = """
- name: slot
  when: {keyword: one}
  inject: {information: {number: "{{ session.messages }}"}}
  ttl: 20 s
"""


@pytest.fixture
def dead_call(call_with) -> Call:
    """A call with one dead injection."""
    call = call_with(RULES)
    call.provider.fails(times=1, transient=False)
    call.says("one")
    call.advance_ms(1_000)
    assert call.outcomes() == [Outcome.DEAD]
    return call


def redriven(call, number=1):
    """The event that sends the first injection back."""
    return InjectionRedriven(session_id=call.session_id, injection=call.injections()[0], number=number)


def test_a_redriven_injection_is_a_new_one_with_an_id_and_a_life_of_its_own(dead_call):
    dead_call.advance_ms(60_000)
    dead_call.append(redriven(dead_call))
    dead_call.advance_ms(1_000)
    first, again = dead_call.injections()
    assert again.injection_id == redriven_id(first.injection_id, 1) != first.injection_id
    assert again.redrives == 1
    assert again.deadline_ms - again.trigger_ms == 20_000
    assert again.context == first.context
    assert dead_call.outcomes() == [Outcome.DEAD, Outcome.DELIVERED]


def test_a_copy_of_a_redrive_changes_nothing_also_after_its_end(dead_call):
    dead_call.append(redriven(dead_call))
    dead_call.append(redriven(dead_call))
    dead_call.advance_ms(1_000)
    dead_call.append(redriven(dead_call))
    dead_call.advance_ms(1_000)
    assert len(dead_call.injections()) == 2
    assert dead_call.outcomes() == [Outcome.DEAD, Outcome.DELIVERED]


def test_one_that_dies_again_can_come_back_again(dead_call):
    dead_call.provider.fails(times=1, transient=False)
    dead_call.append(redriven(dead_call))
    dead_call.advance_ms(1_000)
    dead_call.append(redriven(dead_call, number=2))
    dead_call.advance_ms(1_000)
    assert dead_call.outcomes() == [Outcome.DEAD, Outcome.DEAD, Outcome.DELIVERED]
    assert [injection.redrives for injection in dead_call.injections()] == [0, 1, 2]


def test_for_a_session_that_has_ended_it_expires(dead_call):
    dead_call.ends()
    dead_call.append(redriven(dead_call))
    assert dead_call.outcomes() == [Outcome.DEAD, Outcome.EXPIRED]
    assert dead_call.results()[-1].reason == "the session is over"
    assert not dead_call.forgotten


def test_for_a_session_that_is_forgotten_it_expires_once_and_the_session_is_forgotten_again_after_a_day(
    dead_call, call_with
):
    other = call_with(RULES, started=False)
    other.append(redriven(dead_call))
    other.append(redriven(dead_call))
    assert other.outcomes() == [Outcome.EXPIRED]
    assert other.attempts() == []
    other.advance_ms(ABANDONED_AFTER_MS)
    assert other.forgotten


def test_a_newer_context_in_its_slot_stays(dead_call):
    dead_call.says("one")
    dead_call.advance_ms(1_000)
    dead_call.append(redriven(dead_call))
    assert dead_call.outcomes() == [Outcome.DEAD, Outcome.DELIVERED, Outcome.SUPERSEDED]


def test_an_older_context_in_its_slot_is_superseded_by_it(call_with):
    call = call_with(RULES)
    call.says("one")
    call.advance_ms(1_000)
    call.provider.fails(times=1, transient=False)
    call.says("one")
    call.advance_ms(1_000)
    call.append(InjectionRedriven(session_id=call.session_id, injection=call.injections()[1], number=1))
    call.advance_ms(1_000)
    assert call.outcomes() == [Outcome.DELIVERED, Outcome.DEAD, Outcome.DELIVERED]


def test_it_is_explained_and_changes_the_digest(dead_call):
    before = dead_call.digest
    decision = dead_call.append(redriven(dead_call))
    assert decision.explanation.position == f"redrive/{dead_call.injections()[0].injection_id}/1"
    assert [accepted.rule for accepted in decision.explanation.accepted] == ["slot"]
    assert dead_call.digest != before


def test_a_redrive_survives_a_crash_after_every_record(call_with):
    for crashes in (False, True):
        call = call_with(RULES, crash_after_every_record=crashes)
        call.provider.fails(times=2, transient=False)
        call.says("one")
        call.advance_ms(1_000)
        call.append(redriven(call))
        call.append(redriven(call))
        call.advance_ms(1_000)
        assert call.outcomes() == [Outcome.DEAD, Outcome.DEAD]
