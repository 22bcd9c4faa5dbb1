"""What every partition is told: which rules are in force, and what is switched off.

It is stored in the rules topic first, where its offset is its version, and then written to each partition. Whoever was
interrupted between the two is finished by the next one, and by a worker that takes a partition over.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaProducer

from contextengine.schemas.events import SwitchesChanged
from contextengine.topics import rulebook
from contextengine.topics.catalogue import catalogue
from contextengine.topics.errand import errand
from contextengine.topics.registry import codec_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from contextengine.schemas.events import PartitionEvent
    from contextengine.settings import Settings


async def broadcast(settings: Settings, event: PartitionEvent) -> None:
    """Write `event` to every partition of the events topic. Raises BrokerUnavailable."""
    codec = await asyncio.to_thread(codec_of, settings)
    told = codec.encode(event)
    async with errand(AIOKafkaProducer(**settings.kafka_client(), acks="all"), settings) as producer:
        for number in range(settings.partitions):
            await producer.send_and_wait(catalogue(settings).events.name, told, partition=number)


async def switch(settings: Settings, *, off: Iterable[str] = (), on: Iterable[str] = ()) -> list[str]:
    """Switch `rule:NAME`, `provider:NAME` or `everything` off and on; returns all that is off.

    Raises ConfigurationError without topics, and BrokerUnavailable: then some partitions may not know of it, until it
    is done again or a worker takes them over.
    """
    before = await rulebook.read(settings)
    for names, value in ((off, rulebook.OFF), (on, rulebook.ON)):
        for name in names:
            await rulebook.append(settings, rulebook.SWITCH + name, value)
    latest, _ = rulebook.newest(before)
    if latest:  # an engine that knows no switches takes the last record for the newest rule set
        await rulebook.append(settings, latest, before[latest].value)
    now, version = rulebook.switches(await rulebook.read(settings))
    if version >= 0:
        await broadcast(settings, SwitchesChanged(version=version, off=now))
    return now


async def switched_off(settings: Settings) -> list[str]:
    """All that is off. Raises as `switch` does."""
    return rulebook.switches(await rulebook.read(settings))[0]
