from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import errors as kafka
from kept_log import Log

from contextengine.agents import outbox as module
from contextengine.agents.outbox import Outbox, acknowledged
from contextengine.errors import BrokerUnavailable, RecordRefused


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def outbox(log: Log) -> Outbox:
    app: Any = SimpleNamespace(producer=SimpleNamespace(_producer=log))
    return Outbox(app, {"small": 1_000})


async def test_outputs_go_out_in_one_batch_for_each_topic_and_partition(outbox, log):
    for number in range(100):
        outbox.add("injections", 2, b"k", b"%d" % number)
    outbox.add("dead", 2, None, b"bytes")
    await outbox.send(2)
    assert log.batches == [("injections", 2, 100), ("dead", 2, 1)]
    assert [record.value for record in log.records["injections", 2]] == [b"%d" % number for number in range(100)]


async def test_a_batch_keeps_headers_missing_keys_and_missing_values(outbox, log):
    outbox.add("dead", 0, None, None, [("cx-error-stage", b"decode"), ("traceparent", b"00-1-2-01")])
    outbox.add("dead", 0, b"", b"")
    await outbox.send(0)
    first, second = log.records["dead", 0]
    assert (first.key, first.value) == (None, None)
    assert first.headers == (("cx-error-stage", b"decode"), ("traceparent", b"00-1-2-01"))
    assert (second.key, second.value, second.headers) == (b"", b"", ())


async def test_what_a_flush_takes_belongs_to_the_partition_that_caused_it(outbox, log):
    outbox.add("events", 5, b"k", b"tick", caused_by=1)
    outbox.add("events", 1, b"k", b"tick")
    await outbox.send(5)
    assert log.batches == []
    await outbox.send(1)
    assert sorted(log.batches) == [("events", 1, 1), ("events", 5, 1)]
    assert outbox.take(5) == []
    sent = outbox.take(1)
    assert [(output.partition, output.records) for output in sent] == [(5, 1), (1, 1)]
    outbox.put_back(1, sent)
    assert outbox.take(1) == sent


async def test_outputs_are_due_when_they_are_many_or_have_waited(outbox, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    assert not outbox.is_due(0)
    outbox.add("injections", 0, b"k", b"v")
    assert not outbox.is_due(0)
    now[0] = 0.005
    assert outbox.is_due(0)
    await outbox.send(0)
    assert not outbox.is_due(0)
    for _ in range(256):
        outbox.add("injections", 0, b"k", b"v")
    assert outbox.is_due(0)
    assert not outbox.is_due(1)


async def test_a_record_that_is_too_large_for_its_topic_is_an_error_that_names_it(outbox, log):
    outbox.add("small", 3, b"fits", b"x" * 900)
    outbox.add("other", 3, b"fits", b"x" * 900_000)
    with pytest.raises(RecordRefused, match="small partition 3: a record with key b'large'"):
        outbox.add("small", 3, b"large", b"x" * 1_001)
    await outbox.send(3)
    assert [len(record.value) for record in log.records["other", 3]] == [900_000]


async def test_a_record_larger_than_a_batch_has_a_batch_of_its_own(outbox, log):
    for size in (10, 20_000, 10):
        outbox.add("other", 0, b"k", b"x" * size)
    await outbox.send(0)
    assert [len(record.value) for record in log.records["other", 0]] == [10, 20_000, 10]
    assert [count for _, _, count in log.batches] == [1, 1, 1]


async def test_few_outputs_do_not_wait_until_the_batch_before_them_is_on_its_way(outbox, log, monkeypatch):
    """A batch of our own would; and while one partition waits, nothing of any partition is judged."""
    joined = []

    async def send(topic: str, value: bytes, key: bytes, *, partition: int, headers: list[Any]) -> Any:
        joined.append((topic, partition, key, value, headers))
        return asyncio.get_running_loop().create_future()

    monkeypatch.setattr(log, "send", send)
    outbox.add("injections", 4, b"k", b"v", [("cx-cause", b"1")])
    await outbox.send(4)
    assert joined == [("injections", 4, b"k", b"v", [("cx-cause", b"1")])]
    assert [(sent.topic, sent.records) for sent in outbox.take(4)] == [("injections", 1)]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (kafka.MessageSizeTooLargeError(), RecordRefused),
        (kafka.TopicAuthorizationFailedError(), RecordRefused),
        (kafka.KafkaTimeoutError(), BrokerUnavailable),
        (kafka.OutOfOrderSequenceNumber(), BrokerUnavailable),  # after a refusal, until there is another producer
    ],
)
async def test_an_output_that_the_broker_does_not_take_is_an_error_that_says_where_it_went(outbox, log, answer, error):
    log.hold = True
    outbox.add("injections", 4, b"k", b"v")
    await outbox.send(4)
    log.held[0].set_exception(answer)
    with pytest.raises(error, match="injections partition 4"):
        await acknowledged(outbox.take(4))


async def test_a_closed_outbox_sends_nothing_more(outbox, log):
    """Behind what was dropped the rest would be out of order, and the next owner sends all of it."""
    outbox.add("injections", 4, b"k", b"unsent")
    outbox.close()
    outbox.add("injections", 4, b"k", b"later")
    await outbox.send(4)
    assert outbox.take(4) == log.batches == []


async def test_what_is_forgotten_is_neither_sent_nor_asked_for(outbox, log):
    log.hold = True
    outbox.add("injections", 4, b"k", b"on its way")
    await outbox.send(4)
    outbox.add("injections", 4, b"k", b"unsent")
    outbox.forget(4)
    await outbox.send(4)
    assert outbox.take(4) == []
    log.held[0].set_exception(kafka.KafkaTimeoutError())
    await asyncio.sleep(0)
    assert len(log.batches) == 1
