"""The rules topic: rule sets by hash, the log id of the events topic, and what is switched off.

It is compacted and has one partition: the last value of each key is the one that counts.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from contextengine.errors import ConfigurationError
from contextengine.topics.catalogue import STATE_MESSAGE_BYTES, catalogue
from contextengine.topics.errand import ANSWER_MS, errand

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiokafka.client import AIOKafkaClient

    from contextengine.settings import Settings

LOG_ID: Final = "log-id"
"""The key under which the id of the events topic stands; it is no hash of a rule set."""
SWITCH: Final = "switch:"
"""What the keys of switches begin with: each has one of its own, so two people at once undo nothing of each other's."""
OFF: Final = b"off"
ON: Final = b"on"


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands under a key."""

    offset: int
    value: bytes


async def read(settings: Settings) -> dict[str, Entry]:
    """What stands under each key, in the order in which it was written.

    Raises ConfigurationError when there is no such topic, and BrokerUnavailable.
    """
    page = TopicPartition(catalogue(settings).rules.name, 0)
    consumer = AIOKafkaConsumer(
        **settings.kafka_client(),
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        fetch_max_wait_ms=50,
        request_timeout_ms=ANSWER_MS,
    )
    entries: dict[str, Entry] = {}
    async with errand(consumer, settings):
        await must_exist(page.topic, consumer._client)  # noqa: SLF001  no public way to ask without creating it
        consumer.assign([page])
        # The end is what a fetch says it is: the embedded broker's ListOffsets answers can be too low.
        while (end := consumer.highwater(page)) is None or await consumer.position(page) < end:
            for record in (await consumer.getmany(page, timeout_ms=100)).get(page, []):
                key = (record.key or b"").decode(errors="replace")
                entries.pop(key, None)
                if record.value is not None:
                    entries[key] = Entry(record.offset, record.value)
    return entries


def newest(entries: Mapping[str, Entry]) -> tuple[str, int]:
    """The hash and the version, which is its offset, of the newest rule set; "" and -1 before any."""
    rule_sets = [(entry.offset, key) for key, entry in entries.items() if not is_no_rule_set(key)]
    version, rules_hash = max(rule_sets, default=(-1, ""))
    return rules_hash, version


def switches(entries: Mapping[str, Entry]) -> tuple[list[str], int]:
    """What is switched off, and the version of that, the offset of the last switch; nothing and -1 before any."""
    found = {key.removeprefix(SWITCH): entry for key, entry in entries.items() if key.startswith(SWITCH)}
    off = sorted(name for name, entry in found.items() if entry.value == OFF)
    return off, max((entry.offset for entry in found.values()), default=-1)


def is_no_rule_set(key: str) -> bool:
    """Whether this key of the topic is something else."""
    return key == LOG_ID or key.startswith(SWITCH)


async def append(settings: Settings, key: str, value: bytes) -> int:
    """Write `value` under `key`, and return its offset once the broker has it.

    Writing it twice is harmless, so the producer is not idempotent: an idempotent one never gives up on a broker.
    Raises ConfigurationError when there is no such topic or `value` is too large, and BrokerUnavailable.
    """
    topic = catalogue(settings).rules.name
    producer = AIOKafkaProducer(
        **settings.kafka_client(), acks="all", request_timeout_ms=ANSWER_MS, max_request_size=STATE_MESSAGE_BYTES
    )
    async with errand(producer, settings):
        await must_exist(topic, producer.client)
        return int((await producer.send_and_wait(topic, value, key=key.encode(), partition=0)).offset)


async def read_log_id(settings: Settings) -> str:
    """The id of the events topic; a topic that was made anew has another. Raises ConfigurationError without one."""
    entry = (await read(settings)).get(LOG_ID)
    if entry is None:
        raise ConfigurationError("the events topic has no log id; run `contextengine topics apply`")
    return entry.value.decode()


async def must_exist(topic: str, client: AIOKafkaClient) -> None:
    """Raise ConfigurationError if there is no such topic; asking for it by name would create it on some brokers."""
    for _ in range(10):  # a broker may learn a little late of a topic that another one has just created
        if topic in (await client.fetch_all_metadata()).topics():
            return
        await asyncio.sleep(0.05)
    raise ConfigurationError(f"there is no topic {topic}; run `contextengine topics apply`")
