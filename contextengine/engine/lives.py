"""The lives of a session's injections, from their acceptance to their one outcome.

An injection waits for its moment, is in flight with a consumer, or rests before another attempt; then it ends, here and
nowhere else. What follows from a verdict is the table in `delivery.next_step`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import msgspec

from contextengine.delivery.next_step import RETRY_LINE_MS, End, next_step
from contextengine.engine.candidate import content_hash, reasserted_id, redriven_id
from contextengine.engine.decision import DeadInjection, Decision
from contextengine.engine.filters import no_room, switched_off
from contextengine.engine.placement import next_look_ms, ready
from contextengine.engine.pushed import PUSHED
from contextengine.engine.rules import RuleSet
from contextengine.schemas.decision import Acceptance
from contextengine.schemas.events import HAND_OFF
from contextengine.schemas.injection import (
    AttemptVerdict,
    Confirmation,
    Destination,
    Injection,
    InjectionAttempt,
    InjectionCancelled,
    InjectionResult,
    Outcome,
    RetryRequested,
    Verdict,
)
from contextengine.schemas.session import HeldInjection, LiveContext, Placement, Session, Stage

INJECTION_TIMER: Final = "injection:"
REPORT_GRACE_MS: Final = 5_000
"""How long after its deadline the VoiceEngine's report on a hand-off is waited for."""
SHOWN_CHARACTERS: Final = 2_000
"""How much of a context an explanation shows."""
SHOWN_AGAIN_CHARACTERS: Final = 200
"""And how much of one that goes in again, perhaps with many others."""
LIVE: Final = 64
"""Of so many contexts is it remembered that they are in the model's context, the latest ones."""
REDRIVES_REMEMBERED: Final = 256
FAILURE_CHARACTERS: Final = 128
"""How much of an error's class a session remembers: anybody may have reported it."""


