"""The conversations of a recording, held once more at a broker."""

from __future__ import annotations

import time

import pytest
from broker_log import read_raw
from recorded import call_under, recorded

from contextengine.errors import ConfigurationError
from contextengine.replay.publishing import publish
from contextengine.schemas.codec import decode
from contextengine.schemas.events import ConversationEvent, SessionStarted, TurnStarted
from contextengine.topics import admin
from contextengine.topics.catalogue import catalogue, partition_for

RULES = "rules: [{name: greet, when: {keyword: hello}, inject: {information: {name: Ada}}}]"


@pytest.fixture
def recording():
    call = call_under(RULES, session_id="s")
    call.says("hello")
    call.advance_ms(2_000)
    call.says("bye")
    call.ends()
    return recorded(call, RULES)


def conversation(recording):
    return [of.event for of in recording.records if isinstance(of.event, ConversationEvent)]


async def published(settings):
    records = await read_raw(settings, catalogue(settings).events)
    assert all(partition_for(record.key, settings.partitions) == record.partition for record in records)
    return [decode(record.value) for record in records]


async def test_only_what_happened_in_the_conversation_is_published_in_order_and_under_another_name(settings, recording):
    await admin.apply(settings, "log")
    done = await publish([recording], settings, speed=0, prefix="again-")
    found, wanted = await published(settings), conversation(recording)
    assert (done.events, done.sessions, done.headless) == (len(wanted), {"again-s"}, set())
    assert {event.session_id for event in found} == {"again-s"}
    assert [(type(event), event.position) for event in found] == [(type(event), event.position) for event in wanted]
    assert [event.at_ms for event in found] == [event.at_ms for event in wanted]


async def test_ten_times_as_fast_it_takes_a_tenth_of_the_time_and_says_so(settings, recording):
    await admin.apply(settings, "log")
    began = time.monotonic()
    await publish([recording], settings, speed=10)
    took_s = time.monotonic() - began
    found, wanted = await published(settings), conversation(recording)
    length_ms = wanted[-1].at_ms - wanted[0].at_ms
    assert length_ms / 10_000 <= took_s < length_ms / 1_000
    assert next(event.time_scale for event in found if isinstance(event, SessionStarted)) == 10
    assert found[-1].at_ms - found[0].at_ms == length_ms // 10
    assert all(event.known_ms == event.at_ms for event in found if isinstance(event, TurnStarted))


async def test_a_session_without_its_start_is_named(settings, recording):
    await admin.apply(settings, "log")
    del recording.records[0]
    assert (await publish([recording], settings, speed=0)).headless == {"s"}


async def test_where_nothing_was_said_nothing_is_published(settings, recording):
    await admin.apply(settings, "log")
    recording.records = [of for of in recording.records if not isinstance(of.event, ConversationEvent)]
    with pytest.raises(ConfigurationError, match="nothing of a conversation"):
        await publish([recording], settings)
