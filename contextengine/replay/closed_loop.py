"""A session once more, under other rules, in a closed loop: the world around it is modelled after what was recorded.

What happened in the conversation comes when it came. What the engine had asked for is dropped, and comes anew for what
it asks now: as it came where it was asked for then too, else as the model in `counterfactual`'s table says.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from math import inf
from typing import NamedTuple, TypeAlias

import msgspec

from contextengine.delivery.next_step import RETRY_LINE_MS
from contextengine.engine.candidate import content_hash
from contextengine.engine.decision import Decision
from contextengine.engine.lives import INJECTION_TIMER
from contextengine.replay.partition import PartitionReplay, RuleSets
from contextengine.replay.recording import Recording
from contextengine.schemas.decision import DecisionMade
from contextengine.schemas.events import AnyEvent, AttemptReported, PartitionEvent, RetryDue, RulesChanged, Tick
from contextengine.schemas.injection import AttemptVerdict, Confirmation, Destination, InjectionAttempt, Verdict
from contextengine.schemas.session import Partition, Session, Stage

Feedback: TypeAlias = Tick | AttemptReported | RetryDue
Wish: TypeAlias = Tick | RetryDue | InjectionAttempt
"""What the engine asks the world for; an attempt is answered by AttemptReported."""
_Key: TypeAlias = tuple[str, str, int]


class Judged:
    """A session under rules, from its state at the recording's start on: the decisions, in order."""

    def __init__(self, partition: Partition, state: Session, rule_sets: RuleSets) -> None:
        self.session_id = state.session_id
        self.decisions: list[Decision] = []
        started = msgspec.structs.replace(partition, floor=max(partition.floor, state.offset))
        self._replay = PartitionReplay(started, {state.session_id: copy.deepcopy(state)}, rule_sets)

    @property
    def now_ms(self) -> int:
        """The append time of the last record."""
        return self._replay.partition.now_ms

    @property
    def state(self) -> Session:
        """The session as it is now; a new one where it is forgotten."""
        return self._replay.sessions.get(self.session_id) or Session(self.session_id)

    @property
    def explanations(self) -> list[DecisionMade]:
        """Every decision that came to something."""
        return [decision.explanation for decision in self.decisions if decision.explanation is not None]

    def append(self, event: AnyEvent, at_ms: int) -> list[Wish]:
        """Judge `event`; what the engine asks the world for because of it."""
        decision = self._replay.judge(self._replay.partition.floor + 1, at_ms, event)
        if decision is None:
            return []
        self.decisions.append(decision)
        name = self.session_id
        return [
            *(Tick(session_id=name, timer=timer, due_ms=due_ms) for timer, due_ms in decision.timers),
            *(RetryDue(session_id=name, injection_id=of.injection_id, attempt=of.attempt) for of in decision.retries),
            *decision.attempts,
        ]


class Record(NamedTuple):
    """A record of the log, as far as it matters here."""

    at_ms: int
    offset: int
    event: AnyEvent


def pasts(recording: Recording) -> Iterator[Past]:
    """The sessions of a recording that can be replayed, each with the broadcasts to its partition.

    Raises ConfigurationError when a rule set that was in force is not in the recording, or cannot be read.
    """
    rule_sets = RuleSets(recording.header.rules)
    broadcasts: dict[int, list[Record]] = defaultdict(list)
    sessions: dict[int, dict[str, list[Record]]] = defaultdict(dict)
    for of in recording.records:
        if of.event is None:
            continue
        record = Record(of.appended_ms, of.offset, of.event)
        here = sessions[of.partition]
        if isinstance(of.event, PartitionEvent):
            for records in (broadcasts[of.partition], *here.values()):
                records.append(record)
        elif of.event.session_id not in recording.header.incomplete:
            here.setdefault(of.event.session_id, broadcasts[of.partition].copy()).append(record)
    ends_ms = max((of.appended_ms for of in recording.records), default=0)
    for number, here in sessions.items():
        partition = recording.partitions.get(number, Partition(number))
        for name, records in here.items():
            yield Past(recording.sessions.get(name) or Session(name), partition, records, ends_ms, rule_sets)


