"""What follows from one event: for the topics, for the timers, and for whoever asks why."""

from __future__ import annotations

from msgspec import Struct

from contextengine.schemas.decision import Acceptance, DecisionMade, Firing, Suppression
from contextengine.schemas.injection import (
    InjectionAttempt,
    InjectionCancelled,
    InjectionResult,
    RetryRequested,
)
from contextengine.schemas.session import Session


class DeadInjection(Struct, frozen=True):
    """An injection that could not be delivered, for the dead letters; times are broker time."""

    attempt: InjectionAttempt
    error_class: str
    reason: str
    first_failure_ms: int
    last_failure_ms: int


class Decision(Struct):
    """All that the outside world must do because of one event, and why.

    `timers` are those to wait for anew. `defect` says what went wrong in the engine itself, if anything did: what
    had been decided by then stands, because the session's state already says so.
    """

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
    defect: str = ""
    explanation: DecisionMade | None = None

    def set_timer(self, session: Session, timer: str, due_ms: int) -> None:
        """Have the session wait for a timer, unless it does already; one of the same name is moved."""
        if session.timers.get(timer) != due_ms:
            session.timers[timer] = due_ms
            self.timers.append((timer, due_ms))
