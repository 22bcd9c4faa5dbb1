"""Batch delivery and the order of a commit, without a broker."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import faust
import pytest
from aiokafka.errors import MessageSizeTooLargeError
from aiokafka.producer.message_accumulator import BatchBuilder
from counting import Counting
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from contextengine.agents import transport
from contextengine.agents.outbox import Sent
from contextengine.agents.owned_partitions import DeliveredBatches
from contextengine.agents.transport import FAUST_SETTINGS, install
from contextengine.errors import BrokerUnavailable, RecordRefused, SettingsInvalid
from contextengine.tables.live import PartitionHalted


def test_importing_starts_nothing():
    """No event loop, no thread, no connection, and no configuration that an app could not change any more."""
    check = (
        "import asyncio, threading, contextengine.agents.transport;"
        "assert threading.active_count() == 1;"
        "assert asyncio.get_event_loop_policy()._local._loop is None"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


@pytest.mark.parametrize(("name", "value"), [("stream_wait_empty", False), ("table_standby_replicas", 1)])
def test_an_app_with_settings_that_would_lose_something_is_refused(name, value):
    app = faust.App("unit", **{**FAUST_SETTINGS, name: value})
    with pytest.raises(SettingsInvalid, match=name):
        install(app)


# Which offset may be committed


def test_nothing_can_be_committed_before_the_first_batch_is_done():
    delivered = DeliveredBatches()
    delivered.deliver(99)
    assert delivered.committable(set()) is None


def test_a_batch_that_is_not_done_holds_up_all_later_ones():
    delivered = DeliveredBatches()
    for last in (99, 199, 299):
        delivered.deliver(last)
    acked = {299, 99}
    assert delivered.committable(acked) == 100
    assert acked == {299}
    acked.add(199)
    assert delivered.committable(acked) == 300
    assert delivered.committable(acked) == 300


@given(st.data())
def test_what_can_be_committed_is_the_end_of_the_unbroken_run_of_done_batches(data):
    """Whatever the sizes of the batches (gaps in the offsets included) and the order in which they are done."""
    ends = sorted(data.draw(st.sets(st.integers(0, 1_000), min_size=1, max_size=20)))
    delivered, acked, done = DeliveredBatches(), set(), set()
    for end in ends:
        delivered.deliver(end)
    for end in data.draw(st.permutations(ends)):
        acked.add(end)
        done.add(end)
        run = [e for number, e in enumerate(ends) if done.issuperset(ends[: number + 1])]
        assert delivered.committable(acked) == (run[-1] + 1 if run else None)
    assert not acked


# The order of a commit


class Acknowledgement:
    """Of outputs; can be awaited again, as a future can."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def __await__(self) -> Iterator[None]:
        self._steps.step("outputs", self._steps.error_of_outputs)
        if self._steps.stalls:
            self._steps.member = False
        yield


