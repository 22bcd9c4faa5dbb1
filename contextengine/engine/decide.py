"""The whole decision, from top to bottom.

An event moves its session on; what has come back from a provider is judged; rules fire; what nothing refuses becomes
an injection and waits for its moment; what can happen without an event is put on a timer. Everything that the outside
world must do is in the Decision.

Tick, AttemptReported and RetryDue act only on a matching entry of the state, and once: a second copy finds nothing.
InjectionRedriven acts once for each of its numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from hashlib import blake2b
from typing import Final

import msgspec

from contextengine.engine import clock
from contextengine.engine.builders import Content
from contextengine.engine.candidate import propose
from contextengine.engine.decision import Decision
from contextengine.engine.filters import refuse
from contextengine.engine.lives import INJECTION_TIMER, SHOWN_CHARACTERS, Lives
from contextengine.engine.moment import Moment
from contextengine.engine.pushed import name_of, pushed_rule
from contextengine.engine.rules import RULE_TIMER, Rule, RuleSet
from contextengine.engine.session import Arrival, advance
from contextengine.engine.strategies.strategy import Evidence, Timed, is_timed
from contextengine.engine.triggers.keywords import PhraseIndex
from contextengine.errors import TemplateFailed
from contextengine.schemas.decision import DecisionMade, Firing, Suppression
from contextengine.schemas.events import (
    AgentHandover,
    AttemptReported,
    ContextCompacted,
    ContextPushed,
    ContextRequested,
    ConversationEvent,
    InjectionRedriven,
    PendingCancelled,
    ProviderReconnected,
    RetryDue,
    SessionEnded,
    SessionFeedback,
    Tick,
)
from contextengine.schemas.injection import Outcome
from contextengine.schemas.session import Memory, Partition, RuleMemory, Session

EVIDENCE_CHARACTERS: Final = 500
FORGET_TIMER: Final = "forget"
FORGET_AFTER_MS: Final = 3_600_000
"""An ended session is kept for so long, for reports and duplicates that come late."""
ABANDONED_AFTER_MS: Final = 86_400_000
"""A session without an end is forgotten when it has had no event for so long."""
AGAIN_MS: Final = 1_000
"""How soon a strategy is asked again that after its Tick still names a time gone by: it must not fill the log."""


def decide(
    session: Session, partition: Partition, event: ConversationEvent | SessionFeedback, now_ms: int, rules: RuleSet
) -> Decision:
    """Say what to inject because of `event`, and what became of earlier injections.

    `now_ms` is the event's append time, never less than the partition's last. Deterministic: the same arguments give
    the same decision, byte for byte. Updates `session` in place; `partition` is read only. Never raises: a defect of
    the engine ends the decision where it was, and is told in it.
    """
    decision = Decision(type(event).__name__, _position(event))
    try:
        _decide(session, partition, event, now_ms, rules, decision)
    except Exception as error:  # noqa: BLE001 - what has been decided by now is in the session, and must be carried out
        decision.defect = f"{type(error).__name__}: {error}"
    return decision


def _decide(
    session: Session,
    partition: Partition,
    event: ConversationEvent | SessionFeedback,
    now_ms: int,
    rules: RuleSet,
    decision: Decision,
) -> None:
    lives = Lives(session, now_ms, decision, rules, partition.off)
    moved: list[Rule] = []
    if isinstance(event, ConversationEvent):
        arrival = advance(session, event, now_ms)
        if arrival is Arrival.DUPLICATE:
            return
        may_fire = arrival is Arrival.NEW
        _obey(session, event, now_ms, lives, partition.off, decision)
    else:
        may_fire = _hear(session, event, now_ms, lives, decision)
    if may_fire:
        moment = rules.moment(session, event, now_ms)
        for rule in rules.concerned(moment):
            _consider(rule, moment, lives, partition.off, decision, moved)
            if isinstance(event, Tick) and rule not in moved:
                moved.append(rule)
    if session.held:
        lives.release()
        lives.wait()
    _arm(session, event, now_ms, rules, moved, decision)
    _seal(session, partition, now_ms, decision)


def _position(event: ConversationEvent | SessionFeedback) -> str:
    """The event's place in terms that every copy of it shares; never an offset."""
    match event:
        case ConversationEvent():  # first, because most are
            return event.position
        case Tick():
            return f"tick/{event.timer}/{event.due_ms}"
        case AttemptReported():
            return f"report/{event.verdict.injection_id}/{event.verdict.attempt}"
        case RetryDue():
            return f"retry/{event.injection_id}/{event.attempt}"
        case InjectionRedriven():
            return f"redrive/{event.injection.injection_id}/{event.number}"


