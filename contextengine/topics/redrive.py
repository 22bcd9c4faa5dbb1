"""Sending dead letters back.

What a redrive does depends on what could not be done with the record:

    decode      its bytes go back, unchanged, to where they were read: topic, partition, key, headers. If they are
                buried again, the new letter says how often they were sent back, and from which letter
    deliver     a new injection: InjectionRedriven goes to the events topic, and `decide` gives it its one outcome
    decide      nothing: what had been decided by then was carried out, and a copy would be dropped as a duplicate

A redrive is acknowledged first and recorded then (DeadLetterRedriven, beside the letter). So one that is killed in
between is made again, with the same bytes or under the same id: a copy, and whoever reads it knows it for one.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, TypeVar

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka
from msgspec.structs import replace

from contextengine.errors import BrokerUnavailable, RecordRefused, UndecodableRecord
from contextengine.schemas.dead_letter import PREFIX, DeadLetterRedriven, Stage
from contextengine.schemas.events import InjectionRedriven
from contextengine.schemas.injection import InjectionAttempt
from contextengine.topics.catalogue import catalogue
from contextengine.topics.dead_letters import UNPACKED_BYTES, Place, contents, unpacked
from contextengine.topics.errand import ANSWER_MS, NO_ANSWER
from contextengine.topics.publisher import stop as stop_producer
from contextengine.topics.registry import codec_of
from contextengine.topics.trace import trace_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence

    from aiokafka.structs import ConsumerRecord

    from contextengine.settings import Settings
    from contextengine.topics.dead_letters import DeadLetter

CHUNK_LETTERS: Final = 100
"""Sent before they are recorded, and again after a kill: fewer than the redrives that a session remembers."""
CHUNKS_A_SECOND: Final = 10
CHUNK_S: Final = 30
"""How long the broker may take for a chunk of letters."""

T = TypeVar("T")
NewId: TypeAlias = "Callable[[str, int], str]"
"""The id under which an injection comes back for the nth time; the engine's, which this room may not import."""


@dataclass(slots=True)
class Redriven:
    """What a redrive has done: how many letters it sent back, and why it did not send back others.

    `gone` had outlived the topic's retention, or were purged, since they were found.
    """

    sent: int = 0
    refused: dict[Place, str] = field(default_factory=dict)
    gone: int = 0
    stopped: bool = False


