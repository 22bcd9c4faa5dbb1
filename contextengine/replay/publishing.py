"""A recording's conversations, held once more at a broker, in their own time, faster, or at once.

Only what happened in the conversations is published: an installation makes its own ticks, and gets its own answers. The
producer's name, incarnation and seq stay; a session is another one when it gets another name. What is faster says so at
its start (`time_scale`), so that rules that count minutes fire where they did.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
from aiokafka import AIOKafkaProducer

from contextengine.errors import ConfigurationError
from contextengine.schemas.events import ConversationEvent, SessionStarted
from contextengine.topics.catalogue import catalogue, partition_for
from contextengine.topics.errand import answers, errand
from contextengine.topics.registry import codec_of
from contextengine.topics.rulebook import must_exist

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from contextengine.replay.recording import Recording
    from contextengine.settings import Settings


@dataclass(slots=True)
class Published:
    """What was published; `headless` sessions have no start in the recording, so nothing can be injected into them."""

    events: int = 0
    sessions: set[str] = field(default_factory=set)
    headless: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast: 1 is the recording's own time, 10 ten times as fast, 0 at once."""

    factor: float
    began_ms: int = 0

    def at_ms(self, recorded_ms: int) -> int:
        """A time of a producer's clock, on a clock on which everything happens so fast."""
        return self.began_ms + round((recorded_ms - self.began_ms) / self.factor) if self.factor else recorded_ms


async def publish(
    recordings: Iterable[Recording],
    settings: Settings,
    *,
    speed: float = 1.0,
    prefix: str = "",
    progress: Callable[[Published], None] | None = None,
) -> Published:
    """Publish what happened in the recordings, all at the same time; `prefix` is put before the sessions' names.

    Raises BrokerUnavailable, and ConfigurationError when the topics are not there or a recording has no conversation.
    """
    topic, codec = catalogue(settings).events, await asyncio.to_thread(codec_of, settings)
    async with errand(AIOKafkaProducer(**settings.kafka_client()), settings) as asking:
        await must_exist(topic.name, asking.client)
    events = [one for recording in recordings for one in _conversation(recording, speed, prefix)]
    if not events:
        raise ConfigurationError("nothing of a conversation is in there to be published")
    done, began_s = Published(), time.monotonic()
    started = {event.session_id for _, event in events if isinstance(event, SessionStarted)}
    unacknowledged: list[Awaitable[object]] = []
    with answers(settings):
        async with AIOKafkaProducer(**settings.kafka_producer()) as producer:
            for after_ms, event in sorted(events, key=lambda one: one[0]):
                ahead_s = began_s + after_ms / 1_000 - time.monotonic()
                if ahead_s > 0:
                    await asyncio.sleep(ahead_s)
                key = event.session_id.encode()
                partition = partition_for(key, topic.partitions)
                unacknowledged.append(await producer.send(topic.name, codec.encode(event), key, partition=partition))
                done.events += 1
                done.sessions.add(event.session_id)
                if progress is not None:
                    progress(done)
            await asyncio.gather(*unacknowledged)
    done.headless = done.sessions - started
    return done


def _conversation(recording: Recording, speed: float, prefix: str) -> list[tuple[float, ConversationEvent]]:
    """The events of a recording's conversations as they are to be published, and how many ms after the first one."""
    heard = [
        (record.appended_ms, record.event)
        for record in recording.records
        if isinstance(record.event, ConversationEvent)
    ]
    if not heard:
        return []
    began_ms = min(appended_ms for appended_ms, _ in heard)
    speeds: dict[tuple[str, str], Speed] = {}
    events = []
    for appended_ms, event in heard:
        clock = speeds.setdefault((event.session_id, event.producer), Speed(speed, event.at_ms))
        after_ms = (appended_ms - began_ms) / speed if speed else 0.0
        events.append((after_ms, _renewed(event, clock, prefix)))
    return events


def _renewed(event: ConversationEvent, clock: Speed, prefix: str) -> ConversationEvent:
    changes: dict[str, object] = {"session_id": prefix + event.session_id, "at_ms": clock.at_ms(event.at_ms)}
    if hasattr(event, "known_ms"):
        changes["known_ms"] = clock.at_ms(event.known_ms)
    if isinstance(event, SessionStarted) and clock.factor:
        changes["time_scale"] = event.time_scale * clock.factor
    return msgspec.structs.replace(event, **changes)
