"""What the rules of a set cannot mean, though each of them is right.

    unreachable     a rule that can never fire, or whose context can never go in
    unused          a fallback that can never come
    too long        a text that no session has room for
    shadowed        another rule fires whenever it does, and goes first in their slot
    contradiction   another rule fires whenever it does, and says the opposite

Rules on trial put nothing in, so they are in nobody's way. What a template will say is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final, Literal, TypeAlias

from contextengine.engine.builders import Text
from contextengine.engine.decide import ABANDONED_AFTER_MS
from contextengine.engine.rules import Rule, RuleSet
from contextengine.engine.strategies.compose import All, AnyOf, AtMost, CoolDown, Not
from contextengine.engine.strategies.semantic import Emotion, Keyword
from contextengine.engine.strategies.state_based import Phase, Silence
from contextengine.engine.strategies.strategy import Holding, Strategy
from contextengine.schemas.context import Context, ContextMetadata, Facts
from contextengine.schemas.events import MessageCompleted
from contextengine.schemas.session import Place

_UNITS: Final = {"h": 3_600_000, "min": 60_000, "s": 1_000, "ms": 1}

Kind: TypeAlias = Literal["unreachable", "unused", "too long", "shadowed", "contradiction"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a rule, and why."""

    rule: str
    kind: Kind
    told: str


def findings(rules: RuleSet) -> list[Finding]:
    """What is to be said of these rules, rule by rule in their order."""
    found = [Finding(rule.name, kind, told) for rule in rules.rules for kind, told in _of_one(rule)]
    acting = [rule for rule in rules.rules if not rule.shadow and rule.share > 0]
    for first, second in combinations(sorted(acting, key=lambda rule: -rule.priority), 2):
        if first.slot == second.slot:
            if first.share >= 1 and _fires_with(second, first):
                told = f"{first.name} fires whenever it does, and goes first in their slot `{first.slot}`"
                found.append(Finding(second.name, "shadowed", f"{told}: it goes in only where that one is held back"))
        elif _fires_with(second, first) or _fires_with(first, second):
            found += [Finding(second.name, "contradiction", told) for told in _contradictions(second, first)]
    order = {rule.name: at for at, rule in enumerate(rules.rules)}
    return sorted(found, key=lambda finding: order[finding.rule])


def _of_one(rule: Rule) -> Iterator[tuple[Kind, str]]:
    when, life = rule.when, f"its life is over after {_written(rule.ttl_ms)}"
    if isinstance(when, Silence) and when.lasts_ms >= ABANDONED_AFTER_MS:
        yield "unreachable", f"a session that is silent for {_written(ABANDONED_AFTER_MS)} is forgotten"
    if isinstance(when, All):
        yield from (("unreachable", told) for told in _never_together(when.of))
    falls_back = rule.fallback_ms is not None and rule.fallback_ms < rule.ttl_ms
    begins = when.listens == {MessageCompleted}  # anything else may come when it has been quiet for long
    if rule.place is Place.SILENCE and rule.quiet_ms >= rule.ttl_ms and begins and not falls_back:
        yield "unreachable", f"it waits for a silence of {_written(rule.quiet_ms)}, and {life}"
    if rule.fallback_ms is not None and rule.place is Place.NOW:
        yield "unused", "`fallback` is for a context that waits, and `place: now` does not"
    elif rule.fallback_ms is not None and not falls_back:
        yield "unused", f"its fallback comes after {_written(rule.fallback_ms)}, and {life}"
    if isinstance(rule.build, Text):
        dimensions = [_plain(told) for told in (rule.build.information, rule.build.strategy, rule.build.attention)]
        too_long = Context(ContextMetadata("", "", 0, 0), *dimensions).oversize()
        if too_long is not None:
            yield "too long", too_long


def _never_together(parts: Sequence[Strategy]) -> Iterator[str]:
    """Why these parts can never fire on the same event."""
    denied = [part.of for part in parts if isinstance(part, Not)]
    if any(_hears(part, no) or (part == no and isinstance(part, Holding)) for part in parts for no in denied):
        yield "one of its parts is what another one denies"
    if len({part.at for part in parts if isinstance(part, Phase)}) > 1:
        yield "a conversation is in one phase at a time, and its parts want several"
    heard = [part for part in parts if isinstance(part, Keyword | Emotion)]
    if len({part.speaker for part in heard} - {None}) > 1:
        yield "some of its parts listen to the user and some to the assistant, and a message is said by one of them"
    felt = [set(part.any_of) for part in heard if isinstance(part, Emotion) and part.implied is None]
    if felt and not set.intersection(*felt):
        yield "its parts have no emotion in common, and a message is heard to have one"


def _fires_with(one: Rule, other: Rule) -> bool:
    """Whether `other` fires whenever `one` does; false where that cannot be told."""
    if other.condition not in (None, one.condition):
        return False
    return one.when == other.when or _hears(one.when, other.when)  # what counts counts alike only where all is the same


def _hears(one: Strategy, other: Strategy) -> bool:
    """Whether `other` fires on every message on which `one` does."""
    match one, other:
        case All(), _:
            return any(_hears(part, other) for part in one.of)
        case AtMost() | CoolDown(), _:
            return _hears(one.of, other)
        case AnyOf(), _:
            return all(_hears(part, other) for part in one.of)
        case _, AnyOf():
            return any(_hears(one, part) for part in other.of)
        case (Keyword() as mine, Keyword() as theirs) | (Emotion() as mine, Emotion() as theirs):
            alike = getattr(mine, "implied", None) == getattr(theirs, "implied", None)
            return alike and set(mine.any_of) <= set(theirs.any_of) and theirs.speaker in (None, mine.speaker)
    return False


def _contradictions(rule: Rule, other: Rule) -> Iterator[str]:
    """How the texts of two rules that fire together contradict each other."""
    one, two = rule.build, other.build
    if not (isinstance(one, Text) and isinstance(two, Text)):
        return
    here, there = _plain(one.strategy), _plain(two.strategy)
    for name in sorted(here.keys() & there.keys()):
        if here[name] != there[name]:
            yield f"its `{name}` is {here[name]!r}, and that of {other.name}, which goes in too, is {there[name]!r}"
    for mine, theirs in (("focus", "avoid"), ("avoid", "focus")):
        for text in sorted(_texts(one, mine) & _texts(two, theirs)):
            yield f"its `{mine}` is what {other.name}, which goes in too, has under `{theirs}`: {text!r}"


def _texts(text: Text, name: str) -> set[str]:
    """What its attention has under `name`."""
    told = _plain(text.attention).get(name, [])
    return {told} if isinstance(told, str) else set(told)


def _plain(told: Mapping[str, str | list[str]]) -> Facts:
    """What is no template."""
    return {name: text for name, text in told.items() if "{" not in str(text)}


def _written(span_ms: int) -> str:
    unit, size_ms = next((unit, size_ms) for unit, size_ms in _UNITS.items() if span_ms % size_ms == 0)
    return f"{span_ms // size_ms} {unit}"
