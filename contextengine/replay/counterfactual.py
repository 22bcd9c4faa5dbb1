"""Other rules on recorded conversations: what they would have injected, beside what was injected.

The loop is closed: what the engine had asked for is dropped from the recording, and comes anew for what it asks now.

    what happened in the conversation   as recorded, when it was
    rules                               the other ones, from the first record on
    a timer that really fired           fires when it did; one that an event overtook, right after that event
    any other timer                     fires when it is due
    an attempt that was really made     ends as it did, as long after it; refused it is with the same content only
    any other attempt                   is refused where the same content was, else delivered after the usual time
    a rest on the delay line            as long as it really was, else as long as the line is
    people, and the model               say what they said: they react to no context that they did not get

So the rules that were in force give what was recorded, to the last digest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Final, NamedTuple

from contextengine.replay.closed_loop import Judged, Past, World, pasts
from contextengine.replay.partition import RuleSets
from contextengine.replay.recording import Recording
from contextengine.rulefile import rules_hash

USUAL_LATENCY_MS: Final = 50
"""From an attempt to its report, where the recordings have none."""
SAME_MOMENT_MS: Final = 250
"""In the conversation's own time: a smaller difference says nothing."""
OPEN: Final = "open"


class Change(StrEnum):
    """What has become of an injection under the other rules."""

    SAME = "same"
    CHANGED = "changed"
    ONLY_BEFORE = "only before"
    ONLY_NOW = "only now"


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of an injection; times are the conversation's own.

    `position` and `event` are its trigger's. `sent_ms` and `sent_on`, the event that released it, are None and "" when
    it never went out; `outcome` is `open` when it has not ended within the recording.
    """

    rule: str
    position: str
    event: str
    fired_ms: int
    text: str
    sent_ms: int | None
    sent_on: str
    outcome: str


class Difference(NamedTuple):
    """An injection before, and now; at least one of the two is there."""

    before: Fate | None
    now: Fate | None

    @property
    def either(self) -> Fate:
        """The injection as it is now, else as it was."""
        fate = self.now or self.before
        assert fate is not None  # noqa: S101
        return fate

    @property
    def change(self) -> Change:
        """What kind of difference it is."""
        if self.before is None:
            return Change.ONLY_NOW
        if self.now is None:
            return Change.ONLY_BEFORE
        return Change.CHANGED if self.changed else Change.SAME

    @property
    def changed(self) -> list[str]:
        """What differs of an injection that there is before and now: text, moment, outcome."""
        before, now = self.before, self.now
        if before is None or now is None:
            return []
        differs = {
            "text": before.text != now.text,
            "moment": before.sent_on != now.sent_on or abs((before.sent_ms or 0) - (now.sent_ms or 0)) > SAME_MOMENT_MS,
            "outcome": before.outcome != now.outcome,
        }
        return [name for name, does in differs.items() if does]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One session under the rules that were in force, and under the other ones.

    `answers` counts where the answers to what the engine asked for now are from.
    """

    session_id: str
    before: Judged
    now: Judged
    answers: Counter[str]

    @property
    def injections(self) -> list[Difference]:
        """Every injection of either side, in the order in which their rules fired."""
        before, now = _fates(self.before), _fates(self.now)
        both = [Difference(before.get(name), now.get(name)) for name in dict.fromkeys([*before, *now])]
        return sorted(both, key=lambda difference: difference.either.fired_ms)

    @property
    def suppressed(self) -> dict[tuple[str, str], tuple[int, int]]:
        """How many contexts a (filter, rule) held back, before and now, where the two differ."""
        before, now = _suppressed(self.before), _suppressed(self.now)
        return {name: (before[name], now[name]) for name in sorted(before | now) if before[name] != now[name]}

    @property
    def differs(self) -> bool:
        """Whether anything does."""
        return bool(self.suppressed) or any(one.change is not Change.SAME for one in self.injections)


@dataclass(frozen=True, slots=True)
class Trial:
    """What other rules make of recordings. `skipped` says of a session why it could not be tried.

    `latency_ms` is what an attempt takes that was never made: the median of `measured` recorded ones, or what was
    wished for when that is None.
    """

    sessions: list[Comparison]
    skipped: dict[str, str]
    latency_ms: int
    measured: int | None

    @property
    def differs(self) -> bool:
        """Whether any session does."""
        return any(session.differs for session in self.sessions)


def try_rules(recordings: Iterable[Recording], rules: str, latency_ms: int | None = None) -> Trial:
    """Judge the recorded conversations anew by `rules`, the text of a rules file.

    Raises RulesInvalid, and ConfigurationError when the rules that were in force are not in the recording.
    """
    was: list[Past] = []
    skipped: dict[str, str] = {}
    for recording in recordings:
        was += pasts(recording)
        skipped |= recording.header.incomplete
    took = [lag_ms for past in was for lag_ms in past.latencies()]
    usual_ms = round(median(took or [USUAL_LATENCY_MS])) if latency_ms is None else latency_ms
    other = RuleSets({rules_hash(rules): rules})
    sessions = []
    for past in was:
        world = World(past, rules_hash(rules), other, usual_ms)
        world.run()
        sessions.append(Comparison(past.session_id, past.judged, world.judged, world.answers))
    return Trial(sessions, skipped, usual_ms, len(took) if latency_ms is None else None)


def _suppressed(judged: Judged) -> Counter[tuple[str, str]]:
    return Counter((told.filter, told.rule) for decision in judged.decisions for told in decision.suppressed)


def _fates(judged: Judged) -> dict[str, Fate]:
    """What became of each injection, by its id."""
    outcomes = {told.injection_id: told.outcome.value for decision in judged.decisions for told in decision.results}
    sent = {name: made for made in reversed(judged.explanations) for name in made.released}
    return {
        accepted.injection_id: Fate(
            rule=accepted.rule,
            position=made.position,
            event=made.event,
            fired_ms=made.elapsed_ms,
            text=accepted.text,
            sent_ms=sent[accepted.injection_id].elapsed_ms if accepted.injection_id in sent else None,
            sent_on=sent[accepted.injection_id].event if accepted.injection_id in sent else "",
            outcome=outcomes.get(accepted.injection_id, OPEN),
        )
        for made in judged.explanations
        for accepted in made.accepted
    }
