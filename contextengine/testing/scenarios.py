"""Scenarios: short conversations with the injections that they must bring, in YAML next to the rules that they try.

    scenarios:
      - name: a table for a dog
        start: {facts: {goal: dinner}, user_id: anna}
        say:
          - user: I want to book a table, and bring my dog
          - expect: booking-details
          - expect: {rule: pets-are-welcome, text: by name}
          - assistant: For when?
          - tool_call_ended: {tool: tables, failed: true}
          - user: My dog is hungry
          - wait: 10 s
          - expect: {rule: pets-are-welcome, suppressed: duplicate}

`start` has fields of SessionStarted, any other step is an event with its own fields. An `expect` judges all that has
happened since the one before; several in a row judge it together. Whatever goes in must be expected (`expect: nothing`
when nothing may); what is held back, or still waits, need not be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, Final

import yaml

from contextengine.engine.decision import Decision
from contextengine.engine.rules import RuleSet
from contextengine.engine.strategies.event_driven import EVENT_NAMES
from contextengine.schemas.events import ASSISTANT, USER, ConversationEvent, SessionStarted
from contextengine.schemas.injection import Outcome
from contextengine.schemas.session import Stage
from contextengine.testing.call import Call
from contextengine.yamlfile import Duration, Reading, instead, shown

NOTHING: Final = "nothing"
WENT_IN: Final = "went in"
HELD_BACK: Final = "was held back by "
_STEPS: Final = (USER, ASSISTANT, "wait", "expect", *EVENT_NAMES)
_IDS: Final = {"response_id", "tool_call_id", "request_id"}
_KNOWN_BY_THE_CALL: Final = {*ConversationEvent.__struct_fields__, "known_ms"}


@dataclass(frozen=True, slots=True)
class Expected:
    """The context of `rule` goes in with `text` in it, or the filter `suppressed` holds it back."""

    rule: str
    text: str = ""
    suppressed: str = ""

    def __post_init__(self) -> None:
        if self.text and self.suppressed:
            raise ValueError("what is held back has no text; say `text` or `suppressed`")

    def __str__(self) -> str:
        if self.suppressed:
            return f"{self.rule} to be held back by {self.suppressed}"
        return f"{self.rule} to go in" + (f" with {self.text!r}" if self.text else "")


@dataclass(frozen=True, slots=True)
class Step:
    """What happens in the call; where nothing does, what is `expected` by then (None: nothing)."""

    place: str
    happens: Callable[[Call], object] | None = None
    expected: Expected | None = None


class Start(dict[str, Any]):
    """What SessionStarted says beyond the ordinary, by its fields."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A conversation, step by step."""

    name: str
    say: tuple[Step, ...]
    start: Start = field(default_factory=Start)

    def __post_init__(self) -> None:
        if not self.say or self.say[-1].happens is not None:
            raise ValueError("nothing is expected of its last steps; it must end with `expect`")


