"""What is known of the demo's calls: from the topics, and from the VoiceEngine what was in a call's context. Pure.

Records of different topics may come in any order: an injection is told of as soon as enough of it is known.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from contextengine.schemas.decision import DecisionMade
from contextengine.schemas.events import (
    ASSISTANT,
    ConversationEvent,
    MessageCompleted,
    SessionEnded,
    SessionStarted,
    TurnEnded,
    TurnStarted,
    UserMuted,
    UserUnmuted,
)
from contextengine.schemas.injection import AttemptVerdict, InjectionResult, Outcome, Verdict

if TYPE_CHECKING:
    from msgspec import Struct

    from contextengine.demo.voice_engine import Asked


class Kind(StrEnum):
    """What a line of the story is about."""

    SAID = "said"
    FIRED = "fired"
    DELIVERED = "delivered"
    IN_CONTEXT = "in context"
    ENDED = "ended"
    HELD_BACK = "held back"


@dataclass(frozen=True, slots=True)
class Line:
    """Something worth telling; `elapsed_ms` is the call's own time."""

    session_id: str
    elapsed_ms: int
    kind: Kind
    who: str
    text: str


@dataclass
class InjectionStory:
    """An injection, as far as it is known. Times are broker milliseconds, 0 while they are not known."""

    injection_id: str
    session_id: str
    rule: str = ""
    evidence: dict[str, str] = field(default_factory=dict)
    placement: str = ""
    text: str = ""
    at_ms: int = 0
    elapsed_ms: int = 0
    released_ms: int = 0
    verdict: AttemptVerdict | None = None
    result: InjectionResult | None = None

    @property
    def delivered(self) -> bool:
        """Whether an attempt has brought it to the provider."""
        return self.verdict is not None and self.verdict.verdict is Verdict.DELIVERED


@dataclass(frozen=True, slots=True)
class HeldBack:
    """A fired rule's context that was not injected, and which filter said why. `at_ms` is broker time."""

    session_id: str
    at_ms: int
    elapsed_ms: int
    rule: str
    evidence: dict[str, str]
    filter: str
    reason: str


@dataclass
class CallStory:
    """A call, as far as it is known."""

    session_id: str
    started_ms: int = 0
    time_scale: float = 1.0
    messages: int = 0
    state: str = "quiet"
    ended_ms: int = 0
    asked: list[Asked] = field(default_factory=list)
    told: set[str] = field(default_factory=set)
    lines: list[Line] = field(default_factory=list)

    def elapsed_ms(self, at_ms: int) -> int:
        """The call's own time at `at_ms`; 0 before its start was seen."""
        return max(0, round((at_ms - self.started_ms) * self.time_scale)) if self.started_ms else 0


@dataclass(frozen=True, slots=True)
class NextTurn:
    """The first turn that the model was asked for after an injection was acknowledged."""

    number: int
    ahead_ms: int
    in_context: bool