class _Back(NamedTuple):
    """A letter on its way back: what is sent where, and what is recorded of it then."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    record: DeadLetterRedriven


class Redriver:
    """Sends letters back, at most `rate` a second, and records each. `by` is who does it.

    A record that has been sent back `max_redrives` times is refused: it would only come back again. To construct it may
    ask a schema registry, and blocks.
    """

    def __init__(
        self, settings: Settings, new_id: NewId, *, by: str, rate: float | None = None, max_redrives: int = 3
    ) -> None:
        self._settings, self._new_id, self._by, self._rate = settings, new_id, by, rate
        self._max_redrives = max_redrives
        self._topics, self._codec = catalogue(settings), codec_of(settings)

    def refusal(self, letter: DeadLetter) -> str:
        """Why this letter is not sent back; "" if it is."""
        if letter.told["topic"] not in {topic.name for topic in self._topics}:
            return f"it was read from {letter.told['topic']}, which is no topic of {self._settings.prefix}"
        if not letter.unfit and letter.sent_back >= self._max_redrives:
            return f"it was sent back {letter.sent_back} times already; --max-redrives allows more"
        return letter.unfit

    async def redrive(
        self, letters: Sequence[DeadLetter], stop: asyncio.Event, on_progress: Callable[[int], None]
    ) -> Redriven:
        """Send letters back until all are or `stop` is set; `on_progress` hears how many are.

        A partition's letters keep their order. Whatever ends it, what was acknowledged is recorded, but for the last
        chunk of letters at most. Raises BrokerUnavailable, and RecordRefused when nothing can be recorded.
        """
        done = Redriven(refused={letter.place: why for letter in letters if (why := self.refusal(letter))})
        fit = [letter for letter in letters if letter.place not in done.refused]
        producer = AIOKafkaProducer(
            **self._settings.kafka_producer(),
            request_timeout_ms=ANSWER_MS,
            compression_type="gzip",  # what came compressed may be too large otherwise
            max_request_size=2 * UNPACKED_BYTES,
        )
        size = CHUNK_LETTERS if self._rate is None else min(CHUNK_LETTERS, max(1, round(self._rate / CHUNKS_A_SECOND)))
        reached = 0
        try:
            async with asyncio.timeout(ANSWER_MS / 1000):
                await producer.start()
            due_s = time.monotonic()
            async with aclosing(contents(self._settings, fit)) as lying:
                async for chunk in _chunks(lying, size):
                    if await _is_set(stop, due_s - time.monotonic()):
                        done.stopped = True
                        break
                    async with asyncio.timeout(CHUNK_S):
                        await self._send(producer, chunk, done)
                    on_progress(done.sent)
                    due_s += len(chunk) / self._rate if self._rate else 0
                    reached += len(chunk)
                else:
                    done.gone = len(fit) - reached
        except NO_ANSWER as silence:
            raise BrokerUnavailable(
                f"the broker at {self._settings.broker} does not answer; {done.sent} letters were sent back before"
            ) from silence
        finally:
            await stop_producer(producer)
        return done

    async def _send(
        self, producer: AIOKafkaProducer, chunk: Sequence[tuple[DeadLetter, ConsumerRecord]], done: Redriven
    ) -> None:
        """Send a chunk of letters back, wait until the broker has them, record them, and wait for that."""
        sent = []
        for letter, record in chunk:
            try:
                back = self._back(letter, record)
                if back.partition not in await producer.partitions_for(back.topic):
                    done.refused[letter.place] = f"{back.topic} has no partition {back.partition}"
                    continue
                sending = await producer.send(
                    back.topic, back.value, back.key, partition=back.partition, headers=back.headers
                )
                sent.append((record, back, sending))
            except (UndecodableRecord, kafka.MessageSizeTooLargeError) as refusal:
                done.refused[letter.place] = str(refusal)
        recording = []
        for record, back, sending in sent:
            try:
                await sending
            except NO_ANSWER:
                raise
            except kafka.KafkaError as refusal:
                done.refused[Place(record.partition, record.offset)] = f"the broker does not take it: {refusal}"
                continue
            recording.append(
                await producer.send(
                    self._topics.dead.name, self._codec.encode(back.record), record.key, partition=record.partition
                )
            )
        try:
            await asyncio.gather(*recording)
        except NO_ANSWER:
            raise
        except kafka.KafkaError as refusal:
            raise RecordRefused(f"letters were sent back, and that cannot be recorded: {refusal}") from refusal
        done.sent += len(recording)

    def _back(self, letter: DeadLetter, record: ConsumerRecord) -> _Back:
        """What is sent for a letter. Raises UndecodableRecord when its value is not what its stage says."""
        number, value = letter.sent_back + 1, unpacked(record.value, letter.told.get("encoding"))
        redriven = DeadLetterRedriven(offset=letter.place.offset, number=number, by=self._by)
        others = [(name, text) for name, text in record.headers if not name.startswith(PREFIX)]
        if letter.told["stage"] == Stage.DECODE:
            ours = [("cx-redrives", str(number).encode()), ("cx-letter", str(letter.place).encode())]
            key = b"" if record.key is None and value is None else record.key  # aiokafka sends no two Nones
            return _Back(letter.told["topic"], int(letter.told["partition"]), key, value, others + ours, redriven)
        dead = self._codec.decode_as(InjectionAttempt, value or b"").injection
        event = InjectionRedriven(session_id=dead.session_id, injection=dead, number=number)
        redriven = replace(redriven, injection_id=self._new_id(dead.injection_id, number))
        return _Back(
            self._topics.events.name,
            record.partition,
            dead.session_id.encode(),
            self._codec.encode(event),
            trace_of(others),
            redriven,
        )


async def _chunks(items: AsyncIterable[T], size: int) -> AsyncGenerator[list[T]]:
    chunk: list[T] = []
    async for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


async def _is_set(event: asyncio.Event, within_s: float) -> bool:
    """Whether the event is set by then."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), max(0, within_s))
    return event.is_set()
