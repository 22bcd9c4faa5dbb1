"""Why a rule fired on an event, or why it did not: an answer for every rule and every event of a recorded session.

    injected         it fired, and its context became an injection: where it went in, when, and how it ended
    held back        it fired, and a filter held its context back; or it failed
    said no          it was asked, and its strategy found no evidence
    not asked        it might have been, but its words were not in the message, the event came twice, its timer moved
    does not listen  no event of this kind can make it fire

Nothing is taken from the decisions topic: the events go through `decide` once more, and just before it asks the rules
about one, what each of them has to go by is looked at.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, cast

import msgspec
from msgspec import Struct

from contextengine.engine import clock
from contextengine.engine.explain import in_call, seen, some, why_not
from contextengine.engine.rules import RULE_TIMER, Rule, RuleSet
from contextengine.engine.strategies.strategy import Worded
from contextengine.errors import ConfigurationError
from contextengine.replay.counterfactual import OPEN
from contextengine.replay.exact import cautions
from contextengine.replay.partition import PartitionReplay, RuleSets
from contextengine.replay.recording import LogRecord, Recording, sessions_of
from contextengine.schemas.decision import DecisionMade, Suppression
from contextengine.schemas.events import PARTITION_EVENTS, ConversationEvent, InjectionRedriven, SessionFeedback, Tick
from contextengine.schemas.session import Partition, RuleMemory, Session

if TYPE_CHECKING:
    from contextengine.engine.decision import Decision
    from contextengine.engine.moment import Moment


class Kind(StrEnum):
    """The kinds of answers, as in the table above."""

    INJECTED = "injected"
    HELD_BACK = "held back"
    SAID_NO = "said no"
    NOT_ASKED = "not asked"
    DOES_NOT_LISTEN = "does not listen"


class Occasion(Struct, frozen=True, kw_only=True):
    """An event of the session: its offset in the log, its time in the call, and what was said, if it is a message.

    `position` names it; `seq` is its producer's number, None for feedback.
    """

    offset: int
    elapsed_ms: int
    event: str
    position: str
    seq: int | None
    said: str


class Injected(Struct, kw_only=True):
    """What has become of an injection by the recording's end.

    `sent_ms`, in the call, and `sent_on`, the event that released it, are None and "" while it waits for `place`;
    `outcome` is `open` until it ends.
    """

    injection_id: str
    place: str
    sent_ms: int | None = None
    sent_on: str = ""
    outcome: str = OPEN
    attempts: int = 0
    reason: str = ""

    def __str__(self) -> str:
        """The injection for people."""
        sent = "not sent" if self.sent_ms is None else f"sent at {in_call(self.sent_ms)} on {self.sent_on}"
        tries = f" after {self.attempts} attempts" if self.attempts > 1 else ""
        why = f" ({self.reason})" if self.reason else ""
        return f"{self.injection_id} at {self.place}, {sent}, {self.outcome}{tries}{why}"


class Answer(Struct, frozen=True, kw_only=True):
    """What came of a rule because of an event: on what evidence it fired, or for which reason it did not.

    Of an injection that goes in again without a firing, `reason` says why. What is held back without evidence failed.
    """

    on: Occasion
    rule: str
    kind: Kind
    reason: str = ""
    evidence: dict[str, str] = {}
    suppression: Suppression | None = None
    injection: Injected | None = None

    def __str__(self) -> str:
        """The answer for people, without its event and its rule."""
        fired = f"fired on {seen(self.evidence)}; " if self.evidence else ""
        again = f"{self.reason}; " if self.reason else ""
        if self.injection is not None:
            return f"{fired}{again}injected {self.injection}"
        if self.suppression is not None:
            return f"{fired}held back by {self.suppression.filter}: {self.suppression.reason}"
        return f"{self.kind}: {self.reason}"


@dataclass(slots=True)
class Why:
    """The answers about a session in the order of its events, how many of these it has, and what is to be known."""

    session_id: str
    events: int = 0
    answers: list[Answer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def why(recording: Recording, session_id: str, *, event: str | None = None, rule: str | None = None) -> Why:
    """The answers about a session: all about `event` (its seq or position) and about `rule`, if they are given.

    With neither, those about rules that fired. Raises ConfigurationError for a session, an event or a rule that is not
    there, and for a session that cannot be judged again.
    """
    records = _records_of(recording, session_id)
    begun = recording.sessions.get(session_id)
    gone = [f"its events up to offset {begun.offset} are not in there"] if begun is not None else []
    inquiry = _Inquiry(recording, session_id, records[0].partition, event, rule)
    alone = Recording(msgspec.structs.replace(recording.header, incomplete={}), records=records)
    inquiry.told.notes += [*cautions(alone), *gone]
    for of in records:
        inquiry.take(of)
    if not inquiry.has_met_event:
        seqs = [of.event.seq for of in records if isinstance(of.event, ConversationEvent)]
        there = f"it has {min(seqs)} to {max(seqs)}" if seqs else "it has none of a conversation"
        raise ConfigurationError("; ".join([f"session {session_id!r} has no event {event}", there, *gone]))
    if rule is not None and rule not in inquiry.rule_names:
        raise ConfigurationError(f"no rule {rule!r} was in force; {_hint(rule, inquiry.rule_names)}")
    return inquiry.told


def _records_of(recording: Recording, session_id: str) -> list[LogRecord]:
    """The session's records, and the broadcasts to its partition."""
    if session_id in recording.header.incomplete:
        reason = recording.header.incomplete[session_id]
        raise ConfigurationError(f"session {session_id!r} cannot be judged again: {reason}")
    numbers = {of.partition for of in recording.records if _session_of(of) == session_id}
    if not numbers:
        raise ConfigurationError(f"no session {session_id!r} is recorded; {_hint(session_id, sessions_of(recording))}")
    return [
        of
        for of in recording.records
        if of.partition in numbers and (_session_of(of) == session_id or isinstance(of.event, PARTITION_EVENTS))
    ]


