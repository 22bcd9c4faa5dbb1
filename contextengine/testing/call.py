"""One conversation in memory: what happens in it, what the engine makes of it, and a clock that a test moves.

What the outside world does for a live call is done here in a few lines: timers become ticks when they are due, the
delay line holds retries for its length, the simulated provider answers attempts. Everything goes through the log, so a
call can be replayed from it.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, Final, TypeAlias, cast

from contextengine.delivery.next_step import RETRY_LINE_MS
from contextengine.engine.decide import decide
from contextengine.engine.decision import Decision
from contextengine.engine.partition import follow
from contextengine.engine.rules import RuleSet
from contextengine.schemas.decision import DecisionMade, Suppression
from contextengine.schemas.events import (
    PARTITION_EVENTS,
    USER,
    AnyEvent,
    AttemptReported,
    ConversationEvent,
    GenerationStarted,
    MessageCompleted,
    PlaybackEnded,
    PlaybackStarted,
    ResponseCompleted,
    ResponseStarted,
    RetryDue,
    RulesChanged,
    SessionEnded,
    SessionStarted,
    SwitchesChanged,
    Tick,
    TurnEnded,
    TurnStarted,
)
from contextengine.schemas.injection import Injection, InjectionAttempt, InjectionResult, Outcome
from contextengine.schemas.session import Partition, Session, dump_state, load_state
from contextengine.testing.provider import Provider

START_MS: Final = 1_767_225_600_000
"""When every call begins: the first of January 2026, midnight UTC."""

_Coming: TypeAlias = tuple[int, int, "AnyEvent | InjectionAttempt"]
"""When, which of those at the same time first, and what: a record to append, or an attempt to answer."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A call at one moment; `Call.restore` brings it back."""

    rules: RuleSet
    state: bytes
    partition: bytes
    now_ms: int
    forgotten: bool
    provider: Provider
    log_length: int
    coming: tuple[_Coming, ...]
    seqs: Counter[tuple[str, int]]


