"""The agent of the events topic, without a broker: what it does with each record of a batch."""

from __future__ import annotations

import gzip
import hashlib
import random
from unittest.mock import AsyncMock, Mock

import msgspec
import pytest
from aiokafka.structs import ConsumerRecord

from contextengine.app import build_app
from contextengine.engine import decide as deciding
from contextengine.errors import LogReplaced, RecordRefused
from contextengine.rulefile import parse_rules, rules_hash
from contextengine.schemas.codec import decode, encode
from contextengine.schemas.context import Context, ContextMetadata
from contextengine.schemas.decision import DecisionMade
from contextengine.schemas.events import InjectionRedriven, MessageCompleted, RulesChanged, SessionStarted, Tick
from contextengine.schemas.injection import FailurePolicy, InjectionAttempt
from contextengine.settings import load
from contextengine.tables.live import PartitionHalted
from contextengine.topics.catalogue import EVENT_BYTES, partition_for
from contextengine.topics.rulebook import LOG_ID, Entry

RULES = "rules: [{name: greet, when: {keyword: hello}, inject: {information: {name: Ada}}}]"
OTHER = "rules: [{name: other, when: {keyword: hello}, inject: {information: {name: Eve}}}]"
KEY = b"s1"


class Desk:
    """An agent whose outputs are kept in a list, and whose rules topic is a dictionary."""

    def __init__(self):
        settings = load(environ={}, broker="127.0.0.1:9", partitions=4)
        self.worker = build_app(settings)
        self.agent = self.worker.agent
        self.number = partition_for(KEY, 4)
        self.sent = []
        self.next_offset = 0
        self.rulebook = {LOG_ID: Entry(0, b"log-1"), rules_hash(RULES): Entry(1, RULES.encode())}
        self.agent._outbox.add = self.keep
        self.worker.rule_sets._read = self.read

    async def read(self):
        return self.rulebook

    def keep(self, topic, partition, key, value, headers=()):
        self.sent.append((topic.removeprefix("contextengine."), partition, key, value, dict(headers)))

    def record(self, value, key=KEY, partition=None, headers=()):
        number = self.number if partition is None else partition
        offset, self.next_offset = self.next_offset, self.next_offset + 1
        size = len(value or b"")
        return ConsumerRecord(
            "contextengine.events", number, offset, 1_000 + offset, 1, key, value, None, len(key or b""), size, headers
        )

    async def judge(self, *records):
        await self.worker.rule_sets.refresh()
        await self.agent.judge(records[0].partition, records)

    def values(self, topic):
        return [decode(value) for to, _, _, value, _ in self.sent if to == topic]

    def dead(self):
        return [(value, headers) for to, _, _, value, headers in self.sent if to == "injections.dead"]


@pytest.fixture
async def desk():
    return Desk()


def event(kind, seq, **fields):
    return encode(kind(session_id="s1", producer="v", incarnation=1, seq=seq, at_ms=1_000, **fields))


def started(seq=0):
    return event(SessionStarted, seq, provider="p", model="m")


def hello(seq):
    return event(MessageCompleted, seq, speaker="user", text="hello")


async def test_a_session_id_that_could_be_a_partitions_own_key_is_a_dead_letter(desk):
    odd = encode(SessionStarted(session_id="\0p", producer="v", incarnation=1, seq=0, at_ms=1, provider="p", model="m"))
    await desk.judge(desk.record(odd, key=b"\0p"))
    [(_, headers)] = desk.dead()
    assert b"begins with a zero byte" in headers["cx-message"]


async def test_a_fired_rule_is_an_attempt_and_an_explanation_in_the_events_own_partition(desk):
    trace = [("traceparent", b"00-1"), ("foreign", b"x")]
    await desk.judge(desk.record(started()), desk.record(hello(1), headers=trace))
    [attempt], [made] = desk.values("injections"), desk.values("decisions")
    assert (type(attempt), type(made)) == (InjectionAttempt, DecisionMade)
    assert {(partition, key) for _, partition, key, _, _ in desk.sent} == {(desk.number, KEY)}
    assert [headers for to, _, _, _, headers in desk.sent if to == "injections"] == [
        {"traceparent": b"00-1", "cx-cause": b"1"}
    ]


