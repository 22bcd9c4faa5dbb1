"""A conversation's events to the broker, without ever making the conversation wait.

`publish` is called where audio is handled: it returns at once, whatever the broker does. An event waits in a bounded
buffer until a task of the publisher has sent it; what does not fit, or cannot be sent, is dropped and counted.

- A session's events reach the broker in the order in which they were published. One that is repeated because its
  acknowledgement was lost is recognised by its producer, incarnation and seq; one that was dropped leaves a gap in seq.
- Audio is dropped first: it may fill half of the buffer only.
- Neighbouring audio chunks become one event; any other event of the session sends the open one ahead of itself.
- While the broker is away the buffer fills. When it is back, the publisher goes on by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka

from contextengine.errors import TopicMismatch
from contextengine.schemas.codec import SINGLE_OBJECT
from contextengine.schemas.events import AudioChunkReceived, ConversationEvent, SessionEnded
from contextengine.topics.catalogue import EVENT_BYTES, HEADERS_BYTES, KEY_BYTES, catalogue, partition_for
from contextengine.topics.errand import REFUSES_THE_RECORD
from contextengine.topics.patience import be_patient
from contextengine.topics.registry import codec_of
from contextengine.topics.rulebook import must_exist

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from contextengine.settings import Settings

log = logging.getLogger(__name__)

BUFFER_RECORDS: Final = 10_000
BUFFER_BYTES: Final = 64 * 1024 * 1024
AUDIO_WINDOW_MS: Final = 200
BATCH_BYTES: Final = 128 * 1024
"""Far below what the events topic takes; a larger event travels alone."""
REQUEST_MS: Final = 10_000
RECONNECT_S: Final = 1.0
REPEAT_S: Final = 0.1
CLOSE_MS: Final = 5_000
COMPLAIN_EVERY_S: Final = 1.0


class Dropped(StrEnum):
    """Why an event was not sent."""

    BUFFER_FULL = "buffer_full"
    TOO_LARGE = "too_large"
    UNENCODABLE = "unencodable"
    REFUSED = "refused"
    CLOSED = "closed"


class _Record(NamedTuple):
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]
    audio: bool


class _Lane:
    """The records of one partition: at most one batch of them is on its way, so a repetition overtakes nothing."""

    __slots__ = ("arrived", "settled", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[_Record] = deque()
        self.arrived = asyncio.Event()
        self.settled = 0

    @property
    def taken(self) -> int:
        """How many records were ever put here."""
        return self.settled + len(self.waiting)


class Publisher:
    """Sends the events of conversations; enter it with `async with`, and leave it to have everything sent.

    `name` tells this producer from another that publishes about the same sessions. `incarnation` tells a restarted
    producer from the old one; by default it is the time at which a session is first published about.
    """

    def __init__(
        self,
        settings: Settings,
        name: str = "voice",
        *,
        incarnation: int | None = None,
        buffer_records: int = BUFFER_RECORDS,
        buffer_bytes: int = BUFFER_BYTES,
        audio_window_ms: int = AUDIO_WINDOW_MS,
        close_ms: int = CLOSE_MS,
    ) -> None:
        self.name = name
        self.dropped: Counter[Dropped] = Counter()
        self.buffer_records, self.buffer_bytes = buffer_records, buffer_bytes
        self.audio_window_ms = audio_window_ms
        self._settings = settings
        self._topic = catalogue(settings).events
        self._codec = SINGLE_OBJECT
        self._incarnation = incarnation
        self._close_ms = close_ms
        self._lanes = [_Lane() for _ in range(settings.partitions)]
        self._sessions: dict[str, PublishedSession] = {}
        self._records = self._audio_records = self._bytes = 0
        self._progress = asyncio.Event()
        self._shipping: asyncio.Task[None] | None = None
        self._closed = False
        self._complained_s = -COMPLAIN_EVERY_S

    async def __aenter__(self) -> Self:
        self._codec = await asyncio.to_thread(codec_of, self._settings)
        self._shipping = asyncio.create_task(self._ship(), name=f"publisher {self.name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.flush(within_ms=self._close_ms)
        self._closed = True
        if self._shipping is not None:
            self._shipping.cancel()
            await asyncio.wait([self._shipping])
        if self._records:
            self.dropped[Dropped.CLOSED] += self._records
            log.error(
                "publisher %s: %d events were not acknowledged in %d ms", self.name, self._records, self._close_ms
            )

    @property
    def buffered(self) -> int:
        """How many events wait for their acknowledgement; open audio is not among them."""
        return self._records

    def session(self, session_id: str) -> PublishedSession:
        """Where to publish the events of one session: the same object for each call, until its end was published."""
        session = self._sessions.get(session_id)
        if session is None:
            incarnation = time.time_ns() // 1_000_000 if self._incarnation is None else self._incarnation
            session = self._sessions[session_id] = PublishedSession(self, session_id, incarnation)
        return session

    async def flush(self, within_ms: int = CLOSE_MS) -> int:
        """Wait until what was published so far is acknowledged. Returns how many events still are not, 0 if all are."""
        for session in list(self._sessions.values()):
            session.close_audio()
        targets = [lane.taken for lane in self._lanes]
        deadline_s = time.monotonic() + within_ms / 1000
        while True:
            missing = sum(max(0, target - lane.settled) for target, lane in zip(targets, self._lanes, strict=True))
            remaining_s = deadline_s - time.monotonic()
            if not missing or remaining_s <= 0:
                return missing
            self._progress.clear()
            try:
                await asyncio.wait_for(self._progress.wait(), remaining_s)
            except TimeoutError:
                continue

    def _take(self, event: ConversationEvent, headers: Sequence[tuple[str, bytes]]) -> None:
        """Put `event` into the buffer, or drop it. Never raises, never waits."""
        try:
            key, value = event.session_id.encode(), self._codec.encode(event)
        except Exception as error:  # noqa: BLE001  whatever is wrong with a field must not reach the conversation
            self._drop(event, Dropped.UNENCODABLE, repr(error))
            return
        audio = isinstance(event, AudioChunkReceived)
        if self._closed:
            self._drop(event, Dropped.CLOSED, "the publisher was left")
        elif len(value) > EVENT_BYTES or len(key) > KEY_BYTES or _size(headers) > HEADERS_BYTES:
            self._drop(event, Dropped.TOO_LARGE, f"{len(value)} bytes, {len(key)} of key, {_size(headers)} of headers")
        elif (
            self._records >= self.buffer_records
            or self._bytes + len(value) > self.buffer_bytes
            or (audio and self._audio_records >= self.buffer_records // 2)
        ):
            self._drop(event, Dropped.BUFFER_FULL, f"{self._records} events wait for the broker")
        else:
            lane = self._lanes[partition_for(key, len(self._lanes))]
            lane.waiting.append(_Record(key, value, list(headers), audio))
            lane.arrived.set()
            self._records += 1
            self._audio_records += audio
            self._bytes += len(value)

    def _drop(self, event: ConversationEvent, reason: Dropped, detail: str) -> None:
        self.dropped[reason] += 1
        if (now_s := time.monotonic()) >= self._complained_s + COMPLAIN_EVERY_S:
            self._complained_s = now_s
            log.warning(
                "publisher %s drops %s (%s: %s); dropped so far: %s",
                *(self.name, type(event).__name__, reason, detail, dict(self.dropped)),
            )

    def _ended(self, session: PublishedSession) -> None:
        if self._sessions.get(session.session_id) is session:
            del self._sessions[session.session_id]

    async def _ship(self) -> None:
        while True:
            try:
                await self._ship_while_connected()
            except* Exception as failed:  # noqa: BLE001  if it died of something, all that follows would be lost
                reason = "; ".join(str(error) or repr(error) for error in failed.exceptions)
                log.warning("publisher %s: %d events wait for the broker: %s", self.name, self._records, reason)
            await asyncio.sleep(RECONNECT_S)

    async def _ship_while_connected(self) -> None:
        producer = AIOKafkaProducer(
            **self._settings.kafka_producer(), request_timeout_ms=REQUEST_MS, max_batch_size=BATCH_BYTES
        )
        be_patient(producer)
        try:
            await producer.start()
            await must_exist(self._topic.name, producer.client)
            found = len(await producer.partitions_for(self._topic.name))
            if found != len(self._lanes):
                raise TopicMismatch(self._topic.name, "partitions", found, len(self._lanes))
            async with asyncio.TaskGroup() as lanes:
                for partition in range(found):
                    lanes.create_task(self._ship_lane(producer, partition))
        finally:
            await stop(producer)

    async def _ship_lane(self, producer: AIOKafkaProducer, partition: int) -> None:
        lane = self._lanes[partition]
        while True:
            while not lane.waiting:
                lane.arrived.clear()
                await lane.arrived.wait()
            batch = producer.create_batch()
            count = 0
            for record in lane.waiting:
                if batch.append(timestamp=None, key=record.key, value=record.value, headers=record.headers) is None:
                    break
                count += 1
            batch.close()
            try:
                await (await producer.send_batch(batch, self._topic.name, partition=partition))
            except REFUSES_THE_RECORD as refusal:
                self.dropped[Dropped.REFUSED] += count
                log.error("publisher %s: the broker refuses %d events: %r", self.name, count, refusal)  # noqa: TRY400
            except kafka.KafkaError as failure:
                if not (failure.retriable or isinstance(failure, kafka.KafkaTimeoutError)):
                    raise
                log.warning("publisher %s, partition %d: repeats %d events: %r", self.name, partition, count, failure)
                await asyncio.sleep(REPEAT_S)
                continue
            self._settle(lane, count)

    def _settle(self, lane: _Lane, count: int) -> None:
        for _ in range(count):
            record = lane.waiting.popleft()
            self._audio_records -= record.audio
            self._bytes -= len(record.value)
        lane.settled += count
        self._records -= count
        self._progress.set()


class PublishedSession:
    """One session, as its publisher sees it: it counts the events, and holds the open audio."""

    def __init__(self, publisher: Publisher, session_id: str, incarnation: int) -> None:
        self.session_id, self.incarnation = session_id, incarnation
        self.next_seq = 0
        self._publisher = publisher
        self._audio: dict[tuple[str, str], AudioChunkReceived] = {}
        self._timer: asyncio.TimerHandle | None = None

    def publish(
        self,
        event: type[ConversationEvent],
        /,
        *,
        at_ms: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        **fields: Any,
    ) -> None:
        """Publish an event with these fields; returns at once, and says nothing about whether it will arrive.

        To be called in the thread of the publisher's event loop; elsewhere through `loop.call_soon_threadsafe`.
        `at_ms` is when it happened (Unix milliseconds), by default now. `headers` travel with the record
        (`traceparent`). TypeError for a field that the event does not have, or lacks.
        """
        record = event(
            session_id=self.session_id,
            producer=self._publisher.name,
            incarnation=self.incarnation,
            seq=self.next_seq,
            at_ms=time.time_ns() // 1_000_000 if at_ms is None else at_ms,
            **fields,
        )
        if isinstance(record, AudioChunkReceived) and not headers:
            self._add_audio(record)
            return
        self.close_audio()
        self._send(record, headers)
        if event is SessionEnded:
            self._publisher._ended(self)  # noqa: SLF001  the two classes are one thing

    def close_audio(self) -> None:
        """Publish the open audio, oldest first."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        chunks, self._audio = self._audio, {}
        for chunk in chunks.values():
            self._send(chunk, ())

    def _add_audio(self, chunk: AudioChunkReceived) -> None:
        stream = (chunk.speaker, chunk.channel)
        opened = self._audio.get(stream)
        try:
            if opened is not None and not 0 <= chunk.at_ms - opened.at_ms < self._publisher.audio_window_ms:
                self.close_audio()
                opened = None
            self._audio[stream] = chunk if opened is None else fold(opened, chunk)
        except TypeError:  # a figure is no number; encoding it says so
            self._send(chunk, ())
            return
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._publisher.audio_window_ms / 1000, self.close_audio)

    def _send(self, record: ConversationEvent, headers: Sequence[tuple[str, bytes]]) -> None:
        if record.seq != self.next_seq:  # audio gets its number when it is closed, not when it was opened
            record = msgspec.structs.replace(record, seq=self.next_seq)
        self.next_seq += 1
        self._publisher._take(record, headers)  # noqa: SLF001