def _obey(
    session: Session, event: ConversationEvent, now_ms: int, lives: Lives, off: Collection[str], decision: Decision
) -> None:
    """Do what an event asks for by itself, whatever the rules say."""
    match event:
        case ContextPushed():
            _push(event, Moment(session, event, now_ms, PhraseIndex(())), lives, off, decision)
        case PendingCancelled():
            reason = event.reason[:SHOWN_CHARACTERS] or f"{event.producer} took it back"
            lives.take_back(event.rule, event.key, reason)
        case ProviderReconnected() | ContextCompacted() | AgentHandover():
            lives.reassert(decision.position, decision.event)
        case SessionEnded():
            for held in list(session.held.values()):
                lives.call_back(held, Outcome.CANCELLED, "the session has ended")


def _push(event: ContextPushed, moment: Moment, lives: Lives, off: Collection[str], decision: Decision) -> None:
    """Take what was pushed for the context of a rule that has fired; the session remembers no such rule."""
    try:
        rule = pushed_rule(event)
    except ValueError as error:
        decision.suppressed.append(_failure(name_of(event), error))
        return
    evidence = rule.when.evidence(moment, Memory()) or {}
    decision.fired.append(Firing(rule=rule.name, evidence=evidence))
    _propose(rule, rule.build.build(moment, evidence), moment, lives, off, decision)


def _hear(session: Session, event: SessionFeedback, now_ms: int, lives: Lives, decision: Decision) -> bool:
    """Take an answer of the outside world into the state; whether rules may fire because of it."""
    match event:
        case AttemptReported():
            lives.judge(event.verdict)
        case RetryDue():
            lives.retry(event.injection_id, event.attempt)
        case InjectionRedriven():
            lives.redrive(event.injection, event.number)
            session.last_event_ms = session.last_event_ms or now_ms  # remembered for a day if only this has begun it
        case Tick() if session.timers.get(event.timer) == event.due_ms:
            if now_ms < event.due_ms:
                decision.timers.append((event.timer, event.due_ms))
                return False
            del session.timers[event.timer]
            if event.timer.startswith(RULE_TIMER):
                return True
            if event.timer == FORGET_TIMER:
                _forget_or_wait(session, now_ms, lives, decision)
            else:
                lives.look_at(event.timer.removeprefix(INJECTION_TIMER))
    return False


def _consider(
    rule: Rule, moment: Moment, lives: Lives, off: Collection[str], decision: Decision, moved: list[Rule]
) -> None:
    """Ask a rule; what it proposes becomes an injection or an explained suppression, and so does its own failure."""
    try:
        evidence = _evidence(rule, moment, decision, moved)
        if evidence is None:
            return
        decision.fired.append(Firing(rule=rule.name, evidence=evidence))
        content = rule.build.build(moment, evidence)
    except Exception as error:  # noqa: BLE001 - a rule is its user's program: whatever it raises is its failure
        decision.suppressed.append(_failure(rule.name, error))
        return
    _propose(rule, content, moment, lives, off, decision)


def _propose(
    rule: Rule, content: Content, moment: Moment, lives: Lives, off: Collection[str], decision: Decision
) -> None:
    """Make an injection of what a rule says, or an explained suppression."""
    session, event, now_ms = moment.session, moment.event, moment.now_ms
    trigger_ms = clock.happened_ms(session, event, now_ms) if isinstance(event, ConversationEvent) else now_ms
    candidate = propose(rule, content, session, decision.position, trigger_ms, now_ms)
    suppression = refuse(candidate, session, now_ms, off)
    if suppression is not None:
        decision.suppressed.append(suppression)
        return
    for held in [held for held in session.held.values() if held.injection.context.metadata.key == candidate.slot]:
        lives.call_back(held, Outcome.SUPERSEDED, f"a newer context of {rule.name}")
    lives.accept(candidate.held)


def _evidence(rule: Rule, moment: Moment, decision: Decision, moved: list[Rule]) -> Evidence | None:
    """The rule's evidence on this event, and what the session remembers of its firing.

    A rule whose condition does not hold has not fired: its strategy has, and goes on from here.
    """
    memory = _memory(moment.session, rule)
    timed = rule.when if is_timed(rule.when) else None
    due_before = timed and timed.due_ms(moment.session, memory)
    evidence = rule.when.evidence(moment, memory)
    _must_be_longs(memory)
    if evidence is not None and rule.condition is not None:
        reason = rule.condition.why_not(moment.session, moment.now_ms, moment.event)
        if reason is not None:
            decision.suppressed.append(Suppression(rule=rule.name, filter="condition", reason=reason))
            evidence = None
    if evidence is not None:
        memory.fired += 1
        memory.last_fired_ms = moment.now_ms
    if evidence is not None or memory.counter or memory.at_ms or memory.parts:
        moment.session.rules[rule.name] = memory
    if timed and timed.due_ms(moment.session, memory) != due_before:
        moved.append(rule)
    if evidence is None:
        return None
    shown = {name[:SHOWN_CHARACTERS]: str(seen)[:EVIDENCE_CHARACTERS] for name, seen in evidence.items()}
    "".join(shown.values()).encode()  # half a character could not be written to any topic
    return shown