class Story:
    """Everything so far. `observe` and `heard` take in what is new, and return what there is to tell of it."""

    def __init__(self) -> None:
        self.calls: dict[str, CallStory] = {}
        self.injections: dict[str, InjectionStory] = {}
        self.held_back: list[HeldBack] = []
        self.events: Counter[str] = Counter()
        self.dead_letters = 0

    def observe(self, record: Struct, appended_ms: int) -> list[Line]:
        """Take in a record of the events, decisions, attempts or results topic."""
        match record:
            case ConversationEvent():
                lines = self._happened(record, appended_ms)
            case DecisionMade():
                lines = [*self._decided(record), *self._seen_in_context(self._call(record.session_id))]
            case AttemptVerdict():
                lines = self._attempted(record, appended_ms)
            case InjectionResult():
                lines = self._ended(record)
            case _:
                lines = []  # ticks, reports and the like: the decisions tell what followed from them
        return self._told(lines)

    def heard(self, asked: Asked) -> list[Line]:
        """Take in that the model was asked for a turn, and what was in its context."""
        call = self._call(asked.session_id)
        call.asked.append(asked)
        return self._told(self._seen_in_context(call))

    def next_turn(self, injection: InjectionStory) -> NextTurn | None:
        """The turn that came after the injection; None before it comes, or for what was not delivered."""
        if injection.verdict is None or not injection.delivered:
            return None
        answered_ms = injection.verdict.answered_ms
        for number, asked in enumerate(self._call(injection.session_id).asked, 1):
            in_context = injection.injection_id in asked.item_ids
            if in_context or asked.asked_ms > answered_ms:
                return NextTurn(number, max(0, asked.asked_ms - answered_ms), in_context)
        return None

    @property
    def open_injections(self) -> list[InjectionStory]:
        """Those without an outcome."""
        return [injection for injection in self.injections.values() if injection.result is None]

    def _call(self, session_id: str) -> CallStory:
        return self.calls.setdefault(session_id, CallStory(session_id))

    def _injection(self, injection_id: str, session_id: str) -> InjectionStory:
        return self.injections.setdefault(injection_id, InjectionStory(injection_id, session_id))

    def _told(self, lines: list[Line]) -> list[Line]:
        for line in lines:
            self._call(line.session_id).lines.append(line)
        return lines

    def _seen_in_context(self, call: CallStory) -> list[Line]:
        """The turns that were asked for with contexts which nobody has told of yet."""
        lines = []
        for number, asked in enumerate(call.asked, 1):
            new = [i for i in asked.item_ids if i not in call.told and i in self.injections and self.injections[i].rule]
            if new:
                call.told.update(new)
                counts = Counter(self.injections[item_id].rule for item_id in new)
                rules = ", ".join(rule if count == 1 else f"{rule} ({count}x)" for rule, count in counts.items())
                elapsed_ms = call.elapsed_ms(asked.asked_ms)
                lines.append(Line(call.session_id, elapsed_ms, Kind.IN_CONTEXT, f"turn {number}", rules))
        return lines

    def _happened(self, event: ConversationEvent, appended_ms: int) -> list[Line]:
        self.events[type(event).__name__] += 1
        call = self._call(event.session_id)
        match event:
            case SessionStarted():
                call.started_ms, call.time_scale = appended_ms, event.time_scale
            case SessionEnded():
                call.ended_ms, call.state = appended_ms, "ended"
            case TurnStarted():
                call.state = "the model speaks" if event.speaker == ASSISTANT else "the person speaks"
            case TurnEnded():
                call.state = "quiet"
            case UserMuted():
                call.state = "on hold"
            case UserUnmuted():
                call.state = "quiet"
            case MessageCompleted():
                call.messages += 1
                elapsed_ms = call.elapsed_ms(appended_ms)
                return [Line(call.session_id, elapsed_ms, Kind.SAID, event.speaker, event.text)]
        return []

    def _decided(self, decision: DecisionMade) -> list[Line]:
        evidence = {firing.rule: firing.evidence for firing in decision.fired}
        lines = []
        for accepted in decision.accepted:
            injection = self._injection(accepted.injection_id, decision.session_id)
            injection.rule, injection.text = accepted.rule, accepted.text
            injection.evidence = evidence.get(accepted.rule, {})
            injection.placement = accepted.placement
            injection.at_ms, injection.elapsed_ms = decision.now_ms, decision.elapsed_ms
            moment = "at once" if accepted.placement == "now" else f"at {said(accepted.placement)}"
            told = f"fired on {shown(injection.evidence)}; {moment}"
            lines.append(Line(decision.session_id, decision.elapsed_ms, Kind.FIRED, accepted.rule, told))
        for injection_id in decision.released:
            self._injection(injection_id, decision.session_id).released_ms = decision.now_ms
        for suppression in decision.suppressed:
            held_back = HeldBack(
                decision.session_id,
                decision.now_ms,
                decision.elapsed_ms,
                suppression.rule,
                evidence.get(suppression.rule, {}),
                suppression.filter,
                suppression.reason,
            )
            self.held_back.append(held_back)
            told = f"by {suppression.filter}: {suppression.reason}; it had fired on {shown(held_back.evidence)}"
            lines.append(Line(decision.session_id, decision.elapsed_ms, Kind.HELD_BACK, suppression.rule, told))
        return lines

    def _attempted(self, verdict: AttemptVerdict, appended_ms: int) -> list[Line]:
        injection = self._injection(verdict.injection_id, verdict.session_id)
        injection.verdict = verdict
        call = self._call(verdict.session_id)
        if not injection.delivered:
            told = f"attempt {verdict.attempt}: {verdict.verdict}, {verdict.error_class} {verdict.message}"
            line = Line(call.session_id, call.elapsed_ms(appended_ms), Kind.ENDED, injection.rule, told)
            return [line]
        told = (
            f"in the call as a {verdict.role} item, {said(verdict.confirmation)}, acknowledged in "
            f"{verdict.answered_ms - verdict.sent_ms} ms, while {call.state}"
        )
        return [Line(call.session_id, call.elapsed_ms(verdict.answered_ms), Kind.DELIVERED, injection.rule, told)]

    def _ended(self, result: InjectionResult) -> list[Line]:
        injection = self._injection(result.injection_id, result.session_id)
        injection.result, injection.rule = result, result.rule
        if result.outcome is Outcome.DELIVERED:
            return []
        call = self._call(result.session_id)
        told = f"{result.outcome}: {result.reason}"
        return [Line(call.session_id, call.elapsed_ms(result.decided_ms), Kind.ENDED, result.rule, told)]


def said(name: str) -> str:
    """A name of the code in plain words."""
    return name.replace("_", " ")


def shown(evidence: dict[str, str]) -> str:
    """Evidence in a few words."""
    return ", ".join(f"{name} {what}" for name, what in evidence.items())