class Past:
    """A session as it was: its records, what the engine asked the world for and when, and what came."""

    def __init__(
        self, state: Session, partition: Partition, records: list[Record], ends_ms: int, rule_sets: RuleSets
    ) -> None:
        self.session_id = state.session_id
        self.state = state
        self.partition = partition
        self.records = records
        self.starts_ms, self.ends_ms = records[0].at_ms, ends_ms
        self.asked: dict[_Key, list[int]] = defaultdict(list)
        self.came: dict[_Key, list[Record]] = defaultdict(list)
        self.overtaken: dict[_Key, tuple[int, float]] = {}
        """Where a timer that was due already was dropped before its tick came."""
        self.contents: dict[_Key, str] = {}
        self.judged = Judged(partition, state, rule_sets)
        self.open = list(_open_wishes(self.state))
        self._note(self.open, self.starts_ms)
        for record in self.records:
            if isinstance(record.event, Feedback):
                self.came[_key(record.event)].append(record)
            waiting = {_key(tick) for tick in _ticks(self.judged.state)}
            self._note(self.judged.append(record.event, record.at_ms), self.judged.now_ms)
            for dropped in waiting - {_key(tick) for tick in _ticks(self.judged.state)}:
                if dropped[2] <= record.at_ms:
                    self.overtaken[dropped] = (record.at_ms, record.offset + 0.5)
        self.refused = {
            self.contents.get(key, "")
            for key, (record, *_) in self.came.items()
            if isinstance(record.event, AttemptReported) and record.event.verdict.verdict is Verdict.REFUSED
        }

    def latencies(self) -> Iterator[int]:
        """How long each attempt that was made here took until its report was there."""
        for key in (self.contents.keys() & self.came.keys()) - {_key(wish) for wish in self.open}:
            yield self.came[key][0].at_ms - self.asked[key][0]

    def _note(self, wishes: Iterable[Wish], at_ms: int) -> None:
        for wish in wishes:
            self.asked[_key(wish)].append(at_ms)
            if isinstance(wish, InjectionAttempt):
                self.contents[_key(wish)] = content_hash(wish.injection.context)


class _Coming(NamedTuple):
    """An answer on its way: when it is appended (time, offset, order of asking), to what, and where it is from."""

    at_ms: float
    offset: float
    number: int
    wish: Wish
    asked_ms: int
    answer: str


