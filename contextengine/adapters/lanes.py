"""The attempts of one partition, queued by session, and what to do with each.

- A session's attempts are made one after another, in the order of the log; sessions do not wait for each other.
- An attempt that has a verdict is not made again: its verdict is reported again.
- An attempt that is called back before it is sent has the verdict cancelled.
- A record is finished when everything that it caused is acknowledged; only finished records are committed.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from contextengine.schemas.injection import AttemptVerdict, InjectionAttempt, Verdict

if TYPE_CHECKING:
    from collections.abc import Collection

    from aiokafka.structs import ConsumerRecord

    from contextengine.schemas.injection import InjectionCancelled

VERDICTS: Final = 8_192
"""How many verdicts of a partition are remembered: an attempt that is older than these has passed its deadline."""

MESSAGE_CHARS: Final = 1_024
"""How much an error may say in a verdict: what the broker refuses as too large would stop the partition."""


@dataclass(slots=True)
class Queued:
    """An attempt in its session's lane, the record that it came in, and why it was called back, if it was."""

    record: ConsumerRecord
    attempt: InjectionAttempt
    cancelled: str = ""

    def hear(self, cancelled: InjectionCancelled) -> None:
        """If it is this attempt's injection that is cancelled, whoever comes to the attempt must not send it."""
        if self.attempt.injection.injection_id == cancelled.injection_id:
            self.cancelled = cancelled.reason or "cancelled"


class Lanes:
    """The attempts of one partition that were read and are not finished, in a lane for each session."""

    def __init__(self) -> None:
        self._lanes: dict[str, deque[Queued]] = {}

    def add(self, queued: Queued) -> bool:
        """Put an attempt into its session's lane. True if nobody works on that lane yet."""
        session_id = queued.attempt.session_id
        idle = session_id not in self._lanes
        self._lanes.setdefault(session_id, deque()).append(queued)
        return idle

    def head(self, session_id: str) -> Queued | None:
        """The attempt to make next in this lane. None when it is empty, and then nobody works on it any more."""
        lane = self._lanes[session_id]
        if lane:
            return lane[0]
        del self._lanes[session_id]
        return None

    def pop(self, session_id: str) -> None:
        """The head of this lane is finished."""
        self._lanes[session_id].popleft()

    def cancel(self, cancelled: InjectionCancelled) -> None:
        """Call back every attempt of this injection that is still queued."""
        for queued in self._lanes.get(cancelled.session_id, ()):
            queued.hear(cancelled)


class KnownVerdicts:
    """The verdicts of attempts that were made: the latest of them, within a bound."""

    def __init__(self, limit: int = VERDICTS) -> None:
        self._limit = limit
        self._verdicts: OrderedDict[tuple[str, int], AttemptVerdict] = OrderedDict()

    def add(self, verdict: AttemptVerdict) -> None:
        """Remember `verdict`; the first one for an attempt stands."""
        self._verdicts.setdefault((verdict.injection_id, verdict.attempt), verdict)
        if len(self._verdicts) > self._limit:
            self._verdicts.popitem(last=False)

    def of(self, attempt: InjectionAttempt) -> AttemptVerdict | None:
        """The verdict of this attempt, if it was made."""
        return self._verdicts.get((attempt.injection.injection_id, attempt.attempt))


def timeout_ms(attempt: InjectionAttempt, now_ms: int) -> int:
    """How long this attempt may take from now (broker milliseconds); 0 or less when its deadline has passed."""
    return min(attempt.injection.timeout_ms, attempt.injection.deadline_ms - now_ms)


def without_sending(queued: Queued, now_ms: int, providers: Collection[str]) -> AttemptVerdict | None:
    """The verdict that is clear before anything is sent, or None when the attempt is to be made."""
    attempt, provider = queued.attempt, queued.attempt.destination.provider
    if queued.cancelled:
        return verdict_on(attempt, Verdict.CANCELLED, message=queued.cancelled)
    if provider not in providers:
        known = ", ".join(sorted(providers)) or "none"
        return verdict_on(
            attempt,
            Verdict.REFUSED,
            error_class="UnknownProvider",
            message=f"no adapter for provider {provider!r}; this consumer has: {known}",
        )
    if timeout_ms(attempt, now_ms) <= 0:
        late_ms = now_ms - attempt.injection.deadline_ms
        return verdict_on(attempt, Verdict.EXPIRED, message=f"its deadline passed {late_ms} ms before it could be sent")
    return None


def verdict_on(
    attempt: InjectionAttempt,
    verdict: Verdict,
    *,
    transient: bool = False,
    error_class: str = "",
    message: str = "",
    sent_ms: int = 0,
    answered_ms: int = 0,
) -> AttemptVerdict:
    """A verdict on `attempt` that no provider gave."""
    return AttemptVerdict(
        session_id=attempt.session_id,
        injection_id=attempt.injection.injection_id,
        attempt=attempt.attempt,
        verdict=verdict,
        provider=attempt.destination.provider,
        transient=transient,
        error_class=error_class,
        message=message[:MESSAGE_CHARS],
        sent_ms=sent_ms,
        answered_ms=answered_ms,
    )
