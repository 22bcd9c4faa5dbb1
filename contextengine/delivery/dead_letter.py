"""What a dead letter says beside its bytes: where the record comes from, what went wrong, what it was about.

The value of a dead letter is the record's value, byte for byte. Everything else is in these headers, as UTF-8 text:

    cx-stage            decode, decide, render or deliver: what could not be done
    cx-class            the error's class
    cx-message          the error's message, at most 1 KiB
    cx-topic            the topic that the record was read from; also its
    cx-partition        partition,
    cx-offset           offset,
    cx-timestamp-ms     and time
    cx-group            the consumer group that could not go on with it, and
    cx-worker           the process
    cx-redrives         how often it was sent back from the dead letters

    of an injection also
    cx-injection-id, cx-position, cx-criticality, cx-strategy
    cx-attempt          the attempts made; cx-max-attempts those allowed
    cx-first-failure-ms, cx-last-failure-ms, cx-due-ms, cx-deadline-ms
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from contextengine.schemas.injection import Injection

PREFIX: Final = "cx-"
MESSAGE_BYTES: Final = 1_024
CARRIED_BYTES: Final = 8 * 1_024
"""How much of the record's own headers (the names and values of others, `traceparent`) goes along."""


class Stage(StrEnum):
    """What could not be done with a record."""

    DECODE = "decode"
    DECIDE = "decide"
    RENDER = "render"
    DELIVER = "deliver"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a record was read, and by whom."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    group: str
    worker: str


@dataclass(frozen=True, slots=True)
class Failures:
    """An injection's attempts up to its death; times are broker milliseconds, 0 where it did not come to that."""

    injection: Injection
    attempt: int
    first_failure_ms: int = 0
    last_failure_ms: int = 0
    due_ms: int = 0


def headers(
    stage: Stage,
    error_class: str,
    message: str,
    origin: Origin,
    *,
    failures: Failures | None = None,
    redrives: int = 0,
    carried: Iterable[tuple[str, bytes]] = (),
) -> list[tuple[str, bytes]]:
    """The headers of a dead letter. `carried` are those of the record itself: ours are replaced, others' go along."""
    told: dict[str, object] = {
        "stage": stage,
        "class": error_class,
        "message": message.encode()[:MESSAGE_BYTES].decode(errors="ignore"),
        "topic": origin.topic,
        "partition": origin.partition,
        "offset": origin.offset,
        "timestamp-ms": origin.timestamp_ms,
        "group": origin.group,
        "worker": origin.worker,
        "redrives": redrives,
    }
    if failures is not None:
        injection = failures.injection
        told |= {
            "injection-id": injection.injection_id,
            "position": injection.position,
            "criticality": injection.context.metadata.criticality,
            "strategy": injection.policy.strategy,
            "attempt": failures.attempt,
            "max-attempts": injection.policy.max_attempts,
            "first-failure-ms": failures.first_failure_ms,
            "last-failure-ms": failures.last_failure_ms,
            "due-ms": failures.due_ms,
            "deadline-ms": injection.deadline_ms,
        }
    ours = [(PREFIX + name, str(value).encode()) for name, value in told.items()]
    return ours + _within(CARRIED_BYTES, carried)


def _within(budget: int, carried: Iterable[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    kept = []
    for name, value in carried:
        budget -= len(name) + len(value)
        if not name.startswith(PREFIX) and budget >= 0:
            kept.append((name, value))
    return kept
