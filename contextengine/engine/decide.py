"""The whole decision, from top to bottom.

An event moves its session on; rules fire; what nothing refuses becomes an injection and waits for its moment; what has
come back from a provider is judged; what can happen without an event is put on a timer. Everything that the outside
world must do is in the Decision.

Tick, AttemptReported and RetryDue act only on a matching entry of the state, and once: a second copy finds nothing.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

import msgspec
from msgspec import Struct

from contextengine.delivery.next_step import RETRY_LINE_MS, End, next_step
from contextengine.engine import clock
from contextengine.engine.candidate import content_hash, propose
from contextengine.engine.filters import refuse
from contextengine.engine.moment import Moment
from contextengine.engine.placement import next_look_ms, ready
from contextengine.engine.rules import RULE_TIMER, Rule, RuleSet
from contextengine.engine.session import Arrival, advance
from contextengine.engine.strategies.strategy import Evidence
from contextengine.errors import TemplateFailed
from contextengine.schemas.decision import Acceptance, DecisionMade, Firing, Suppression
from contextengine.schemas.events import (
    HAND_OFF,
    AttemptReported,
    ConversationEvent,
    RetryDue,
    SessionEnded,
    SessionFeedback,
    Tick,
)
from contextengine.schemas.injection import (
    Confirmation,
    Destination,
    InjectionAttempt,
    InjectionCancelled,
    InjectionResult,
    Outcome,
    RetryRequested,
)
from contextengine.schemas.session import HeldInjection, LiveContext, Partition, RuleMemory, Session, Stage

INJECTION_TIMER: Final = "injection:"
SHOWN_CHARACTERS: Final = 2_000
"""How much of a context an explanation shows."""
REPORT_GRACE_MS: Final = 5_000
"""How long after its deadline the VoiceEngine's report on a hand-off is waited for."""
FORGET_TIMER: Final = "forget"
FORGET_AFTER_MS: Final = 3_600_000
"""An ended session is kept for so long, for reports and duplicates that come late."""
ABANDONED_AFTER_MS: Final = 86_400_000
"""A session without an end is forgotten when it has had no event for so long."""


class DeadInjection(Struct, frozen=True):
    """An injection that could not be delivered, for the dead letters; times are broker time."""

    attempt: InjectionAttempt
    error_class: str
    reason: str
    first_failure_ms: int
    last_failure_ms: int


class Decision(Struct):
    """What follows from one event: for the topics, for the timers, and for whoever asks why."""

    event: str
    position: str
    attempts: list[InjectionAttempt] = []
    cancellations: list[InjectionCancelled] = []
    retries: list[RetryRequested] = []
    results: list[InjectionResult] = []
    dead: list[DeadInjection] = []
    timers: list[tuple[str, int]] = []
    fired: list[Firing] = []
    accepted: list[Acceptance] = []
    suppressed: list[Suppression] = []
    forget: bool = False
    explanation: DecisionMade | None = None


def decide(
    session: Session, partition: Partition, event: ConversationEvent | SessionFeedback, now_ms: int, rules: RuleSet
) -> Decision:
    """Say what to inject because of `event`, and what became of earlier injections.

    `now_ms` is the event's append time, never less than the partition's last. Deterministic: the same arguments give
    the same decision, byte for byte. Updates `session` in place; `partition` is read only.
    """
    decision = Decision(type(event).__name__, _position(event))
    if isinstance(event, ConversationEvent):
        arrival = advance(session, event, now_ms)
        may_fire = arrival is Arrival.NEW
        if arrival is Arrival.DUPLICATE:
            return decision
    else:
        may_fire = _judge(session, event, now_ms, decision)
    moment = rules.moment(session, event, now_ms)
    if may_fire:
        for rule in rules.concerned(moment):
            _consider(rule, moment, decision)
    if isinstance(event, SessionEnded):
        for held in list(session.held.values()):
            _call_back(session, held, Outcome.CANCELLED, "the session has ended", now_ms, decision)
    _release(session, now_ms, decision)
    _arm(session, now_ms, rules, decision)
    _seal(session, partition, now_ms, decision)
    return decision


