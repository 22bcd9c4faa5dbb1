"""What the demo has shown, in figures, and whether all of it worked. Pure."""

from __future__ import annotations

from collections import Counter
from math import ceil
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from contextengine.demo.story import Story


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds that half of the cases, and all but one in a hundred, did not exceed; of `count` cases."""

    count: int
    p50_ms: int
    p99_ms: int


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The figures, and the problems: none when everything worked.

    `event_to_provider` is from the append time of the event that released an injection to the provider's answer.
    `in_context` counts the delivered injections that were in context when the model's next turn was asked for, of
    `with_next_turn`; after the others no turn was asked for.
    """

    calls: int
    seconds: float
    prefix: str
    broker: str
    events: int
    messages: int
    fired: dict[str, int]
    injections: dict[str, int]
    held_back: dict[str, int]
    event_to_provider: Latency
    provider_answer: Latency
    in_context: int
    with_next_turn: int
    type_violations: int
    dead_letters: int
    problems: list[str]


def summarise(
    story: Story,
    *,
    seconds: float,
    prefix: str,
    broker: str,
    expected: Iterable[str],
    violations: Sequence[str],
    problems: Iterable[str],
) -> Summary:
    """The summary of a run that was to deliver every rule of `expected`; `problems` are those that showed elsewhere."""
    injections = list(story.injections.values())
    delivered = [injection for injection in injections if injection.delivered]
    next_turns = [turn for injection in delivered if (turn := story.next_turn(injection)) is not None]
    fired = Counter(injection.rule for injection in injections)
    fired.update(held_back.rule for held_back in story.held_back)
    return Summary(
        calls=len(story.calls),
        seconds=round(seconds, 1),
        prefix=prefix,
        broker=broker,
        events=story.events.total(),
        messages=story.events["MessageCompleted"],
        fired=dict(fired),
        injections=dict(Counter(str(injection.result.outcome) for injection in injections if injection.result)),
        held_back=dict(Counter(held_back.filter for held_back in story.held_back)),
        event_to_provider=latency(
            injection.verdict.answered_ms - injection.released_ms for injection in delivered if injection.verdict
        ),
        provider_answer=latency(
            injection.verdict.answered_ms - injection.verdict.sent_ms for injection in delivered if injection.verdict
        ),
        in_context=sum(turn.in_context for turn in next_turns),
        with_next_turn=len(next_turns),
        type_violations=len(violations),
        dead_letters=story.dead_letters,
        problems=[*problems, *_problems(story, expected, violations)],
    )


def latency(milliseconds: Iterable[int]) -> Latency:
    """Nearest-rank percentiles; of nothing, zeros."""
    ordered = sorted(milliseconds)
    if not ordered:
        return Latency(0, 0, 0)
    count = len(ordered)
    return Latency(count, ordered[ceil(count * 0.50) - 1], ordered[ceil(count * 0.99) - 1])


def _problems(story: Story, expected: Iterable[str], violations: Sequence[str]) -> Iterable[str]:
    delivered = {injection.rule for injection in story.injections.values() if injection.delivered}
    if expected and not delivered:
        yield "no injection was delivered"
    for rule in expected:
        if rule not in delivered:
            yield f"rule {rule} delivered nothing"
    for injection in story.open_injections:
        yield f"{injection.session_id}: {injection.rule or injection.injection_id} has no outcome"
    for injection in story.injections.values():
        turn = story.next_turn(injection)
        if turn is not None and not turn.in_context:
            yield f"{injection.session_id}: {injection.rule} was delivered, and not in context for turn {turn.number}"
    for violation in violations:
        yield f"the simulator took offence: {violation}"
    if story.dead_letters:
        yield f"{story.dead_letters} dead letters"
