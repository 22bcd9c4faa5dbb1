"""A publisher never makes its caller wait, keeps order, and counts what it drops."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
from broker_log import read, read_raw, until
from hypothesis import given
from hypothesis import strategies as st

from contextengine.broker import EmbeddedBroker, free_port
from contextengine.schemas.events import (
    ASSISTANT,
    USER,
    AudioChunkReceived,
    ConversationEvent,
    MessageCompleted,
    SessionEnded,
    SessionStarted,
    SilenceDetected,
)
from contextengine.settings import load
from contextengine.topics import admin
from contextengine.topics.catalogue import EVENT_BYTES, catalogue, partition_for
from contextengine.topics.publisher import Dropped, Publisher, fold


@pytest.fixture
def nobody():
    """Settings with an address at which no broker answers."""
    return load(environ={}, broker=f"127.0.0.1:{free_port(0)}", embedded=True)


class Kept(Publisher):
    """A publisher that keeps what it takes, to be looked at without a broker."""

    def __init__(self, settings, **given):
        super().__init__(settings, **given)
        self.taken = []

    def _take(self, event, _headers):
        self.taken.append(event)


async def test_publishing_returns_at_once_and_drops_are_counted_while_no_broker_answers(nobody):
    async with Publisher(nobody, buffer_records=500, close_ms=50) as publisher:
        call = publisher.session("s1")
        slowest_s = 0.0
        for number in range(2_000):
            started_s = time.perf_counter()
            call.publish(MessageCompleted, speaker=USER, text=f"message {number}")
            slowest_s = max(slowest_s, time.perf_counter() - started_s)
        assert publisher.buffered == 500
        assert publisher.dropped == {Dropped.BUFFER_FULL: 1_500}
        assert slowest_s < 0.05
    assert publisher.dropped == {Dropped.BUFFER_FULL: 1_500, Dropped.CLOSED: 500}
    call.publish(SessionEnded)
    assert publisher.dropped[Dropped.CLOSED] == 501


async def test_audio_is_dropped_first(nobody):
    publisher = Publisher(nobody, buffer_records=100, audio_window_ms=0)
    call = publisher.session("s1")
    for number in range(100):
        call.publish(AudioChunkReceived, speaker=USER, duration_ms=20, at_ms=1_000 + 20 * number)
    call.close_audio()
    assert (publisher.buffered, publisher.dropped) == (50, {Dropped.BUFFER_FULL: 50})
    for _ in range(50):
        call.publish(MessageCompleted, speaker=USER, text="hello")
    assert (publisher.buffered, publisher.dropped) == (100, {Dropped.BUFFER_FULL: 50})


async def test_the_buffer_is_bounded_in_bytes_too(nobody):
    publisher = Publisher(nobody, buffer_bytes=10_000)
    for _ in range(20):
        publisher.session("s1").publish(MessageCompleted, speaker=USER, text="x" * 1_000)
    assert publisher.buffered == 9
    assert publisher.dropped == {Dropped.BUFFER_FULL: 11}


async def test_an_event_that_is_too_large_is_dropped_and_named(nobody, caplog):
    publisher = Publisher(nobody)
    call = publisher.session("s1")
    call.publish(MessageCompleted, speaker=USER, text="x" * EVENT_BYTES)
    assert publisher.dropped == {Dropped.TOO_LARGE: 1}
    assert "drops MessageCompleted (too_large" in caplog.text
    call.publish(MessageCompleted, speaker=USER, text="x" * (EVENT_BYTES - 1_000))
    assert publisher.buffered == 1


async def test_a_value_of_the_wrong_type_never_reaches_the_conversation(nobody):
    publisher = Publisher(nobody)
    call = publisher.session("s1")
    call.publish(MessageCompleted, speaker=USER, text=None)
    call.publish(AudioChunkReceived, speaker=USER, duration_ms=None)
    call.publish(AudioChunkReceived, speaker=USER, duration_ms=20)
    call.close_audio()
    assert publisher.dropped == {Dropped.UNENCODABLE: 2}
    assert publisher.buffered == 1


async def test_a_field_that_the_event_does_not_have_is_an_error_at_the_call(nobody):
    with pytest.raises(TypeError, match="words"):
        Publisher(nobody).session("s1").publish(MessageCompleted, speaker=USER, words="hello")


async def test_a_session_counts_its_events_and_its_end_makes_room_for_a_new_incarnation(nobody):
    publisher = Kept(nobody, name="voice")
    call = publisher.session("s1")
    assert publisher.session("s1") is call
    call.publish(SessionStarted, provider="p", model="m")
    publisher.session("s2").publish(SilenceDetected, known_ms=5, at_ms=1)
    call.publish(SessionEnded)
    await asyncio.sleep(0.002)
    publisher.session("s1").publish(SilenceDetected, known_ms=5)
    assert [(event.session_id, event.producer, event.seq) for event in publisher.taken] == [
        ("s1", "voice", 0),
        ("s2", "voice", 0),
        ("s1", "voice", 1),
        ("s1", "voice", 0),
    ]
    assert publisher.taken[3].incarnation > publisher.taken[0].incarnation
    assert publisher.taken[1].at_ms == 1


async def test_open_audio_is_published_when_its_window_is_over_although_nothing_follows(nobody):
    publisher = Kept(nobody, audio_window_ms=30)
    for number in range(3):
        publisher.session("s1").publish(AudioChunkReceived, speaker=USER, duration_ms=10, at_ms=10 * number)
    assert publisher.taken == []
    await asyncio.sleep(0.06)
    (chunk,) = publisher.taken
    assert (chunk.chunks, chunk.duration_ms, chunk.seq) == (3, 30, 0)


chunks = st.builds(
    dict,
    event=st.just(AudioChunkReceived),
    speaker=st.sampled_from([USER, ASSISTANT]),
    duration_ms=st.integers(0, 60),
    energy=st.floats(0, 1),
    step_ms=st.integers(0, 120),
)
messages = st.builds(dict, event=st.just(MessageCompleted), speaker=st.just(USER), text=st.text(), step_ms=st.just(10))


@given(st.lists(st.one_of(chunks, messages), max_size=40))
def test_folded_audio_keeps_its_figures_its_window_and_its_place_among_the_other_events(conversation):
    """Whatever is published: nothing of the audio's sums is lost, no record spans a window, and order holds."""

    async def publish():
        publisher = Kept(load(environ={}), audio_window_ms=200)
        call = publisher.session("s1")
        at_ms = 0
        for spoken in conversation:
            fields = dict(spoken)
            at_ms += fields.pop("step_ms")
            call.publish(fields.pop("event"), at_ms=at_ms, **fields)
        call.close_audio()
        return publisher.taken

    taken = asyncio.run(publish())
    assert [event.seq for event in taken] == list(range(len(taken)))
    for speaker in (USER, ASSISTANT):
        said = [
            spoken for spoken in conversation if spoken["event"] is AudioChunkReceived and spoken["speaker"] == speaker
        ]
        kept = [event for event in taken if isinstance(event, AudioChunkReceived) and event.speaker == speaker]
        assert sum(event.chunks for event in kept) == len(said)
        assert sum(event.duration_ms for event in kept) == sum(spoken["duration_ms"] for spoken in said)
        assert sum(event.energy * event.duration_ms for event in kept) == pytest.approx(
            sum(spoken["energy"] * spoken["duration_ms"] for spoken in said)
        )
    # Between two messages stands exactly the audio that was published between them.
    assert between_messages(taken, lambda event: event.chunks) == between_messages(
        [MessageCompleted if spoken["event"] is MessageCompleted else 1 for spoken in conversation], lambda chunk: chunk
    )