class Call:
    """A conversation under `rules`. It has started, unless `started` is false; `start` are fields of SessionStarted.

    `log` is every record with its append time, `decisions` what followed from each of them, and `state` what the engine
    remembers. With `crash_after_every_record` the state is written and read back each time, as after a crash: nothing
    may change because of it.
    """

    def __init__(
        self, rules: RuleSet, *, started: bool = True, crash_after_every_record: bool = False, **start: Any
    ) -> None:
        self.rules = rules
        self.session_id = str(start.pop("session_id", "call"))
        self.state = Session(self.session_id)
        self.forgotten = False
        self.now_ms = START_MS
        self.provider = Provider()
        self.log: list[tuple[AnyEvent, int]] = []
        self.decisions: list[Decision] = []
        self._partition = Partition(0, rules_version=0, rules_hash=rules.rules_hash)
        self._crashes = crash_after_every_record
        self._coming: list[_Coming] = []
        self._scheduled = 0
        self._seqs: Counter[tuple[str, int]] = Counter()
        if started:
            self.send(SessionStarted, **({"provider": self.provider.name, "model": "simulated"} | start))

    # What happens in the conversation

    def says(self, text: str, speaker: str = USER, lasts_ms: int = 1_000) -> None:
        """Somebody says something, in a turn of `lasts_ms`; in a session of modality `text` it is just there."""
        if self.state.modality == "text":
            self.send(MessageCompleted, speaker=speaker, text=text)
        elif speaker == USER:
            self.send(TurnStarted, speaker=speaker)
            self.advance_ms(lasts_ms)
            self.send(MessageCompleted, speaker=speaker, text=text)
            self.send(TurnEnded, speaker=speaker)
        else:
            response = {"response_id": f"response-{self.state.messages}"}
            self.send(GenerationStarted, **response)
            self.send(ResponseStarted, **response)
            self.send(PlaybackStarted, **response)
            self.advance_ms(lasts_ms)
            self.send(MessageCompleted, speaker=speaker, text=text)
            self.send(ResponseCompleted, **response)
            self.send(PlaybackEnded, **response)

    def ends(self, reason: str = "hangup") -> None:
        """The conversation is over."""
        self.send(SessionEnded, reason=reason)

    def send(self, kind: type[ConversationEvent], **fields: Any) -> Decision:
        """The VoiceEngine publishes a `kind`; fields that are not given are as if it happened now, in order."""
        producer, incarnation = fields.get("producer", "voice"), fields.get("incarnation", 0)
        known: dict[str, Any] = {
            "session_id": self.session_id,
            "producer": producer,
            "incarnation": incarnation,
            "seq": self._seqs[producer, incarnation],
            "at_ms": self.now_ms,
        }
        if "known_ms" in kind.__struct_fields__:
            known["known_ms"] = self.now_ms
        event = kind(**(known | fields))
        self._seqs[producer, incarnation] = max(self._seqs[producer, incarnation], event.seq + 1)
        return self.append(event)

    def append(self, record: AnyEvent) -> Decision:
        """`record` is appended to the log as it stands, and judged: a copy, a straggler, feedback of one's own."""
        self.log.append((record, self.now_ms))
        decision = self._judge(record)
        self.decisions.append(decision)
        for timer, due_ms in decision.timers:
            self._schedule(due_ms, Tick(session_id=self.session_id, timer=timer, due_ms=due_ms))
        for retry in decision.retries:
            due = RetryDue(session_id=self.session_id, injection_id=retry.injection_id, attempt=retry.attempt)
            self._schedule(self.now_ms + RETRY_LINE_MS, due)
        for attempt in decision.attempts:
            self._schedule(self.now_ms + self.provider.latency_ms, attempt)
        return decision

    def advance_ms(self, span_ms: int) -> None:
        """Time goes by: what is due meanwhile comes when it is due."""
        until_ms = self.now_ms + span_ms
        while self._coming and self._coming[0][0] <= until_ms:
            due_ms, _, coming = heappop(self._coming)
            self.now_ms = max(self.now_ms, due_ms)
            if isinstance(coming, InjectionAttempt):
                self._answer(coming)
            elif not isinstance(coming, Tick) or self.state.timers.get(coming.timer) == coming.due_ms:
                self.append(coming)
        self.now_ms = until_ms

    def change_rules(self, rules: RuleSet) -> None:
        """From here on the call is judged by `rules`."""
        self.rules = rules
        version = self._partition.rules_version + 1
        self.append(RulesChanged(version=version, rules_hash=rules.rules_hash))

    def switch_off(self, *off: str) -> None:
        """From here on this is switched off, and nothing else: `rule:NAME`, `provider:NAME`, `everything`."""
        self.append(SwitchesChanged(version=self._partition.switches_version + 1, off=list(off)))

    # What the engine makes of it; with `rule`, of that rule alone

    def injections(self, rule: str | None = None) -> list[Injection]:
        """What was sent to the provider, each once, in order."""
        return [attempt.injection for attempt in self.attempts(rule) if attempt.attempt == 1]

    def attempts(self, rule: str | None = None) -> list[InjectionAttempt]:
        """Every attempt, in order."""
        made = [attempt for decision in self.decisions for attempt in decision.attempts]
        return [attempt for attempt in made if rule in (None, attempt.injection.rule)]

    def suppressed(self, rule: str | None = None) -> list[Suppression]:
        """What was held back, by which filter and why."""
        held_back = [suppression for decision in self.decisions for suppression in decision.suppressed]
        return [suppression for suppression in held_back if rule in (None, suppression.rule)]

    def results(self, rule: str | None = None) -> list[InjectionResult]:
        """How injections ended, in the order in which they did."""
        ended = [result for decision in self.decisions for result in decision.results]
        return [result for result in ended if rule in (None, result.rule)]

    def outcomes(self, rule: str | None = None) -> list[Outcome]:
        """The outcomes of `results`."""
        return [result.outcome for result in self.results(rule)]

    def explanations(self) -> list[DecisionMade]:
        """Every decision that came to something, as the decisions topic tells it."""
        return [decision.explanation for decision in self.decisions if decision.explanation is not None]

    def moment_of(self, injection: Injection) -> DecisionMade:
        """The decision that first sent `injection`: because of which event, and when."""
        return next(made for made in self.explanations() if injection.injection_id in made.released)

    @property
    def digest(self) -> str:
        """The digest of all decisions so far; equal logs and rules give equal digests."""
        return self.state.digest

    # The same again

    def snapshot(self) -> Snapshot:
        """The call as it is now."""
        return Snapshot(
            self.rules,
            dump_state(self.state),
            dump_state(self._partition),
            self.now_ms,
            self.forgotten,
            copy.copy(self.provider),
            len(self.log),
            tuple(self._coming),
            self._seqs.copy(),
        )

    def restore(self, snapshot: Snapshot) -> None:
        """The call is as it was at the snapshot, which must be one of its own."""
        self.rules, self.now_ms, self.forgotten = snapshot.rules, snapshot.now_ms, snapshot.forgotten
        self.state = cast("Session", load_state(snapshot.state))
        self._partition = cast("Partition", load_state(snapshot.partition))
        self.provider, self._seqs = copy.copy(snapshot.provider), snapshot.seqs.copy()
        self._coming = list(snapshot.coming)
        del self.log[snapshot.log_length :], self.decisions[snapshot.log_length :]

    @classmethod
    def replayed(cls, log: Iterable[tuple[AnyEvent, int]], rules: RuleSet, *later: RuleSet) -> Call:
        """The call that this log tells, under these rules; `later` are those that it changes to on its way.

        The log has its own feedback: no timer fires and nobody answers.
        """
        records = list(log)
        session_ids = {record.session_id for record, _ in records if isinstance(record, ConversationEvent)}
        call = cls(rules, started=False, session_id=next(iter(session_ids), "call"))
        known = {rule_set.rules_hash: rule_set for rule_set in (rules, *later)}
        for record, now_ms in records:
            call.now_ms = now_ms
            if isinstance(record, RulesChanged):
                call.rules = known[record.rules_hash]
            call.append(record)
            call._coming.clear()
        return call

    def _judge(self, record: AnyEvent) -> Decision:
        if isinstance(record, PARTITION_EVENTS):
            follow(self._partition, record)
            return Decision(type(record).__name__, "")
        if self.forgotten:
            if not isinstance(record, ConversationEvent):
                return Decision(type(record).__name__, "")
            self.state, self.forgotten = Session(self.session_id), False
        decision = decide(self.state, self._partition, record, self.now_ms, self.rules)
        self.forgotten = decision.forget
        if self._crashes:
            self.state = cast("Session", load_state(dump_state(self.state)))
        return decision

    def _answer(self, attempt: InjectionAttempt) -> None:
        held = self.state.held.get(attempt.injection.injection_id)
        called_back = held is not None and bool(held.called_back)
        answer = self.provider.answer(attempt, self.now_ms, called_back=called_back)
        if answer is not None:
            after_ms, verdict = answer
            self._schedule(self.now_ms + after_ms, AttemptReported(session_id=self.session_id, verdict=verdict))

    def _schedule(self, due_ms: int, coming: AnyEvent | InjectionAttempt) -> None:
        self._scheduled += 1
        heappush(self._coming, (due_ms, self._scheduled, coming))
