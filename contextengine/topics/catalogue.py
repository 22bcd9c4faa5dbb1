"""Every topic there is: its name, its settings, and what it holds.

Sessions are ordered because a session's records share a partition, in every topic alike: the key is the session's id,
the partition is `partition_for(key)`, and the topics keyed by session have equal partition counts. So partition counts
never change in place; a larger installation is a new prefix. Logs have LogAppendTime: deadlines and delays go by the
broker's clock, the only one that all processes share.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from aiokafka.partitioner import murmur2

if TYPE_CHECKING:
    from contextengine.settings import Settings

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
KIB: Final = 1024

# The largest legal record. The broker measures a whole batch, so these are a batch with one record in it: 61 bytes of
# batch header, at most 21 of lengths, attributes and deltas (Kafka's MAX_RECORD_OVERHEAD), rounded up.
EVENT_BYTES: Final = 256 * KIB
HEADERS_BYTES: Final = 16 * KIB
KEY_BYTES: Final = 1 * KIB
BATCH_BYTES: Final = 128
# 256 KiB event + 16 KiB headers + 1 KiB key + 128 = 279,680
MAX_MESSAGE_BYTES: Final = EVENT_BYTES + HEADERS_BYTES + KEY_BYTES + BATCH_BYTES
# A dead letter is such a record with its own headers, and up to 16 KiB of ours about why it is dead.
DEAD_MESSAGE_BYTES: Final = 2 * MAX_MESSAGE_BYTES
# A rule set and a session's state are not records of the log, and are bounded by what a producer sends by default.
STATE_MESSAGE_BYTES: Final = 1024 * KIB

SESSIONS_TABLE: Final = "sessions"


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it must be on the broker."""

    name: str
    holds: str
    partitions: int
    replication: int
    cleanup: Literal["delete", "compact"]
    keep_ms: int
    """How long records stay; of a compacted topic, how long superseded ones stay at least."""
    max_message_bytes: int = MAX_MESSAGE_BYTES
    timestamps: Literal["CreateTime", "LogAppendTime"] = "CreateTime"

    def config(self) -> dict[str, str]:
        """The topic's settings in Kafka's words."""
        keep = "retention.ms" if self.cleanup == "delete" else "min.compaction.lag.ms"
        return {
            "cleanup.policy": self.cleanup,
            keep: str(self.keep_ms),
            "max.message.bytes": str(self.max_message_bytes),
            "message.timestamp.type": self.timestamps,
            # With three copies a write waits for two. With fewer it waits for one, or one broken broker stops it all.
            "min.insync.replicas": "2" if self.replication > 2 else "1",
        }


class Catalogue(NamedTuple):
    """The topics of one prefix."""

    events: Topic
    rules: Topic
    injections: Topic
    retry_1s: Topic
    dead: Topic
    attempts: Topic
    results: Topic
    decisions: Topic
    sessions_changelog: Topic


def catalogue(settings: Settings) -> Catalogue:
    """The topics that these settings ask for."""

    def log(name: str, holds: str, keep_ms: int = DAY_MS, max_message_bytes: int = MAX_MESSAGE_BYTES) -> Topic:
        return Topic(
            f"{settings.prefix}.{name}",
            holds,
            settings.partitions,
            settings.replication,
            "delete",
            keep_ms,
            max_message_bytes,
            timestamps="LogAppendTime",
        )

    def table(name: str, holds: str, partitions: int) -> Topic:
        return Topic(name, holds, partitions, settings.replication, "compact", HOUR_MS, STATE_MESSAGE_BYTES)

    return Catalogue(
        events=log("events", "everything that can change a decision"),
        rules=table(f"{settings.prefix}.rules", "rule sets by hash, and the log id of the events topic", 1),
        injections=log("injections", "attempts to make, and cancellations of them, in order"),
        retry_1s=log("injections.retry.1s", "retries, each due one second after it was appended"),
        dead=log("injections.dead", "what could not be decoded or delivered, and why", 14 * DAY_MS, DEAD_MESSAGE_BYTES),
        attempts=log("attempts", "one verdict for each attempt"),
        results=log("results", "one terminal outcome for each injection", 7 * DAY_MS),
        decisions=log("decisions", "what fired, what was suppressed, and why"),
        # Faust makes this name of the app id and the table's.
        sessions_changelog=table(
            f"{settings.worker_group}-{SESSIONS_TABLE}-changelog",
            "the state of every session, and of every partition",
            settings.partitions,
        ),
    )


@lru_cache(maxsize=65_536)
def partition_for(key: bytes, partitions: int) -> int:
    """The partition of `key`, as Kafka's own clients choose it: murmur2, sign bit cleared. Part of the contract.

    Cached, because plain Python takes 10 us for a session's id and a session's records have one key.
    """
    return int(murmur2(key) & 0x7FFFFFFF) % partitions