class Steps:
    """A consumer that owns partition 0, whose outside is replaced by a list of what was asked of it."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.member = True
        self.stalls = False
        self.fails_at = ""
        self.error_of_outputs: type[Exception] = BrokerUnavailable
        self.error_of_states: type[Exception] = BrokerUnavailable
        counting = Counting("127.0.0.1:1", "unit")
        self.table, self.outbox = counting.table, counting.outbox
        self.consumer: Any = counting.app.consumer
        self.tp = TP(counting.topic.name, 0)
        self.consumer._owned.assign([self.tp])
        self.consumer._commit = self.commit
        self.consumer._thread.is_member = lambda generation: self.member  # noqa: ARG005
        self.consumer.app.consumer_generation_id = 4
        self.consumer.crash = self.crash
        counting.app.producer._producer = self
        self.table.write = self.write  # type: ignore[method-assign]
        self.committed: dict[TP, int] = {}

    def step(self, name: str, error: type[Exception]) -> None:
        """Note it, and fail if it is to fail."""
        self.taken.append(name)
        if name == self.fails_at:
            raise error(name)

    def batch_is_done(self, last_offset: int) -> None:
        """A batch was delivered, has changed a state, has an output, and is acknowledged."""
        self.consumer._owned.deliver(self.tp, last_offset)
        self.consumer._acked_index[self.tp].add(last_offset)
        self.table.put(0, b"k", {}, last_offset)
        self.outbox._sent[0].append(Sent("outputs", 0, 1, Acknowledgement(self)))

    def create_batch(self) -> BatchBuilder:
        """As the producer."""
        return BatchBuilder(2**18, 0)

    async def write(self, snapshot: Any, producer: Any) -> None:  # noqa: ARG002
        """As LiveTable."""
        for step in snapshot.steps:
            self.step(f"states of generation {step.records[0].value[8:12].hex()}", self.error_of_states)

    async def commit(self, offsets: dict[TP, int]) -> bool:
        """As the consumer."""
        self.step("offsets", BrokerUnavailable)
        self.committed.update(offsets)
        return True

    async def crash(self, reason: BaseException) -> None:
        """As a service."""
        self.taken.append(f"crash: {type(reason).__name__}")


@pytest.fixture
async def steps() -> AsyncIterator[Steps]:
    made = Steps()
    yield made
    made.consumer._thread.thread_loop.close()


STATES = "states of generation 00000004"


async def test_outputs_come_before_states_and_states_before_the_offset(steps):
    steps.batch_is_done(99)
    assert await steps.consumer.commit()
    assert steps.taken == ["outputs", STATES, "offsets"]
    assert steps.committed == {steps.tp: 100}


@pytest.mark.parametrize(
    ("fails_at", "taken"),
    [
        ("outputs", ["outputs", "crash: BrokerUnavailable"]),
        (STATES, ["outputs", STATES, "crash: BrokerUnavailable"]),
        ("offsets", ["outputs", STATES, "offsets", "crash: BrokerUnavailable"]),
    ],
)
async def test_a_step_that_fails_is_the_last_one_and_the_worker_stops(steps, fails_at, taken):
    steps.fails_at = fails_at
    steps.batch_is_done(99)
    assert not await steps.consumer.commit()
    assert steps.taken == taken
    assert not await steps.consumer.commit()
    assert steps.taken == taken


async def test_a_partition_of_which_the_broker_refuses_a_record_halts_and_the_others_go_on(steps):
    other, halted = TP(steps.tp.topic, 1), []
    steps.consumer._owned.topics[steps.tp.topic] = replace(
        steps.consumer._owned.topics[steps.tp.topic], on_halted=lambda *told: halted.append(told)
    )
    steps.consumer._owned.assign([steps.tp, other])
    steps.consumer._owned.deliver(other, 49)
    steps.consumer._acked_index[other].add(49)
    steps.fails_at, steps.error_of_outputs = "outputs", RecordRefused
    steps.batch_is_done(99)
    assert await steps.consumer.commit()
    assert (steps.committed, halted) == ({other: 50}, [(0, "outputs")])
    with pytest.raises(PartitionHalted):
        async with steps.table.lock(0):
            pass
    assert steps.consumer._owned.halted == {steps.tp}
    assert not await steps.consumer.commit()
    assert (steps.taken, len(halted)) == (["outputs", "offsets"], 1)
    steps.consumer._owned.assign([steps.tp, other])
    steps.batch_is_done(99)
    steps.fails_at = ""
    assert await steps.consumer.commit()
    assert steps.committed[steps.tp] == 100


async def test_a_partition_whose_states_the_broker_refuses_halts_too(steps):
    steps.fails_at, steps.error_of_states = STATES, MessageSizeTooLargeError
    steps.batch_is_done(99)
    assert not await steps.consumer.commit()
    assert steps.consumer._owned.halted == {steps.tp}
    assert steps.taken == ["outputs", STATES]


async def test_batches_in_hand_of_a_worker_that_stops_are_judged_by_what_it_knows_and_send_nothing(steps):
    """By the state of the last flush they would be decided otherwise than by whoever comes next."""
    steps.fails_at = "outputs"
    steps.batch_is_done(99)
    await steps.consumer.commit()
    assert steps.table.get(0, b"k") == {}
    steps.outbox.add("outputs", 0, b"k", b"v")
    await steps.outbox.send(0)
    assert steps.outbox.take(0) == []


async def test_what_is_not_durable_in_time_stops_the_worker(steps, monkeypatch):
    monkeypatch.setattr(transport, "FLUSH_LIMIT_S", 0.01)
    steps.batch_is_done(99)
    async with steps.table.lock(0):
        assert not await steps.consumer.commit()
    assert steps.taken == ["crash: BrokerUnavailable"]


async def test_a_batch_that_failed_half_way_is_not_committed_and_the_worker_stops(steps):
    steps.batch_is_done(99)
    with pytest.raises(KeyError):
        async with steps.table.lock(0):
            raise KeyError
    assert not await steps.consumer.commit()
    assert steps.taken == ["crash: PartitionClosed"]


async def test_an_agent_that_raises_stops_the_worker_although_faust_would_commit_its_batch(steps):
    steps.batch_is_done(99)
    await steps.consumer.on_task_error(KeyError("agent"))
    assert not await steps.consumer.commit()
    assert steps.taken == ["crash: KeyError"]


async def test_a_worker_that_its_group_may_hold_for_dead_writes_nothing(steps):
    steps.member = False
    steps.batch_is_done(99)
    assert not await steps.consumer.commit()
    assert steps.taken == []
    steps.member = True
    assert await steps.consumer.commit()
    assert steps.taken == ["outputs", STATES, "offsets"]


async def test_a_worker_that_stalls_while_it_waits_for_outputs_writes_no_state_and_keeps_it_for_later(steps):
    steps.batch_is_done(99)
    steps.stalls = True
    assert not await steps.consumer.commit()
    assert steps.taken == ["outputs"]
    steps.member, steps.stalls = True, False
    assert await steps.consumer.commit()
    assert steps.taken == ["outputs", "outputs", STATES, "offsets"]


async def test_an_offset_whose_commit_the_group_refused_is_committed_with_the_next(steps):
    async def refused(offsets: Any) -> bool:  # noqa: ARG001
        return False

    commit, steps.consumer._commit = steps.consumer._commit, refused
    steps.batch_is_done(99)
    assert not await steps.consumer.commit()
    steps.consumer._commit = commit
    assert await steps.consumer.commit()
    assert steps.committed == {steps.tp: 100}


async def test_a_commit_does_not_rely_on_one_that_has_begun_before_it(steps):
    """Faust's second caller waits for the first one's commit, which may have begun before its last batch was done."""
    lock = steps.table.lock(0)
    await lock.__aenter__()
    first = asyncio.ensure_future(steps.consumer.commit())
    await asyncio.sleep(0)
    steps.batch_is_done(99)
    second = asyncio.ensure_future(steps.consumer.commit())
    await lock.__aexit__(None, None, None)
    assert await first
    assert not await second
    assert steps.committed == {steps.tp: 100}
