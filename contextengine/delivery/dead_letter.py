"""What a dead letter says beside its bytes: where the record comes from, what went wrong, what it was about.

The value of a dead letter is the record's value, byte for byte; one that is too large for the topic (it came
compressed) is kept as gzip, or, if that does not help, cut. Everything else is in these headers, as UTF-8 text:

    cx-stage            decode, decide, render or deliver: what could not be done
    cx-class            the error's class
    cx-message          the error's message, at most 1 KiB
    cx-topic            the topic that the record was read from; also its
    cx-partition        partition,
    cx-offset           offset,
    cx-timestamp-ms     and time
    cx-group            the consumer group that could not go on with it, and
    cx-worker           the process
    cx-redrives         how often it was sent back from the dead letters,
    cx-letter           and of bytes that were, which letter they were sent back from the last time: partition:offset
    cx-encoding         gzip, or cut with cx-size and cx-sha256 of the whole, where the value is not the record's own

    of an injection also
    cx-injection-id, cx-position, cx-criticality, cx-strategy
    cx-attempt          the attempts made; cx-max-attempts those allowed
    cx-first-failure-ms, cx-last-failure-ms, cx-due-ms, cx-deadline-ms
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from contextengine.schemas.dead_letter import PREFIX, Stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from contextengine.schemas.injection import Injection

REDRIVES: Final = "cx-redrives"
LETTER: Final = "cx-letter"
LETTER_BYTES: Final = 32
MESSAGE_BYTES: Final = 1_024
CUT_BYTES: Final = 256 * 1_024
COUNT_DIGITS: Final = 10
CARRIED_BYTES: Final = 8 * 1_024
"""How much of the record's own headers (the names and values of others, `traceparent`) goes along."""


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
    """The headers of a dead letter. `carried` are those of the record itself: others' go along, ours are replaced.

    Only what a redrive has written there stays: without it nobody would know a letter that has come back.
    """
    carried = list(carried)
    sent_back = {name: value or b"" for name, value in carried if name in (REDRIVES, LETTER)}
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
        "redrives": redrives or _count(sent_back.get(REDRIVES, b"")),
    }
    if LETTER in sent_back:
        told["letter"] = sent_back[LETTER][:LETTER_BYTES].decode(errors="replace")
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


def forms(value: bytes | None) -> Iterator[tuple[bytes | None, list[tuple[str, bytes]]]]:
    """What to try to keep of a value, each with its headers, the whole first: a topic takes only so much."""
    yield value, []
    if value is not None:
        yield gzip.compress(value, mtime=0), [("cx-encoding", b"gzip")]
        told = {"cx-encoding": "cut", "cx-size": str(len(value)), "cx-sha256": hashlib.sha256(value).hexdigest()}
        yield value[:CUT_BYTES], [(name, text.encode()) for name, text in told.items()]


def _count(written: bytes) -> int:
    """The number in a header, 0 for what is none: anybody may have written it."""
    return int(written) if written.isdigit() and len(written) < COUNT_DIGITS else 0


def _within(budget: int, carried: Iterable[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    kept = []
    for name, value in carried:
        budget -= len(name) + len(value or b"")  # Kafka has headers without a value
        if not name.startswith(PREFIX) and budget >= 0:
            kept.append((name, value))
    return kept