def _position(event: ConversationEvent | SessionFeedback) -> str:
    """The event's place in terms that every copy of it shares; never an offset."""
    match event:
        case Tick():
            return f"tick/{event.timer}/{event.due_ms}"
        case AttemptReported():
            return f"report/{event.verdict.injection_id}/{event.verdict.attempt}"
        case RetryDue():
            return f"retry/{event.injection_id}/{event.attempt}"
        case _:
            return event.position


def _judge(session: Session, event: SessionFeedback, now_ms: int, decision: Decision) -> bool:
    """Take an answer of the outside world into the state; whether rules may fire because of it."""
    match event:
        case AttemptReported():
            held = session.held.get(event.verdict.injection_id)
            if held is not None and held.stage is Stage.IN_FLIGHT and held.attempt == event.verdict.attempt:
                _judge_attempt(session, held, event, now_ms, decision)
        case RetryDue():
            held = session.held.get(event.injection_id)
            if held is not None and held.stage is Stage.RESTING and held.attempt == event.attempt - 1:
                _try_again_or_rest(session, held, now_ms, decision)
        case Tick():
            if session.timers.get(event.timer) != event.due_ms:
                return False
            if now_ms < event.due_ms:
                decision.timers.append((event.timer, event.due_ms))
                return False
            del session.timers[event.timer]
            return _judge_tick(session, event, now_ms, decision)
    return False


def _judge_tick(session: Session, tick: Tick, now_ms: int, decision: Decision) -> bool:
    if tick.timer.startswith(RULE_TIMER):
        session.armed_for = ""
        return True
    if tick.timer == FORGET_TIMER:
        _forget_or_wait(session, now_ms, decision)
        return False
    held = session.held.get(tick.timer.removeprefix(INJECTION_TIMER))
    if held is None:
        return False
    if held.stage is Stage.RESTING:
        _try_again_or_rest(session, held, now_ms, decision)
    elif held.stage is Stage.IN_FLIGHT:
        _end(session, held, Outcome.EXPIRED, "nobody reported what became of it", now_ms, decision)
    elif now_ms >= held.injection.deadline_ms:
        _end(session, held, Outcome.EXPIRED, "its moment did not come within its life", now_ms, decision)
    return False


def _judge_attempt(
    session: Session, held: HeldInjection, report: AttemptReported, now_ms: int, decision: Decision
) -> None:
    verdict = report.verdict
    held.confirmation = verdict.confirmation
    held.failure = verdict.error_class or verdict.verdict.value
    step = next_step(verdict, held.injection, now_ms)
    if held.called_back and not (isinstance(step, End) and step.outcome is Outcome.DELIVERED):
        step = End(Outcome(held.called_back), verdict.message)
    if isinstance(step, End):
        if step.outcome is not Outcome.DELIVERED:
            held.first_failure_ms = held.first_failure_ms or now_ms
            held.last_failure_ms = now_ms
        _end(session, held, step.outcome, step.reason, now_ms, decision, answered_ms=verdict.answered_ms)
        return
    held.stage = Stage.RESTING
    held.due_ms = step.due_ms
    held.first_failure_ms = held.first_failure_ms or now_ms
    held.last_failure_ms = now_ms
    _rest(session, held, now_ms, decision)


def _rest(session: Session, held: HeldInjection, now_ms: int, decision: Decision) -> None:
    """A long rest is spent on the delay line, what remains of it on a timer."""
    if held.due_ms - now_ms >= RETRY_LINE_MS:
        injection = held.injection
        decision.retries.append(
            RetryRequested(
                session_id=session.session_id,
                injection_id=injection.injection_id,
                attempt=held.attempt + 1,
                due_ms=held.due_ms,
            )
        )
    else:
        _set_timer(session, INJECTION_TIMER + held.injection.injection_id, held.due_ms, decision)