def between_messages(events, count):
    """How many chunks stand before, between and after the messages."""
    counts = [0]
    for event in events:
        if event is MessageCompleted or isinstance(event, MessageCompleted):
            counts.append(0)
        else:
            counts[-1] += count(event)
    return counts


def test_the_energy_of_two_chunks_is_their_mean_over_time():
    common = {"session_id": "s1", "producer": "v", "incarnation": 1, "seq": 0, "speaker": USER}
    first = AudioChunkReceived(**common, at_ms=0, duration_ms=30, energy=0.9, reference="a")
    second = AudioChunkReceived(**common, at_ms=30, duration_ms=10, energy=0.1, chunks=2, reference="b")
    folded = fold(first, second)
    assert (folded.duration_ms, folded.chunks, folded.at_ms, folded.reference) == (40, 3, 0, "a")
    assert folded.energy == pytest.approx(0.7)


@pytest.mark.broker
async def test_events_arrive_in_order_in_their_sessions_partition_with_their_headers(settings):
    await admin.apply(settings, "log-1")
    async with Publisher(settings) as publisher:
        for number in range(100):
            for session_id in ("s1", "s2", "s3"):
                publisher.session(session_id).publish(
                    MessageCompleted, speaker=USER, text=str(number), headers=[("traceparent", b"00-1")]
                )
        assert await publisher.flush() == 0
        assert publisher.buffered == 0
    found = await read_raw(settings, catalogue(settings).events)
    assert {record.partition for record in found if record.key == b"s1"} == {partition_for(b"s1", 4)}
    assert {record.headers for record in found} == {(("traceparent", b"00-1"),)}
    events = await read(settings, catalogue(settings).events)
    for session_id in ("s1", "s2", "s3"):
        told = [(event.seq, event.text) for event in events if event.session_id == session_id]
        assert told == [(number, str(number)) for number in range(100)]