def _session_of(record: LogRecord) -> str | None:
    return getattr(record.event, "session_id", None)


def _hint(name: str, known: Collection[str]) -> str:
    """What may have been meant by a name that is not known."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there is {some(known) or 'none'}"


class _Inquiry:
    """Judges a session's records one after the other, and collects the answers."""

    def __init__(self, recording: Recording, session_id: str, number: int, event: str | None, rule: str | None) -> None:
        self.told = Why(session_id)
        self.has_met_event = False
        self.rule_names: set[str] = set()
        self._event, self._rule = event, rule
        self._wants_all = event is not None or rule is not None
        sessions = {name: copy.deepcopy(state) for name, state in recording.sessions.items() if name == session_id}
        self._session = sessions.get(session_id) or Session(session_id)
        self._rule_sets = _OverheardRuleSets(recording.header.rules, self._overhear)
        partition = copy.deepcopy(recording.partitions.get(number) or Partition(number))
        self._replay = PartitionReplay(partition, sessions, self._rule_sets)
        self._injected: dict[str, Injected] = {}
        self._is_as_recorded = True
        self._asked: set[str] | None = None
        """The rules that were asked about the event; None when it was not such that any could be."""
        self._no: dict[str, str] = {}
        """Why the strategies of these, and of those that have a timer, would say no to it."""
        self._timers: dict[str, int] = {}
        """What the session waited for before it."""

    def take(self, of: LogRecord) -> None:
        """Judge the next record."""
        self._asked, self._no, self._timers = None, {}, self._session.timers.copy()
        copies = self._session.duplicates
        decision, event = self._replay.judge(of.offset, of.appended_ms, of.event), of.event
        if event is None or isinstance(event, PARTITION_EVENTS):
            return
        self.told.events += 1
        self._session = self._replay.sessions.get(event.session_id, self._session)
        rules = self._rule_sets.of(self._replay.partition.rules_hash)
        on = Occasion(
            offset=of.offset,
            elapsed_ms=clock.elapsed_ms(self._session, self._replay.partition.now_ms),
            event=type(event).__name__,
            position=decision.position if decision is not None else getattr(event, "position", ""),
            seq=getattr(event, "seq", None),
            said=getattr(event, "text", ""),
        )
        self.rule_names |= {rule.name for rule in rules.rules}
        if decision is not None:
            self.rule_names |= {firing.rule for firing in decision.fired}  # what is pushed is of no rule set
            self._follow(decision, on)
            self._compare(of, decision)
        if not self._is_meant(on.seq, on.position):
            return
        self.has_met_event = True
        fired = list(self._fired(decision, on)) if decision is not None else []
        self.told.answers += fired
        if self._wants_all:
            nobody = _why_nobody(event, decision, is_copy=self._session.duplicates > copies)
            for name in [rule.name for rule in rules.rules] if self._rule is None else [self._rule]:
                if name not in {answer.rule for answer in fired}:
                    kind, reason = self._why_silent(name, rules, event, nobody)
                    self.told.answers.append(Answer(on=on, rule=name, kind=kind, reason=reason))

    def _is_meant(self, seq: int | None, position: str) -> bool:
        return self._event in (None, str(seq), position)

    def _overhear(self, rules: RuleSet, moment: Moment, asked: Collection[Rule]) -> None:
        """Look at what the rules have to go by, just before some of them are asked."""
        event, self._asked = moment.event, {rule.name for rule in asked}
        if self._wants_all and (not isinstance(event, ConversationEvent) or self._is_meant(event.seq, event.position)):
            self._no = {
                rule.name: why_not(rule.when, moment, _memory(moment.session, rule))
                for rule in (*asked, *(rule for rule, _ in rules.timed))
                if self._rule in (None, rule.name)
            }

    def _follow(self, decision: Decision, on: Occasion) -> None:
        """Note what becomes of injections."""
        for accepted in decision.accepted:
            self._injected[accepted.injection_id] = Injected(
                injection_id=accepted.injection_id, place=accepted.placement
            )
        for attempt in decision.attempts:
            fate = self._injected.get(attempt.injection.injection_id)
            if fate is not None and fate.sent_ms is None:
                fate.sent_ms, fate.sent_on = on.elapsed_ms, on.event
        for result in decision.results:
            fate = self._injected.get(result.injection_id)
            if fate is not None:
                fate.outcome, fate.attempts, fate.reason = result.outcome.value, result.attempts, result.reason

    def _compare(self, of: LogRecord, decision: Decision) -> None:
        """Note a defect of the engine, and the first event of which another decision is recorded."""
        where = f"{decision.event} {decision.position}"
        if decision.defect:
            self.told.notes.append(f"the engine fails on {where}: {decision.defect}")
        recorded = next((output for output in of.outputs if isinstance(output, DecisionMade)), decision.explanation)
        if self._is_as_recorded and recorded != decision.explanation:
            self._is_as_recorded = False
            self.told.notes.append(f"from {where} on, other decisions are recorded; see `contextengine replay`")

    def _fired(self, decision: Decision, on: Occasion) -> Iterator[Answer]:
        """The answers about rules that came to something."""
        evidence = {firing.rule: firing.evidence for firing in decision.fired}
        again = "sent back from the dead letters" if on.event == InjectionRedriven.__name__ else "lost by the model"
        for accepted in decision.accepted:
            if self._rule in (None, accepted.rule):
                yield Answer(
                    on=on,
                    rule=accepted.rule,
                    kind=Kind.INJECTED,
                    reason="" if accepted.rule in evidence else again,
                    evidence=evidence.get(accepted.rule, {}),
                    injection=self._injected[accepted.injection_id],
                )
        for held_back in decision.suppressed:
            on_what = evidence.get(held_back.rule, {})
            if self._rule in (None, held_back.rule):
                yield Answer(on=on, rule=held_back.rule, kind=Kind.HELD_BACK, evidence=on_what, suppression=held_back)

    def _why_silent(
        self, name: str, rules: RuleSet, event: ConversationEvent | SessionFeedback, nobody: str
    ) -> tuple[Kind, str]:
        """Why the rule of this name came to nothing."""
        rule = rules.rule(name)
        if rule is None:
            return Kind.NOT_ASKED, f"the rules in force here ({rules.rules_hash or 'none'}) have no such rule"
        if type(event) not in rule.when.listens or getattr(event, "timer", RULE_TIMER + name) != RULE_TIMER + name:
            return self._why_deaf(rule)
        if self._asked is None:
            return Kind.NOT_ASKED, nobody
        if name in self._asked:
            return Kind.SAID_NO, self._no[name]
        words = some(rule.when.phrases) if isinstance(rule.when, Worded) else ""
        return Kind.NOT_ASKED, f"the message has none of its phrases: {words}"

    def _why_deaf(self, rule: Rule) -> tuple[Kind, str]:
        """What an event means to a rule that does not listen to it: its timer may go by the event."""
        timer = RULE_TIMER + rule.name
        was_ms, is_ms = self._timers.get(timer), self._session.timers.get(timer)
        if was_ms is not None and is_ms is None:
            return Kind.NOT_ASKED, f"this stops its timer, which was due at {self._in_call(was_ms)}"
        if was_ms is not None and is_ms is not None and is_ms != was_ms:
            return Kind.NOT_ASKED, f"this moves its timer from {self._in_call(was_ms)} to {self._in_call(is_ms)}"
        listened = some("its timer" if kind is Tick else kind.__name__ for kind in rule.when.listens)
        return Kind.DOES_NOT_LISTEN, "; ".join(filter(None, [f"it listens to {listened}", self._no.get(rule.name)]))

    def _in_call(self, broker_ms: int) -> str:
        return in_call(clock.elapsed_ms(self._session, broker_ms))