def _memory(session: Session, rule: Rule) -> RuleMemory:
    """What the session remembers of a rule; nothing of one whose `when` has changed since."""
    memory = session.rules.get(rule.name)
    if memory is None or (memory.when and memory.when != rule.when_digest):
        return RuleMemory(when=rule.when_digest)
    memory.when = rule.when_digest
    return memory


def _must_be_longs(memory: Memory) -> None:
    """Raise TypeError when a memory, or one of its parts, is none that a state can hold."""
    if memory.counter or memory.at_ms or memory.parts:
        _must_be_long(memory.counter, "counter")
        _must_be_long(memory.at_ms, "at_ms")
        for part in memory.parts.values():
            _must_be_longs(part)


def _must_be_long(value: object, name: str) -> None:
    """Raise TypeError for what neither a state nor a record can hold; a strategy may be anybody's."""
    if not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise TypeError(f"its {name} is {value!r}")


def _failure(rule: str, error: Exception) -> Suppression:
    if isinstance(error, TemplateFailed):
        return Suppression(rule=rule, filter="template", reason=str(error)[:SHOWN_CHARACTERS])
    return Suppression(rule=rule, filter="rule", reason=f"{type(error).__name__}: {error}"[:SHOWN_CHARACTERS])


def _arm(
    session: Session,
    event: ConversationEvent | SessionFeedback,
    now_ms: int,
    rules: RuleSet,
    moved: list[Rule],
    decision: Decision,
) -> None:
    """Put on timers what may happen though no event comes."""
    if decision.forget:
        return
    forget_ms = _forget_ms(session)
    if session.timers.get(FORGET_TIMER, forget_ms + 1) > forget_ms:  # an earlier one finds out by itself
        decision.set_timer(session, FORGET_TIMER, forget_ms)
    if session.ended_ms is not None:
        for timer in [timer for timer in session.timers if timer.startswith(RULE_TIMER)]:
            del session.timers[timer]
        return
    armed_for = f"{rules.rules_hash}/{session.started_ms}/{session.quiet_since_ms}"
    if session.started_ms is None:
        return
    timed: Iterable[tuple[Rule, Timed]] = rules.timed
    if session.armed_for == armed_for:
        timed = [(rule, rule.when) for rule in moved if Tick in rule.when.listens and is_timed(rule.when)]
    session.armed_for = armed_for
    for rule, strategy in timed:
        timer = RULE_TIMER + rule.name
        due_ms = _due_ms(rule, strategy, session, decision)
        if due_ms is None:
            session.timers.pop(timer, None)
        elif due_ms <= now_ms and isinstance(event, Tick) and event.timer == timer:
            decision.set_timer(session, timer, now_ms + AGAIN_MS)
        else:
            decision.set_timer(session, timer, due_ms)


def _due_ms(rule: Rule, strategy: Timed, session: Session, decision: Decision) -> int | None:
    """When the rule wants to be asked though no event comes; its own failure is an explained suppression."""
    try:
        due_ms = strategy.due_ms(session, _memory(session, rule))
        if due_ms is not None:
            _must_be_long(due_ms, "due_ms")
    except Exception as error:  # noqa: BLE001 - as above
        decision.suppressed.append(_failure(rule.name, error))
        return None
    return due_ms


def _forget_or_wait(session: Session, now_ms: int, lives: Lives, decision: Decision) -> None:
    """End what is still open and forget the session, unless it has gone on since the timer was set."""
    if now_ms < _forget_ms(session):
        return
    for held in list(session.held.values()):
        lives.end(held, Outcome.EXPIRED, "nobody reported what became of it")
    decision.forget = True


def _forget_ms(session: Session) -> int:
    if session.ended_ms is not None:
        return session.ended_ms + FORGET_AFTER_MS
    return session.last_event_ms + ABANDONED_AFTER_MS


def _seal(session: Session, partition: Partition, now_ms: int, decision: Decision) -> None:
    """Chain the digest of what was decided to those before it, and explain it."""
    acted = decision.accepted or decision.attempts or decision.results or decision.retries or decision.cancellations
    if not (acted or decision.fired or decision.suppressed or decision.event == ContextRequested.__name__):
        return  # who asks for context is answered, also when there is none
    chained = blake2b(session.digest.encode(), digest_size=16)
    chained.update(msgspec.json.encode(decision))
    session.digest = chained.hexdigest()
    decision.explanation = DecisionMade(
        session_id=session.session_id,
        position=decision.position,
        event=decision.event,
        now_ms=now_ms,
        elapsed_ms=clock.elapsed_ms(session, now_ms),
        rules_hash=partition.rules_hash,
        digest=session.digest,
        fired=decision.fired,
        accepted=decision.accepted,
        suppressed=decision.suppressed,
        released=[attempt.injection.injection_id for attempt in decision.attempts],
    )