def _try_again_or_rest(session: Session, held: HeldInjection, now_ms: int, decision: Decision) -> None:
    if now_ms < held.due_ms:
        _rest(session, held, now_ms, decision)
    elif now_ms >= held.injection.deadline_ms:
        _end(session, held, Outcome.EXPIRED, "its life ended before the next attempt", now_ms, decision)
    else:
        _attempt(session, held, decision)


def _consider(rule: Rule, moment: Moment, decision: Decision) -> None:
    """Ask a rule; what it proposes becomes an injection or an explained suppression, and so does its own failure."""
    session, event, now_ms = moment.session, moment.event, moment.now_ms
    try:
        evidence = _evidence(rule, moment)
        if evidence is None:
            return
        decision.fired.append(Firing(rule=rule.name, evidence=evidence))
        content = rule.build.build(moment, evidence)
    except Exception as error:  # noqa: BLE001 - a rule is its user's program: whatever it raises is its failure
        failed = "template" if isinstance(error, TemplateFailed) else "rule"
        told = str(error) if isinstance(error, TemplateFailed) else f"{type(error).__name__}: {error}"
        decision.suppressed.append(Suppression(rule=rule.name, filter=failed, reason=told))
        return
    trigger_ms = clock.happened_ms(session, event, now_ms) if isinstance(event, ConversationEvent) else now_ms
    candidate = propose(rule, content, session, decision.position, trigger_ms, now_ms)
    suppression = refuse(candidate, session, now_ms)
    if suppression is not None:
        decision.suppressed.append(suppression)
        return
    for held in [held for held in session.held.values() if held.injection.context.metadata.key == candidate.slot]:
        _call_back(session, held, Outcome.SUPERSEDED, f"a newer context of {rule.name}", now_ms, decision)
    held = candidate.hold(session, now_ms)
    session.held[held.injection.injection_id] = held
    decision.accepted.append(
        Acceptance(
            rule=rule.name,
            injection_id=held.injection.injection_id,
            placement=held.placement.place.value,
            text=candidate.context.render()[:SHOWN_CHARACTERS],
        )
    )


def _evidence(rule: Rule, moment: Moment) -> Evidence | None:
    """The rule's evidence on this event, and what the session remembers of its firing."""
    memory = moment.session.rules.get(rule.name) or RuleMemory()
    evidence = rule.when.evidence(moment, memory)
    if evidence is not None:
        memory.fired += 1
        memory.last_fired_ms = moment.now_ms
    if evidence is not None or memory.counter:
        moment.session.rules[rule.name] = memory
    return None if evidence is None else {name: str(seen) for name, seen in evidence.items()}


def _release(session: Session, now_ms: int, decision: Decision) -> None:
    """Send what has waited for this moment."""
    if not session.held:
        return
    for held in ready(session, now_ms):
        if now_ms >= held.injection.deadline_ms:
            _end(session, held, Outcome.EXPIRED, "its moment did not come within its life", now_ms, decision)
        else:
            _attempt(session, held, decision)


def _attempt(session: Session, held: HeldInjection, decision: Decision) -> None:
    held.stage = Stage.IN_FLIGHT
    held.attempt += 1
    timer = INJECTION_TIMER + held.injection.injection_id
    session.timers.pop(timer, None)
    if session.route == HAND_OFF:
        _set_timer(session, timer, held.injection.deadline_ms + REPORT_GRACE_MS, decision)
    decision.attempts.append(_attempt_record(session, held))


def _attempt_record(session: Session, held: HeldInjection) -> InjectionAttempt:
    destination = Destination(
        provider=session.provider, model=session.model, route=session.route, call_id=session.call_id
    )
    return InjectionAttempt(
        session_id=session.session_id, attempt=held.attempt, destination=destination, injection=held.injection
    )