@pytest.mark.parametrize(
    ("value", "key", "reason"),
    [
        (b"garbage", KEY, b"no single-object Avro"),
        (b"", KEY, b"starts with nothing"),
        (None, KEY, b"no value"),
        (started()[:-1], KEY, b"SessionStarted"),
        (b"\xc3\x01" + b"x" * EVENT_BYTES, KEY, b"at most 262144 are allowed"),
        (started(), b"s2", b"its key is b's2', its session 's1'"),
        (started(), None, b"its key is None"),
    ],
)
async def test_bad_input_is_a_dead_letter_with_its_bytes_and_the_partition_goes_on(desk, value, key, reason):
    bad = {"key": key, "headers": [("traceparent", b"00-1")]}
    await desk.judge(desk.record(started()), desk.record(value, **bad), desk.record(hello(1)))
    [(bytes_kept, headers)] = desk.dead()
    assert hashlib.sha256(bytes_kept or b"").digest() == hashlib.sha256(value or b"").digest()
    assert reason in headers["cx-message"]
    assert (headers["cx-stage"], headers["cx-offset"], headers["traceparent"]) == (b"decode", b"1", b"00-1")
    assert len(desk.values("injections")) == 1


@pytest.mark.parametrize(("kind", "encoding"), [("folds", b"gzip"), ("does not fold", b"cut")])
async def test_what_is_too_large_for_the_dead_letters_is_kept_folded_or_cut_and_stops_nothing(desk, kind, encoding):
    """It came compressed, so it was small enough for the events topic; a worker that could not bury it would loop."""
    value = b"x" * 2_000_000 if kind == "folds" else random.Random(1).randbytes(2_000_000)  # noqa: S311
    del desk.agent._outbox.add  # the real one, which knows the topics' limits
    await desk.worker.rule_sets.refresh()
    desk.agent._outbox.send = noted = AsyncMock()
    await desk.judge(desk.record(value))
    noted.assert_awaited()
    [(_, kept, told)] = desk.agent._outbox._unsent[desk.number].outputs["contextengine.injections.dead", desk.number]
    headers = dict(told)
    assert headers["cx-encoding"] == encoding
    if encoding == b"gzip":
        assert gzip.decompress(kept) == value
    else:
        assert headers["cx-sha256"].decode() == hashlib.sha256(value).hexdigest()
        assert value.startswith(kept)


async def test_a_header_without_a_value_stops_nothing(desk):
    await desk.judge(desk.record(b"garbage", headers=[("app", None)]))
    [(value, headers)] = desk.dead()
    assert (value, headers["app"]) == (b"garbage", None)


async def test_an_identity_that_no_state_could_hold_is_a_dead_letter(desk):
    long = event(MessageCompleted, 1, speaker="x" * 60_000, text="hello")
    await desk.judge(desk.record(started()), desk.record(long))
    [(_, headers)] = desk.dead()
    assert headers["cx-message"] == b"speaker is longer than 256 characters"


async def test_a_long_message_of_feelings_is_explained_in_a_record_that_fits(desk):
    rules = "rules: [{name: sad, when: {emotion: sadness}, inject: {strategy: {tone: kind}}}]"
    desk.rulebook[rules_hash(rules)] = Entry(9, rules.encode())
    await desk.judge(
        desk.record(started()), desk.record(event(MessageCompleted, 1, speaker="user", text="sad " * 60_000))
    )
    [made] = desk.values("decisions")
    assert len(encode(made)) < 5_000


async def test_a_record_that_no_dead_letter_can_hold_halts_its_partition_and_is_never_dropped(desk):
    del desk.agent._outbox.add
    await desk.worker.rule_sets.refresh()
    desk.agent._outbox.send = AsyncMock()
    other = (desk.number + 1) % 4
    batches = [
        [desk.record(random.Random(1).randbytes(400_000), key=b"k" * 600_000)],  # noqa: S311
        [desk.record(started()), desk.record(hello(1))],
        [desk.record(b"garbage", partition=other)],
    ]

    class Stream:
        async def events(self):
            for records in batches:
                yield Mock(message=Mock(partition=records[0].partition), value=records)

    await desk.agent.run(Stream())
    assert set(desk.agent._outbox._unsent) == {other}
    with pytest.raises(PartitionHalted, match=r"k' has [0-9]+ bytes, allowed are"):
        async with desk.agent.lock(desk.number):
            pass


