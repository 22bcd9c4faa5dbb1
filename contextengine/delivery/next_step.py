"""What becomes of an injection after an attempt.

An injection is waiting, in flight, resting, or ended; nothing leaves ended. A verdict names exactly one next step:

    delivered                          ended: delivered
    refused                            ended: refused
    expired                            ended: expired
    cancelled                          ended: cancelled
    failed, and will fail again        ended: dead
    failed or unknown, strategy skip   ended: skipped
    failed or unknown, retry_async     rests for the policy's delay, then the next attempt, under the same id;
                                       ended: dead when its attempts are spent,
                                       ended: expired when its life is over before the rest is
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from contextengine.schemas.injection import AttemptVerdict, FailureStrategy, Injection, Outcome, Verdict

RETRY_LINE_MS: Final = 1_000
"""The length of the delay line; a shorter rest is a timer of the session."""


@dataclass(frozen=True, slots=True)
class End:
    """The injection has ended."""

    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Rest:
    """The injection rests until `due_ms`, then another attempt is made."""

    due_ms: int


_FINAL: Final = {
    Verdict.DELIVERED: Outcome.DELIVERED,
    Verdict.REFUSED: Outcome.REFUSED,
    Verdict.EXPIRED: Outcome.EXPIRED,
    Verdict.CANCELLED: Outcome.CANCELLED,
}


def next_step(verdict: AttemptVerdict, injection: Injection, now_ms: int) -> End | Rest:
    """The one next step after `verdict`, which came at `now_ms`."""
    policy = injection.policy
    final = _FINAL.get(verdict.verdict)
    if final is not None:
        return End(final, verdict.message)
    said = f"{verdict.error_class}: {verdict.message}" if verdict.error_class else verdict.message
    if verdict.verdict is Verdict.FAILED and not verdict.transient:
        return End(Outcome.DEAD, said)
    if policy.strategy is FailureStrategy.SKIP:
        return End(Outcome.SKIPPED, said)
    if verdict.attempt >= policy.max_attempts:
        return End(Outcome.DEAD, f"{verdict.attempt} attempts, the last: {said}")
    due_ms = now_ms + policy.delay_ms
    if due_ms >= injection.deadline_ms:
        return End(Outcome.EXPIRED, f"its life ends before the next attempt could be made; the last: {said}")
    return Rest(due_ms)