def fold(first: AudioChunkReceived, second: AudioChunkReceived) -> AudioChunkReceived:
    """Two neighbouring chunks of a stream as one: durations and counts add up, energy is their mean over time.

    The reference is the first one's: with the duration it says which audio is meant.
    """
    duration_ms = first.duration_ms + second.duration_ms
    energy = first.energy * first.duration_ms + second.energy * second.duration_ms
    return msgspec.structs.replace(
        first,
        duration_ms=duration_ms,
        energy=energy / duration_ms if duration_ms else first.energy,
        chunks=first.chunks + second.chunks,
    )


async def stop(producer: AIOKafkaProducer, within_s: float = 1.0) -> None:
    """Stop a producer, even when its broker is away: its own `stop` waits for acknowledgements that do not come."""
    stopping = asyncio.ensure_future(producer.stop())
    await asyncio.wait([stopping], timeout=within_s)
    if not stopping.done():
        # First what is on its way fails and is put back, then nothing is sent any more, then all of it is given up.
        await producer.client.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(producer._sender.close(), within_s)  # noqa: SLF001
        waiting = producer._message_accumulator  # noqa: SLF001
        waiting._pending_batches.update(*waiting._batches.values())  # noqa: SLF001  where a batch that ends is looked for
        for batch in waiting._pending_batches:  # noqa: SLF001
            batch.failure(kafka.KafkaConnectionError("the producer was stopped"))
            for future in (batch.future, batch._drain_waiter):  # noqa: SLF001
                if not future.cancelled():
                    future.exception()  # perhaps nobody else asks for it
    await stopping


def _size(headers: Sequence[tuple[str, bytes]]) -> int:
    return sum(len(name) + len(value) for name, value in headers)