class World:
    """The session under other rules, and the world around it."""

    def __init__(self, past: Past, rules_hash: str, rule_sets: RuleSets, latency_ms: int) -> None:
        partition = msgspec.structs.replace(past.partition, rules_hash=rules_hash)
        self.judged = Judged(partition, past.state, rule_sets)
        self.answers: Counter[str] = Counter()
        self._past = past
        self._latency_ms = latency_ms
        self._asked: Counter[_Key] = Counter()
        self._coming: list[_Coming] = []

    def run(self) -> None:
        """Go through the conversation and on to the recording's end; attempts made by then are answered even later."""
        for wish in self._past.open:
            self._ask(wish, self._past.starts_ms)
        for record in self._past.records:
            if not isinstance(record.event, Feedback | RulesChanged):
                self._until(record.at_ms, record.offset)
                self._append(record.event, record.at_ms)
        self._until(self._past.ends_ms, inf)
        while self._coming:
            coming = heappop(self._coming)
            if isinstance(coming.wish, InjectionAttempt):
                self._arrive(coming)

    def _until(self, at_ms: float, offset: float) -> None:
        while self._coming and self._coming[0][:2] < (at_ms, offset):
            self._arrive(heappop(self._coming))

    def _arrive(self, coming: _Coming) -> None:
        wish, at_ms = coming.wish, int(coming.at_ms)
        if isinstance(wish, Tick) and self.judged.state.timers.get(wish.timer) != wish.due_ms:
            return
        event, answer = (
            self._report(wish, coming.asked_ms, at_ms) if isinstance(wish, InjectionAttempt) else (wish, coming.answer)
        )
        self.answers[answer] += 1
        self._append(event, at_ms)

    def _append(self, event: AnyEvent, at_ms: int) -> None:
        for wish in self.judged.append(event, at_ms):
            self._ask(wish, self.judged.now_ms)

    def _ask(self, wish: Wish, now_ms: int) -> None:
        """Put the answer on its way: when it came, or when the model says."""
        key = _key(wish)
        nth = self._asked[key]
        self._asked[key] += 1
        asked, came = self._past.asked.get(key, []), self._past.came.get(key, [])
        if isinstance(wish, Tick) and nth < len(came):
            self._schedule(max(came[nth].at_ms, now_ms), came[nth].offset, wish, now_ms, "timers as recorded")
        elif isinstance(wish, Tick) and (overtaken := self._past.overtaken.get(key)) is not None:
            self._schedule(*max(overtaken, (now_ms, inf)), wish, now_ms, "timers right after what overtook them")
        elif isinstance(wish, Tick):
            self._schedule(max(wish.due_ms, now_ms), inf, wish, now_ms, "timers when due")
        elif nth < len(asked) and nth < len(came):
            shift_ms = now_ms - asked[nth]
            offset = inf if shift_ms else came[nth].offset
            self._schedule(came[nth].at_ms + shift_ms, offset, wish, now_ms, "retries as recorded")
        elif isinstance(wish, RetryDue):
            self._schedule(now_ms + RETRY_LINE_MS, inf, wish, now_ms, "retries after the line's length")
        elif nth < len(asked):
            self.answers["attempts that nobody reported on, as recorded"] += 1
        else:
            self._schedule(now_ms + self._latency_ms, inf, wish, now_ms, "")

    def _report(self, attempt: InjectionAttempt, asked_ms: int, now_ms: int) -> tuple[AttemptReported, str]:
        """What becomes of an attempt whose answer comes now, and where the answer is from."""
        key, content = _key(attempt), content_hash(attempt.injection.context)
        held = self.judged.state.held.get(attempt.injection.injection_id)
        for record in self._past.came.get(key, [])[:1]:
            assert isinstance(record.event, AttemptReported)  # noqa: S101  its key says so
            verdict = record.event.verdict
            fits = {
                Verdict.REFUSED: content == self._past.contents.get(key),
                Verdict.CANCELLED: held is not None and bool(held.called_back),
            }
            if fits.get(verdict.verdict, True):
                shift_ms = asked_ms - self._past.asked[key][0]
                return _shifted(record.event, shift_ms), "attempts as recorded"
        refused = content in self._past.refused
        verdict = AttemptVerdict(
            session_id=attempt.session_id,
            injection_id=attempt.injection.injection_id,
            attempt=attempt.attempt,
            verdict=Verdict.REFUSED if refused else Verdict.DELIVERED,
            provider=attempt.destination.provider,
            confirmation=Confirmation.NONE if refused else Confirmation.IN_CONTEXT,
            message="the same content was refused" if refused else "",
            sent_ms=asked_ms,
            answered_ms=now_ms,
        )
        answer = "attempts refused, as the same content was" if refused else "attempts delivered by the model"
        return AttemptReported(session_id=attempt.session_id, verdict=verdict), answer

    def _schedule(self, at_ms: float, offset: float, wish: Wish, asked_ms: int, answer: str) -> None:
        heappush(self._coming, _Coming(at_ms, offset, self._asked.total(), wish, asked_ms, answer))


def _ticks(state: Session) -> Iterator[Tick]:
    """The ticks that a session waits for."""
    for timer, due_ms in state.timers.items():
        yield Tick(session_id=state.session_id, timer=timer, due_ms=due_ms)


def _open_wishes(state: Session) -> Iterator[Wish]:
    """What a session has asked the world for and waits for."""
    yield from _ticks(state)
    to = Destination(provider=state.provider, model=state.model, route=state.route, call_id=state.call_id)
    for name, held in state.held.items():
        if held.stage is Stage.RESTING and INJECTION_TIMER + name not in state.timers:
            yield RetryDue(session_id=state.session_id, injection_id=name, attempt=held.attempt + 1)
        elif held.stage is Stage.IN_FLIGHT:
            yield InjectionAttempt(
                session_id=state.session_id, attempt=held.attempt, destination=to, injection=held.injection
            )


def _key(what: Wish | AttemptReported) -> _Key:
    """What a wish and its answer have in common."""
    match what:
        case Tick():
            return "tick", what.timer, what.due_ms
        case RetryDue():
            return "retry", what.injection_id, what.attempt
        case InjectionAttempt():
            return "report", what.injection.injection_id, what.attempt
        case AttemptReported():
            return "report", what.verdict.injection_id, what.verdict.attempt


def _shifted(reported: AttemptReported, by_ms: int) -> AttemptReported:
    verdict = reported.verdict
    times = {name: told + by_ms for name in ("sent_ms", "answered_ms") if (told := getattr(verdict, name))}
    return msgspec.structs.replace(reported, verdict=msgspec.structs.replace(verdict, **times))