@pytest.mark.broker
async def test_a_publisher_that_is_older_than_its_broker_delivers_what_it_buffered():
    port = free_port(0)
    settings = load(environ={}, broker=f"127.0.0.1:{port}", embedded=True)
    async with Publisher(settings) as publisher:
        call = publisher.session("s1")
        call.publish(MessageCompleted, speaker=USER, text="before")
        await asyncio.sleep(0.3)
        assert publisher.buffered == 1
        with EmbeddedBroker(port):
            await admin.apply(settings, "log-1")
            await until(lambda: publisher.buffered == 0)
            call.publish(MessageCompleted, speaker=USER, text="after")
            assert await publisher.flush() == 0
            assert [event.text for event in await read(settings, catalogue(settings).events)] == ["before", "after"]


@pytest.mark.broker
async def test_a_broker_that_hangs_for_longer_than_a_request_costs_no_order(monkeypatch):
    """Batches time out and are repeated: copies may arrive, recognisable by their seq, but nothing out of order."""
    monkeypatch.setattr("contextengine.topics.publisher.REQUEST_MS", 500)
    with EmbeddedBroker() as broker:
        settings = load(environ={}, broker=broker.bootstrap, embedded=True)
        await admin.apply(settings, "log-1")
        async with Publisher(settings) as publisher:
            call = publisher.session("s1")
            call.publish(MessageCompleted, speaker=USER, text="0")
            assert await publisher.flush() == 0
            os.killpg(broker._process.pid, signal.SIGSTOP)
            for number in range(1, 50):
                call.publish(MessageCompleted, speaker=USER, text=str(number))
                await asyncio.sleep(0.03)
            assert publisher.buffered == 49
            os.killpg(broker._process.pid, signal.SIGCONT)
            await until(lambda: publisher.buffered == 0)
        events = await read(settings, catalogue(settings).events)
    first_seen = list(dict.fromkeys(event.seq for event in events))
    assert first_seen == list(range(50))
    assert not publisher.dropped


def test_every_event_of_a_conversation_can_be_published():
    """Whatever the record types are, their common fields are those that a session fills in."""
    assert set(ConversationEvent.__struct_fields__) == {
        *("session_id", "producer", "incarnation", "seq", "at_ms", "channel")
    }