class Lives:
    """A session's injections while one event is judged; what must be done for them goes into its decision."""

    __slots__ = ("_decision", "_now_ms", "_off", "_rules", "_session")

    def __init__(
        self, session: Session, now_ms: int, decision: Decision, rules: RuleSet, off: Collection[str] = ()
    ) -> None:
        self._session = session
        self._rules = rules
        self._off = off
        self._now_ms = now_ms
        self._decision = decision

    def accept(self, held: HeldInjection, shown: int = SHOWN_CHARACTERS) -> None:
        """From here on it is an injection, and will have an outcome; so much of its text is explained."""
        injection = held.injection
        self._session.held[injection.injection_id] = held
        self._decision.accepted.append(
            Acceptance(
                rule=injection.rule,
                injection_id=injection.injection_id,
                placement=held.placement.place.value,
                text=injection.context.render()[:shown],
            )
        )

    def redrive(self, dead: Injection, number: int) -> None:
        """A dead injection comes back, as one with a new id and as long a life as it had; a copy changes nothing."""
        session, slot = self._session, dead.context.metadata.key
        name = redriven_id(dead.injection_id, number)
        if name in session.redriven:
            return
        session.redriven = [*session.redriven[1 - REDRIVES_REMEMBERED :], name]
        live = session.live.get(slot)
        newer = (live is not None and live.since_ms > dead.trigger_ms) or any(
            held.injection.context.metadata.key == slot for held in session.held.values()
        )
        held = HeldInjection(self._born_again(dead, name, redrives=number), Placement())
        full = no_room(held, session)
        self.accept(held)
        if session.started_ms is None or session.ended_ms is not None:
            self.end(held, Outcome.EXPIRED, "the session is over")
        elif newer:
            self.end(held, Outcome.SUPERSEDED, f"the session has a newer context in the slot {slot}")
        elif full:
            self.end(held, Outcome.SKIPPED, f"no room, so it may be sent back once more, later: {full}")

    def reassert(self, position: str, lost: str) -> None:
        """The model has lost what was in its context, by the event at this position: what matters goes in again.

        Each is an injection of its own, with as long a life as it had. Where a newer one is on its way, that goes in;
        where the rule is gone or on trial by now, none.
        """
        session = self._session
        if session.started_ms is None or session.ended_ms is not None:
            return
        on_their_way = {held.injection.context.metadata.key for held in session.held.values()}
        live, session.live = session.live, {slot: was for slot, was in session.live.items() if slot in on_their_way}
        for slot, was in live.items():
            if was.injection is None or slot in on_their_way or not self._acts(was.injection.rule):
                continue
            again = self._born_again(was.injection, reasserted_id(was.injection_id, position), position=position)
            held = HeldInjection(again, Placement(), reassert=True)
            full = no_room(held, session)
            self.accept(held, SHOWN_AGAIN_CHARACTERS)
            if full:
                self.end(held, Outcome.SKIPPED, f"{lost}, and there is no room: {full}")

    def take_back(self, rule: str, key: str, reason: str) -> None:
        """Cancel what has not been sent, of this rule ("": of any) and this slot; what was goes in no second time."""
        session = self._session
        for held in list(session.held.values()):
            if _is_meant(held.injection, rule, key):
                self.call_back(held, Outcome.CANCELLED, reason)
        for live in session.live.values():
            if live.injection is not None and _is_meant(live.injection, rule, key):
                live.injection = None

    def judge(self, verdict: AttemptVerdict) -> None:
        """Take the verdict on an attempt that is in flight; any other changes nothing."""
        held = self._session.held.get(verdict.injection_id)
        if held is None or held.stage is not Stage.IN_FLIGHT or held.attempt != verdict.attempt:
            return
        held.confirmation = verdict.confirmation
        held.failure = (verdict.error_class or verdict.verdict.value)[:FAILURE_CHARACTERS]
        step = next_step(verdict, held.injection, self._now_ms)
        delivered = isinstance(step, End) and step.outcome is Outcome.DELIVERED
        if not delivered:
            held.first_failure_ms = held.first_failure_ms or self._now_ms
            held.last_failure_ms = self._now_ms
            if verdict.verdict in (Verdict.FAILED, Verdict.UNKNOWN):
                self._session.trouble_ms = self._now_ms
            if held.called_back:
                step = End(Outcome(held.called_back), verdict.message)
        if isinstance(step, End):
            self.end(held, step.outcome, step.reason, answered_ms=verdict.answered_ms)
            return
        held.stage, held.due_ms = Stage.RESTING, step.due_ms
        self._rest(held)

    def retry(self, injection_id: str, attempt: int) -> None:
        """The delay line has held this retry for its length; a rest that is over or unknown is left alone."""
        held = self._session.held.get(injection_id)
        if held is not None and held.stage is Stage.RESTING and held.attempt == attempt - 1:
            self._try_again(held)

    def look_at(self, injection_id: str) -> None:
        """The injection's own timer has fired."""
        held = self._session.held.get(injection_id)
        if held is None:
            return
        if held.stage is Stage.RESTING:
            self._try_again(held)
        elif held.stage is Stage.IN_FLIGHT:
            self.end(held, Outcome.EXPIRED, "nobody reported what became of it")
        elif self._now_ms >= held.injection.deadline_ms:
            self.end(held, Outcome.EXPIRED, "its moment did not come within its life")

    def release(self) -> None:
        """Send what has waited for this moment."""
        for held in ready(self._session, self._now_ms):
            if self._now_ms >= held.injection.deadline_ms:
                self.end(held, Outcome.EXPIRED, "its moment did not come within its life")
            else:
                self._attempt(held)

    def wait(self) -> None:
        """Put on a timer what waits for its moment, for it may come without an event."""
        for held in self._session.held.values():
            if held.stage is Stage.WAITING:
                self._set_timer(held, next_look_ms(held, self._session))

    def call_back(self, held: HeldInjection, outcome: Outcome, reason: str) -> None:
        """End what has not been sent; of what is in flight its consumer says whether there was time."""
        if held.stage is not Stage.IN_FLIGHT:
            self.end(held, outcome, reason)
        elif not held.called_back:
            held.called_back = outcome.value
            self._decision.cancellations.append(
                InjectionCancelled(
                    session_id=self._session.session_id, injection_id=held.injection.injection_id, reason=reason
                )
            )

    def end(self, held: HeldInjection, outcome: Outcome, reason: str, *, answered_ms: int = 0) -> None:
        """The one place where an injection ends."""
        session, injection = self._session, held.injection
        metadata = injection.context.metadata
        del session.held[injection.injection_id]
        session.timers.pop(INJECTION_TIMER + injection.injection_id, None)
        session.outcomes[outcome] = session.outcomes.get(outcome, 0) + 1
        if outcome is Outcome.DELIVERED:
            content = content_hash(injection.context)
            kept = injection if held.reassert else None
            session.live.pop(metadata.key, None)  # at the end: the first one is that which went in longest ago
            session.live[metadata.key] = LiveContext(injection.injection_id, content, self._now_ms, kept)
            for slot in list(session.live)[:-LIVE]:
                del session.live[slot]
        if outcome is Outcome.DEAD:
            self._decision.dead.append(
                DeadInjection(
                    self._attempt_record(held), held.failure, reason, held.first_failure_ms, held.last_failure_ms
                )
            )
        self._decision.results.append(
            InjectionResult(
                session_id=session.session_id,
                injection_id=injection.injection_id,
                rule=injection.rule,
                outcome=outcome,
                provider=session.provider,
                criticality=metadata.criticality.value,
                attempts=held.attempt,
                trigger_ms=injection.trigger_ms,
                decided_ms=self._now_ms,
                confirmation=held.confirmation if outcome is Outcome.DELIVERED else Confirmation.NONE,
                answered_ms=answered_ms,
                reason=reason,
            )
        )

    def _born_again(self, was: Injection, name: str, **changes: Any) -> Injection:
        """The same context under another id, with as long a life as it had."""
        ends_ms = self._now_ms + was.context.metadata.ttl_ms
        return msgspec.structs.replace(was, injection_id=name, trigger_ms=self._now_ms, deadline_ms=ends_ms, **changes)

    def _acts(self, name: str) -> bool:
        """Whether contexts of this rule go in, as things stand; what was pushed has no rule that could change."""
        rule = self._rules.rule(name)
        if rule is None:
            return name.startswith(PUSHED)
        return not rule.shadow and rule.has_in_share(self._session.session_id)

    def _rest(self, held: HeldInjection) -> None:
        """A long rest is spent on the delay line, what remains of it on a timer."""
        if held.due_ms - self._now_ms < RETRY_LINE_MS:
            self._set_timer(held, held.due_ms)
            return
        self._decision.retries.append(
            RetryRequested(
                session_id=self._session.session_id,
                injection_id=held.injection.injection_id,
                attempt=held.attempt + 1,
                due_ms=held.due_ms,
            )
        )

    def _try_again(self, held: HeldInjection) -> None:
        if self._now_ms < held.due_ms:
            self._rest(held)
        elif self._now_ms >= held.injection.deadline_ms:
            self.end(held, Outcome.EXPIRED, "its life ended before the next attempt")
        else:
            self._attempt(held)

    def _attempt(self, held: HeldInjection) -> None:
        if self._off and (switch := switched_off(self._off, held.injection.rule, self._session.provider)):
            self.end(held, Outcome.SKIPPED, switch)
            return
        rule = self._rules.rule(held.injection.rule)
        condition = None if rule is None else rule.condition
        if condition is not None and (reason := condition.why_not(self._session, self._now_ms)) is not None:
            self.end(held, Outcome.SKIPPED, reason)
            return
        held.stage = Stage.IN_FLIGHT
        held.attempt += 1
        self._session.timers.pop(INJECTION_TIMER + held.injection.injection_id, None)
        if self._session.route == HAND_OFF:
            self._set_timer(held, held.injection.deadline_ms + REPORT_GRACE_MS)
        self._decision.attempts.append(self._attempt_record(held))

    def _attempt_record(self, held: HeldInjection) -> InjectionAttempt:
        session = self._session
        return InjectionAttempt(
            session_id=session.session_id,
            attempt=held.attempt,
            destination=Destination(
                provider=session.provider, model=session.model, route=session.route, call_id=session.call_id
            ),
            injection=held.injection,
        )

    def _set_timer(self, held: HeldInjection, due_ms: int) -> None:
        self._decision.set_timer(self._session, INJECTION_TIMER + held.injection.injection_id, due_ms)


def _is_meant(injection: Injection, rule: str, key: str) -> bool:
    slot = injection.context.metadata.key
    return rule in ("", injection.rule) and key in ("", slot, slot.removeprefix(PUSHED))