@dataclass(frozen=True, slots=True)
class Happening:
    """What became of a rule's context `elapsed_ms` after the call's start, because of an `event`, and its text."""

    elapsed_ms: int
    event: str
    rule: str
    became: str
    reason: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is wrong by the expectations that begin at `place`, if anything is, and all that happened before them."""

    place: str
    problems: list[str]
    happened: list[Happening]


def parse_scenarios(text: str, source: str, rules: RuleSet) -> list[Scenario]:
    """The scenarios that `text` writes down for `rules`. RulesInvalid lists every mistake, as for the rules."""
    reading = _Reading(rules)
    return reading.read({source: text}, "scenarios", lambda node: reading.made_of_fields(node, Scenario, "a scenario"))


def judge(scenario: Scenario, rules: RuleSet) -> list[Judgement]:
    """Hold the conversation, in memory, and compare what went in with what was expected."""
    call = Call(rules, **scenario.start)
    judgements, since = [], 0
    for happening, steps in groupby(scenario.say, key=lambda step: step.happens is not None):
        if happening:
            for step in steps:
                step.happens(call)  # type: ignore[misc]  # groupby has asked
        else:
            judgements.append(_judgement(list(steps), call, call.decisions[since:]))
            since = len(call.decisions)
    return judgements


def _judgement(expectations: list[Step], call: Call, decisions: list[Decision]) -> Judgement:
    happened = [happening for decision in decisions for happening in _happenings(decision)]
    came_in = [happening for happening in happened if happening.became == WENT_IN]
    place = expectations[0].place
    problems = [f"{place}: the engine went wrong: {decision.defect}" for decision in decisions if decision.defect]
    expected = [(step.expected, step.place) for step in expectations if step.expected is not None]
    expected.sort(key=lambda one: -len(one[0].text))  # the most particular first: it may be met by one of them alone
    unmet = [(each, where) for each, where in expected if not _met(each, happened, came_in)]
    problems += [f"{where}: expected {each}; {_became(each.rule, happened, call)}" for each, where in unmet]
    surprises = [happening.rule for happening in came_in if happening.rule not in {each.rule for each, _ in unmet}]
    problems += [f"{place}: {rule} went in, and was not expected" for rule in surprises]
    return Judgement(place, problems, happened)


def _met(expected: Expected, happened: list[Happening], came_in: list[Happening]) -> bool:
    """Whether it came as expected; what went in is taken out of `came_in`, for it is expected once."""
    if expected.suppressed:
        became = HELD_BACK + expected.suppressed
        return any((happening.rule, happening.became) == (expected.rule, became) for happening in happened)
    for happening in came_in:
        if happening.rule == expected.rule and expected.text in happening.text:
            came_in.remove(happening)
            return True
    return False


def _happenings(decision: Decision) -> Iterator[Happening]:
    """What became of contexts by this decision, in the order in which it was decided."""
    made = decision.explanation
    if made is None:
        return
    told = partial(Happening, made.elapsed_ms, made.event)
    for held_back in decision.suppressed:
        yield told(held_back.rule, HELD_BACK + held_back.filter, reason=held_back.reason)
    for accepted in decision.accepted:
        if accepted.injection_id not in made.released:
            yield told(accepted.rule, f"waits for {accepted.placement}", text=accepted.text)
    for attempt in decision.attempts:
        if attempt.attempt == 1:
            yield told(attempt.injection.rule, WENT_IN, text=attempt.injection.context.render())
    for result in decision.results:
        if result.outcome is not Outcome.DELIVERED:
            yield told(result.rule, f"ended {result.outcome}", reason=result.reason)


def _became(rule: str, happened: list[Happening], call: Call) -> str:
    """What became of a rule's context that did not come as expected."""
    became = [each.became + (f": {each.reason}" if each.reason else "") for each in happened if each.rule == rule]
    if became:
        return f"it {'; it '.join(became)}"
    for held in call.state.held.values():
        if held.injection.rule == rule and held.stage is Stage.WAITING:
            return f"it still waits for {held.placement.place}"
    return "it did not fire"


class _Reading(Reading):
    """One pass over one file of scenarios."""

    def __init__(self, rules: RuleSet) -> None:
        super().__init__()
        self._rules = rules

    def value(self, node: yaml.Node, hint: Any, what: str) -> Any:
        """A step by what it is; the start by the fields of its event."""
        if hint is Step:
            return self._step(node)
        if hint is Start:
            return Start(self.values(node, SessionStarted, what))
        return super().value(node, hint, what)

    def fields_of(self, kind: Any) -> list[tuple[str, bool]]:
        """Of an event only what the call does not know by itself."""
        fields = super().fields_of(kind)
        if not issubclass(kind, ConversationEvent):
            return fields
        return [
            (name, required and kind is not SessionStarted and name not in _IDS)
            for name, required in fields
            if name not in _KNOWN_BY_THE_CALL
        ]

    def _step(self, node: yaml.Node) -> Step | None:
        if not isinstance(node, yaml.MappingNode) or len(node.value) != 1:
            self.problem(node, f"a step is {shown(node)}, expected one pair such as `user: hello` or `expect: nothing`")
            return None
        pairs = self.pairs(node, _STEPS, "a step")
        if not pairs:
            return None
        ((name, value),) = pairs.items()
        place = self.place(node)
        if name == "expect":
            return Step(place, expected=self._expected(value))
        return Step(place, self._happens(name, value))

    def _happens(self, name: str, node: yaml.Node) -> Callable[[Call], object]:
        if name in (USER, ASSISTANT):
            return partial(Call.says, text=self.value(node, str, f"`{name}`"), speaker=name)
        if name == "wait":
            return partial(Call.advance_ms, span_ms=self.value(node, Duration, "`wait`"))
        kind = EVENT_NAMES[name]
        fields = {} if shown(node) == "empty" else self.values(node, kind, f"`{name}`")
        ids = {name: "by hand" for name, _ in self.fields_of(kind) if name in _IDS}
        return partial(Call.send, kind=kind, **(ids | fields))

    def _expected(self, node: yaml.Node) -> Expected | None:
        if isinstance(node, yaml.ScalarNode):
            rule = self.value(node, str, "`expect`")
            expected = None if rule in (None, NOTHING) else Expected(rule)
        else:
            expected = self.made_of_fields(node, Expected, "`expect`")
        known = [rule.name for rule in self._rules.rules]
        if expected is not None and expected.rule not in known:
            self.problem(node, f"there is no rule `{expected.rule}`{instead(expected.rule, known)}")
        return expected
