"""Every metric there is: its name, its labels, and when it counts.

Labels have few values: never a session's, a user's, an injection's or a rule's, of which there is no end. All metrics
are in prometheus_client's own registry, so a program that already serves that one serves these too.
"""

from __future__ import annotations

from typing import ClassVar, Final, Self

from prometheus_client import Counter, Gauge, Histogram

# The worker: events in, decisions out.

EVENTS: Final = Counter(
    "contextengine_events_total",
    "Events decided on, duplicates included.",
)
DECIDE_SECONDS: Final = Histogram(
    "contextengine_decide_duration_seconds",
    "How long one event takes, from its bytes to its outputs: the mean of each batch of up to 256.",
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
)
SUPPRESSED: Final = Counter(
    "contextengine_suppressed_total",
    "Contexts that a rule proposed and a filter refused.",
    ["filter"],
)

PARTITIONS_HALTED: Final = Gauge(
    "contextengine_halted_partitions",
    "Partitions of this worker that go no further, because the broker refuses a record that follows from them.",
)


class InjectionsEnded(Counter):
    """Of the providers, which events name and could invent, only the first so many have a label of their own."""

    most: ClassVar[int] = 32
    seen: ClassVar[set[str]] = set()

    def labels(self, outcome: str, criticality: str, provider: str) -> Self:  # type: ignore[override]
        """The counter of these; that of the provider "other" for one too many."""
        if len(self.seen) < self.most:
            self.seen.add(provider)
        return super().labels(outcome, criticality, provider if provider in self.seen else "other")


INJECTIONS: Final = InjectionsEnded(
    "contextengine_injections_total",
    "Injections that ended, each once, by how they ended.",
    ["outcome", "criticality", "provider"],
)

# The delivery consumer.

ATTEMPTS: Final = Counter(
    "contextengine_attempts_total",
    "Attempts that were judged, by verdict.",
    ["verdict"],
)
EVENT_TO_DELIVERY_SECONDS: Final = Histogram(
    "contextengine_event_to_delivery_seconds",
    "From the trigger of a delivered injection to its provider's answer, in broker time.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)

# Every process that writes to the log.

CLOCK_AHEAD_SECONDS: Final = Gauge(
    "contextengine_clock_ahead_seconds",
    "How far this machine's clock is ahead of the broker's, by the last record that was acknowledged.",
)

# Whoever consumes a topic. The gauges are set with set_function, so that a consumer that is stuck is seen to age, and
# removed when the partition goes to somebody else.

CONSUMER_LAG_SECONDS: Final = Gauge(
    "contextengine_consumer_lag_seconds",
    "How long ago the next record to be processed was appended; 0 when there is none.",
    ["topic", "partition"],
)
OLDEST_UNCOMMITTED_SECONDS: Final = Gauge(
    "contextengine_oldest_uncommitted_seconds",
    "How long ago the oldest record whose offset is not committed was appended; 0 when there is none.",
    ["topic", "partition"],
)
DEAD_LETTERS: Final = Counter(
    "contextengine_dead_letters_total",
    "Records written to the dead letters, by what could not be done with them.",
    ["stage"],
)