def _end(
    session: Session,
    held: HeldInjection,
    outcome: Outcome,
    reason: str,
    now_ms: int,
    decision: Decision,
    *,
    answered_ms: int = 0,
) -> None:
    """The one place where an injection ends."""
    injection = held.injection
    metadata = injection.context.metadata
    del session.held[injection.injection_id]
    session.timers.pop(INJECTION_TIMER + injection.injection_id, None)
    session.outcomes[outcome] = session.outcomes.get(outcome, 0) + 1
    if outcome is Outcome.DELIVERED:
        session.live[metadata.key] = LiveContext(injection.injection_id, content_hash(injection.context), now_ms)
    if outcome is Outcome.DEAD:
        decision.dead.append(
            DeadInjection(
                _attempt_record(session, held), held.failure, reason, held.first_failure_ms, held.last_failure_ms
            )
        )
    decision.results.append(
        InjectionResult(
            session_id=session.session_id,
            injection_id=injection.injection_id,
            rule=injection.rule,
            outcome=outcome,
            provider=session.provider,
            criticality=metadata.criticality.value,
            attempts=held.attempt,
            trigger_ms=injection.trigger_ms,
            decided_ms=now_ms,
            confirmation=held.confirmation if outcome is Outcome.DELIVERED else Confirmation.NONE,
            answered_ms=answered_ms,
            reason=reason,
        )
    )


def _call_back(
    session: Session, held: HeldInjection, outcome: Outcome, reason: str, now_ms: int, decision: Decision
) -> None:
    """End what has not been sent; of what is in flight its consumer says whether there was time."""
    if held.stage is not Stage.IN_FLIGHT:
        _end(session, held, outcome, reason, now_ms, decision)
    elif not held.called_back:
        held.called_back = outcome.value
        injection_id = held.injection.injection_id
        decision.cancellations.append(
            InjectionCancelled(session_id=session.session_id, injection_id=injection_id, reason=reason)
        )


def _forget_or_wait(session: Session, now_ms: int, decision: Decision) -> None:
    """End what is still open and forget the session, unless it has gone on since the timer was set."""
    due_ms = _forget_ms(session)
    if now_ms < due_ms:
        _set_timer(session, FORGET_TIMER, due_ms, decision)
        return
    for held in list(session.held.values()):
        _end(session, held, Outcome.EXPIRED, "nobody reported what became of it", now_ms, decision)
    decision.forget = True


def _forget_ms(session: Session) -> int:
    if session.ended_ms is not None:
        return session.ended_ms + FORGET_AFTER_MS
    return session.last_event_ms + ABANDONED_AFTER_MS


def _arm(session: Session, now_ms: int, rules: RuleSet, decision: Decision) -> None:
    """Put on timers what may happen though no event comes."""
    if session.ended_ms is not None:
        for timer in [timer for timer in session.timers if timer.startswith(RULE_TIMER)]:
            del session.timers[timer]
        if session.timers.get(FORGET_TIMER, ABANDONED_AFTER_MS + now_ms) > _forget_ms(session) and not decision.forget:
            _set_timer(session, FORGET_TIMER, _forget_ms(session), decision)
        return
    if FORGET_TIMER not in session.timers and not decision.forget:
        _set_timer(session, FORGET_TIMER, _forget_ms(session), decision)
    for held in session.held.values():
        if held.stage is Stage.WAITING:
            _set_timer(session, INJECTION_TIMER + held.injection.injection_id, next_look_ms(held, session), decision)
    armed_for = f"{rules.rules_hash}/{session.started_ms}/{session.quiet_since_ms}"
    if session.started_ms is None or session.armed_for == armed_for:
        return
    session.armed_for = armed_for
    for rule, strategy in rules.timed:
        timer = RULE_TIMER + rule.name
        due_ms = strategy.due_ms(session, session.rules.get(rule.name) or RuleMemory())
        if due_ms is None:
            session.timers.pop(timer, None)
        else:
            _set_timer(session, timer, due_ms, decision)


def _set_timer(session: Session, timer: str, due_ms: int, decision: Decision) -> None:
    if session.timers.get(timer) != due_ms:
        session.timers[timer] = due_ms
        decision.timers.append((timer, due_ms))


def _seal(session: Session, partition: Partition, now_ms: int, decision: Decision) -> None:
    """Chain the digest of what was decided to those before it, and explain it."""
    acted = decision.attempts or decision.results or decision.retries or decision.cancellations
    if not (acted or decision.fired or decision.suppressed):
        return
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