def _memory(session: Session, rule: Rule) -> RuleMemory:
    """What the session remembers of a rule; nothing of one whose `when` has changed since."""
    memory = session.rules.get(rule.name)
    return memory if memory is not None and memory.when in ("", rule.when_digest) else RuleMemory()


def _why_nobody(event: ConversationEvent | SessionFeedback, decision: Decision | None, *, is_copy: bool) -> str:
    """Why no rule was asked about an event, if none was."""
    if decision is None:
        return "the session is not there, or has taken this in before"
    if decision.defect:
        return "the engine failed before it could ask"
    if isinstance(event, Tick):
        return "the tick came early, or nobody waits for it any more"
    if is_copy:
        return "the event is a copy, or so late that it may be one"
    return "the event is a straggler: later ones of its producer came first, and it fires nothing"


class _OverheardRuleSets(RuleSets):
    """Rule sets that let somebody listen when they are about to be asked about an event."""

    def __init__(self, texts: Mapping[str, str], listen: Callable[[RuleSet, Moment, Collection[Rule]], None]) -> None:
        super().__init__(texts)
        self._overheard: dict[str, RuleSet] = {}
        self._listen = listen

    def of(self, rules_hash: str) -> RuleSet:
        if rules_hash not in self._overheard:
            self._overheard[rules_hash] = cast("RuleSet", _Overheard(super().of(rules_hash), self._listen))
        return self._overheard[rules_hash]


class _Overheard:
    """In a rule set's place."""

    def __init__(self, rules: RuleSet, listen: Callable[[RuleSet, Moment, Collection[Rule]], None]) -> None:
        self._rules = rules
        self._listen = listen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rules, name)

    def concerned(self, moment: Moment) -> Collection[Rule]:
        """As the rule set's own."""
        asked = list(self._rules.concerned(moment))
        self._listen(self._rules, moment, asked)
        return asked
