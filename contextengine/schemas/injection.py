"""What an injection is, from the attempt to deliver it to its one outcome: the records around a provider."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from contextengine.schemas.context import Context


class Outcome(StrEnum):
    """How an injection ends; every injection ends in exactly one."""

    DELIVERED = "delivered"
    SKIPPED = "skipped"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"
    REFUSED = "refused"
    DEAD = "dead"


class Verdict(StrEnum):
    """What became of one attempt.

    UNKNOWN: it was sent, and then nobody answered; it may be in the context. EXPIRED: its deadline had passed before it
    could be sent. CANCELLED: it was called back before it could be sent. REFUSED: the provider will not have it, now
    or later. FAILED says in `transient` whether trying again may help.
    """

    DELIVERED = "delivered"
    FAILED = "failed"
    REFUSED = "refused"
    UNKNOWN = "unknown"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class Confirmation(StrEnum):
    """How sure it is that a context reached the model."""

    NONE = "none"
    SENT = "sent"
    ACCEPTED = "accepted"
    IN_CONTEXT = "in_context"


class FailureStrategy(StrEnum):
    """What to do after a failed attempt."""

    SKIP = "skip"
    RETRY_ASYNC = "retry_async"


class FailurePolicy(Struct, frozen=True):
    """When to give up: `max_attempts` counts the first one; `delay_ms` is the rest before each other one."""

    strategy: FailureStrategy = FailureStrategy.SKIP
    max_attempts: int = 1
    delay_ms: int = 0


class Injection(Struct, frozen=True, kw_only=True):
    """A context that was accepted for a session.

    `injection_id` is the hex of a UUIDv5 over session, rule, trigger position and slot: every copy has the same one.
    `trigger_ms` is when the trigger happened and `deadline_ms` when the context is of no use any more (broker time).
    `redrives` is how often it has come back from the dead letters: each time with an id and a life of its own.
    """

    injection_id: str
    session_id: str
    rule: str
    position: str
    trigger_ms: int
    deadline_ms: int
    timeout_ms: int
    context: Context
    policy: FailurePolicy
    redrives: int = 0


class Destination(Struct, frozen=True, kw_only=True):
    """The conversation that an injection goes into, as its start named it."""

    provider: str
    model: str
    route: str
    call_id: str | None = None


class InjectionAttempt(Struct, frozen=True, kw_only=True):
    """One attempt to make, on the injections topic: all that a consumer needs to know, `attempt` counts from 1."""

    session_id: str
    attempt: int
    destination: Destination
    injection: Injection


class InjectionCancelled(Struct, frozen=True, kw_only=True):
    """An attempt that has not been sent yet must not be; whether it was in time is the attempt's verdict."""

    session_id: str
    injection_id: str
    reason: str


class AttemptVerdict(Struct, frozen=True, kw_only=True):
    """What became of one attempt, on the attempts topic and inside AttemptReported.

    `achieved` is native, emulated or none; `role` is the role that the provider gave the text. `sent_ms` and
    `answered_ms` are the consumer's clock shifted to broker time; 0 where it did not come to that.
    """

    session_id: str
    injection_id: str
    attempt: int
    verdict: Verdict
    provider: str
    confirmation: Confirmation = Confirmation.NONE
    achieved: str = "none"
    role: str = ""
    transient: bool = False
    error_class: str = ""
    message: str = ""
    sent_ms: int = 0
    answered_ms: int = 0
    tries: int = 1


class RetryRequested(Struct, frozen=True, kw_only=True):
    """A retry on a delay line: the line holds it for its own length and answers with RetryDue."""

    session_id: str
    injection_id: str
    attempt: int
    due_ms: int


class InjectionResult(Struct, frozen=True, kw_only=True):
    """The one outcome of an injection, on the results topic."""

    session_id: str
    injection_id: str
    rule: str
    outcome: Outcome
    provider: str
    criticality: str
    attempts: int
    trigger_ms: int
    decided_ms: int
    confirmation: Confirmation = Confirmation.NONE
    answered_ms: int = 0
    reason: str = ""
