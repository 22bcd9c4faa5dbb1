"""Following topics as they grow."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from aiokafka import AIOKafkaProducer

from contextengine.errors import BrokerUnavailable, ConfigurationError
from contextengine.schemas.codec import encode
from contextengine.schemas.events import MessageCompleted
from contextengine.schemas.session import STATE_HEADER
from contextengine.settings import load
from contextengine.topics import admin, rulebook
from contextengine.topics.catalogue import catalogue
from contextengine.topics.tail import Seen, follow, topic_named


def said(text: str) -> MessageCompleted:
    return MessageCompleted(session_id="s", producer="p", incarnation=1, seq=0, at_ms=1, speaker="user", text=text)


def seen(value: bytes | None, topic: str = "t.events") -> Seen:
    return Seen(topic, 0, 0, 1, "s", {}, value)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, ("empty", None)),
        (b"rules:", ("text", "rules:")),
        (b"\xff\xfe", ("bytes", "fffe")),
    ],
)
def test_a_value_that_is_no_record_is_told_as_what_it_is(value, told):
    assert seen(value).told() == told


def test_a_record_is_told_with_its_type_and_fields():
    kind, fields = seen(encode(said("hello"))).told()
    assert (kind, fields["text"], fields["seq"]) == ("MessageCompleted", "hello", 0)


def test_a_record_that_cannot_be_decoded_is_told_with_the_reason_and_its_bytes():
    broken = encode(said("hello"))[:-1]
    kind, told = seen(broken).told()
    assert kind.startswith("undecodable (MessageCompleted: ")
    assert bytes.fromhex(told) == broken


def test_a_state_is_told_with_the_version_that_the_table_puts_before_it():
    told = seen(STATE_HEADER.pack(7, 2) + b'{"session_id": "s"}', "t-worker-sessions-changelog").told()
    assert told == ("state", {"applied": 7, "generation": 2, "session_id": "s"})


@pytest.mark.parametrize("name", ["retry_1s", "injections.retry.1s", "x.injections.retry.1s"])
def test_a_topic_may_be_called_by_its_short_name_its_long_one_or_in_full(name):
    assert topic_named(load(environ={}, prefix="x"), name) == "x.injections.retry.1s"


def test_a_topic_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(ConfigurationError, match="there are events, rules"):
        topic_named(load(environ={}), "evnts")


@pytest.mark.broker
async def test_from_the_start_to_the_end_shows_what_is_there_and_stops(settings):
    await admin.apply(settings, "log")
    for number in range(3):
        await rulebook.append(settings, f"key-{number}", b"x")
    async with aclosing(follow(settings, [catalogue(settings).rules.name], to_end=True)) as records:
        assert [record.key async for record in records] == ["log-id", "key-0", "key-1", "key-2"]


@pytest.mark.broker
async def test_a_header_without_a_value_is_shown_as_empty(settings):
    """Kafka allows it, and a dead letter carries the headers of what it buries."""
    await admin.apply(settings, "log-1")
    events = catalogue(settings).events.name
    async with AIOKafkaProducer(**settings.kafka_client()) as producer:
        await producer.send_and_wait(events, b"x", headers=[("app", None)])
    async with aclosing(follow(settings, [events], to_end=True)) as records:
        assert [record.headers async for record in records] == [{"app": ""}]


async def test_from_now_on_shows_what_comes_and_nothing_that_was_there(settings):
    await admin.apply(settings, "log")
    await rulebook.append(settings, "before", b"x")
    async with aclosing(follow(settings, [catalogue(settings).rules.name], from_start=False)) as records:
        coming = asyncio.ensure_future(anext(records))
        await asyncio.sleep(1.5)
        await rulebook.append(settings, "after", b"x")
        assert (await asyncio.wait_for(coming, 10)).key == "after"


@pytest.mark.broker
async def test_topics_that_are_not_there_and_brokers_that_do_not_answer_are_errors(settings):
    with pytest.raises(ConfigurationError, match="there is no topic"):
        await anext(follow(settings, [catalogue(settings).events.name]))
    with pytest.raises(BrokerUnavailable):
        await anext(follow(load(environ={}, broker="127.0.0.1:1"), ["t"]))