async def test_an_output_that_cannot_be_encoded_halts_its_partition(desk, monkeypatch):
    monkeypatch.setattr(desk.agent._codec, "encode", Mock(side_effect=ValueError("a number of more than 64 bits")))
    with pytest.raises(RecordRefused, match="InjectionAttempt cannot be encoded: a number of more"):
        await desk.judge(desk.record(started()), desk.record(hello(1)))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"session_id": "s2"}, "an injection of the session 's2', not of 's1'"),
        ({"policy": FailurePolicy(delay_ms=2**62)}, "delay_ms is"),
        ({"context": Context(ContextMetadata(source="r", key="k", created_ms=0, ttl_ms=2**63 - 1))}, "ttl_ms is"),
        ({"context": Context(ContextMetadata("r", "k", 0, 1), {"n": "é" * 16_384})}, "32787 bytes of text, at most"),
    ],
)
async def test_a_redriven_injection_that_never_was_this_sessions_is_a_dead_letter(desk, changed, reason):
    await desk.judge(desk.record(started()), desk.record(hello(1)))
    [attempt] = desk.values("injections")
    injection = msgspec.structs.replace(attempt.injection, **changed)
    await desk.judge(desk.record(encode(InjectionRedriven(session_id="s1", injection=injection, number=1))))
    [(_, headers)] = desk.dead()
    assert reason in headers["cx-message"].decode()


async def test_an_event_in_the_wrong_partition_is_a_dead_letter(desk):
    await desk.judge(desk.record(started(), partition=(desk.number + 1) % 4))
    [(_, headers)] = desk.dead()
    assert headers["cx-message"] == f"session 's1' belongs into partition {desk.number}".encode()


async def test_a_defect_of_the_engine_sends_the_event_to_the_dead_letters_and_the_partition_goes_on(desk, monkeypatch):
    def defective(*_):
        raise ZeroDivisionError("a defect")

    await desk.judge(desk.record(started()))
    with monkeypatch.context() as broken:
        broken.setattr(deciding, "_seal", defective)
        await desk.judge(desk.record(hello(1)))
    [(value, headers)] = desk.dead()
    assert (value, headers["cx-stage"], headers["cx-class"]) == (hello(1), b"decide", b"EngineDefect")
    assert headers["cx-message"] == b"ZeroDivisionError: a defect"
    [attempt] = desk.values("injections")  # the session holds it in flight, so it must have been sent
    assert attempt.injection.injection_id in desk.agent._table.get(desk.number, KEY).held
    await desk.judge(desk.record(hello(2)))
    [made] = desk.values("decisions")
    assert made.suppressed[0].filter == "duplicate"


async def test_feedback_never_begins_a_session(desk):
    await desk.judge(desk.record(encode(Tick(session_id="s1", timer="forget", due_ms=0))))
    assert desk.sent == []
    assert desk.agent._table.get(desk.number, KEY) is None


async def test_records_at_or_below_the_floor_change_nothing(desk):
    first = [desk.record(started()), desk.record(hello(1))]
    await desk.judge(*first)
    sent = list(desk.sent)
    await desk.judge(*first)
    assert desk.sent == sent


async def test_a_partition_is_born_with_the_newest_rules_and_changes_them_at_an_exact_record(desk):
    desk.rulebook[rules_hash(OTHER)] = Entry(2, OTHER.encode())
    await desk.judge(desk.record(started()), desk.record(hello(1)))
    older = encode(RulesChanged(version=1, rules_hash=rules_hash(RULES)))
    newer = encode(RulesChanged(version=3, rules_hash=rules_hash(RULES)))
    await desk.judge(desk.record(older, key=None), desk.record(hello(2)))
    await desk.judge(desk.record(newer, key=None), desk.record(hello(3)))
    assert [attempt.injection.rule for attempt in desk.values("injections")] == ["other", "greet"]
    assert parse_rules(RULES, "rules").rules_hash == desk.agent.partition(desk.number).rules_hash


@pytest.mark.parametrize(
    ("log_id", "start", "end", "told"),
    [
        ("log-2", 0, 9, "its log id is log-2, the state was made from log-1: it was recreated"),
        ("log-1", 0, 1, "it ends at 1, the state has come to 1: it was recreated"),
        ("log-1", 5, 9, "it begins at 5, the state has come to 1: what lies between has outlived its retention"),
    ],
)
async def test_a_log_that_does_not_go_on_from_the_state_stops_the_worker_by_name(desk, log_id, start, end, told):
    await desk.judge(desk.record(started()), desk.record(hello(1)))
    desk.agent.check_log(desk.number, start=2, end=2)
    desk.rulebook[LOG_ID] = Entry(9, log_id.encode())
    await desk.worker.rule_sets.refresh()
    with pytest.raises(LogReplaced) as stopped:
        desk.agent.check_log(desk.number, start=start, end=end)
    assert told in str(stopped.value)
