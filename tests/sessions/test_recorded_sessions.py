"""Recorded conversations are judged as they were: every decision, attempt, outcome and digest, byte for byte.

After a deliberate change `contextengine replay tests/sessions --accept` rewrites what follows from them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from contextengine import plugins
from contextengine.engine.filters import FILTERS
from contextengine.engine.strategies.strategy import parts_of
from contextengine.replay.counterfactual import try_rules
from contextengine.replay.exact import replay
from contextengine.replay.recording import Output, Recording, files_in, read
from contextengine.rulefile import parse_rules
from contextengine.schemas.decision import DecisionMade
from contextengine.schemas.events import AttemptReported, SessionStarted
from contextengine.schemas.injection import InjectionCancelled, InjectionResult, Outcome, Verdict
from contextengine.schemas.session import Place

FILES = files_in([Path(__file__).parent])
NEEDS_A_PLUGIN = {"rule"}
"""The filter for what a strategy raises; none of the built-in ones does."""
NEVER_SENT = {Verdict.EXPIRED}
"""The verdict on what a consumer finds too late; it takes a consumer that has fallen behind."""

recording_of = cache(read)
rules_of = cache(parse_rules)


def recordings() -> Iterator[Recording]:
    """All of them."""
    return map(recording_of, FILES)


def outputs() -> Iterator[Output]:
    """What followed in any of them."""
    return (output for recording in recordings() for of in recording.records for output in of.outputs)


@pytest.mark.parametrize("file", FILES, ids=[file.name for file in FILES])
def test_a_recorded_session_is_judged_as_it_was(file):
    replayed = replay(recording_of(file))
    assert replayed.divergence is None, str(replayed.divergence)
    assert replayed.sessions == 1
    assert replayed.decisions > 0


@pytest.mark.parametrize("file", FILES[::3], ids=[file.name for file in FILES[::3]])
def test_the_rules_that_were_in_force_give_it_again_in_a_closed_loop(file):
    recording = recording_of(file)
    [rules] = recording.header.rules.values()
    [session] = try_rules([recording], rules).sessions
    assert not session.differs
    assert session.now.state.digest == session.before.state.digest != ""


def test_there_are_at_least_thirty_conversations_from_two_corpora():
    corpora = Counter(file.name.split("-")[1] for file in FILES)
    assert corpora.total() >= 30
    assert min(corpora["multiwoz"], corpora["tiage"]) >= 15


def test_each_strategy_fires_in_them():
    names = {plugins.load("strategies", name): name for name in plugins.names("strategies")}
    fired = set()
    for recording in recordings():
        rule_sets = [rules_of(text, name) for name, text in recording.header.rules.items()]
        rules = {rule.name: rule.when for rule_set in rule_sets for rule in rule_set.rules}
        made = (out for of in recording.records for out in of.outputs if isinstance(out, DecisionMade))
        whens = [rules[firing.rule] for decision in made for firing in decision.fired]
        fired |= {names[type(part)] for when in whens for part in parts_of(when)}
    assert fired == set(names.values())


def test_each_placement_filter_and_outcome_occurs_in_them():
    made = [output for output in outputs() if isinstance(output, DecisionMade)]
    assert {accepted.placement for decision in made for accepted in decision.accepted} == set(Place)
    held_back = {told.filter for decision in made for told in decision.suppressed}
    assert held_back == {*FILTERS, "template"} - NEEDS_A_PLUGIN
    assert {output.outcome for output in outputs() if isinstance(output, InjectionResult)} == set(Outcome)


def test_providers_fail_in_them_in_each_way_and_are_tried_again_and_contexts_are_called_back_and_handed_off():
    events = [of.event for recording in recordings() for of in recording.records]
    verdicts = {event.verdict.verdict for event in events if isinstance(event, AttemptReported)}
    assert verdicts == set(Verdict) - NEVER_SENT
    assert {"attach", "hand_off"} <= {event.route for event in events if isinstance(event, SessionStarted)}
    assert any(isinstance(output, InjectionCancelled) for output in outputs())
    assert max(output.attempts for output in outputs() if isinstance(output, InjectionResult)) > 1
