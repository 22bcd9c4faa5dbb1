"""Every name inside Faust and aiokafka that the fast path relies on, and what it takes it to do.

Both are pinned. A new version that fails here needs a look at contextengine/agents/transport.py before anything else.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any

import aiokafka
import pytest
from aiokafka.consumer.fetcher import Fetcher, PartitionRecords
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import Assignment, Subscription, SubscriptionState, TopicPartitionState
from aiokafka.producer.message_accumulator import BatchBuilder, MessageAccumulator
from aiokafka.producer.sender import SendProduceReqHandler
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.structs import TopicPartition
from counting import Counting
from faust.agents import Agent
from faust.app import App
from faust.events import Event
from faust.stores import memory, rocksdb
from faust.tables.base import Collection
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.transport import consumer as base_consumer
from faust.transport.conductor import Conductor
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import ConsumerMessage
from kept_log import consumer_records
from mode import Service
from mode.threads import QueueServiceThread
from mode.utils.queues import FlowControlEvent, ThrowableQueue

from contextengine.agents.transport import FAUST_SETTINGS


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def source(thing: Any) -> str:
    return inspect.getsource(thing)


def test_the_versions_are_the_ones_that_were_read():
    assert version("faust-streaming") == "0.15.3"
    assert version("aiokafka") == "0.14.0"


def test_every_setting_is_one_of_fausts():
    app = Counting("127.0.0.1:1", "unit").app
    for name in FAUST_SETTINGS:
        assert hasattr(app.conf, name), name


@pytest.mark.parametrize(
    ("owner", "name", "expected"),
    [
        (driver.Consumer, "_new_consumer_thread", ["self"]),
        (driver.Consumer, "_drain_messages", ["self", "fetcher"]),
        (driver.Consumer, "_to_message", ["self", "tp", "record"]),
        (driver.Consumer, "_getmany", ["self", "active_partitions", "timeout"]),
        (driver.Consumer, "_get_active_partitions", ["self"]),
        (driver.Consumer, "_is_changelog_tp", ["self", "tp"]),
        (driver.Consumer, "_add_gap", ["self", "tp", "offset_from", "offset_to"]),
        (driver.Consumer, "_commit", ["self", "offsets"]),
        (driver.Consumer, "_commit_tps", ["self", "tps", "start_new_transaction"]),
        (driver.Consumer, "_should_commit", ["self", "tp", "offset"]),
        (driver.Consumer, "_wait_for_ack", ["self", "timeout"]),
        (driver.Consumer, "commit", ["self", "topics", "start_new_transaction"]),
        (driver.Consumer, "force_commit", ["self", "topics", "start_new_transaction"]),
        (driver.Consumer, "wait_empty", ["self"]),
        (driver.Consumer, "on_task_error", ["self", "exc"]),
        (driver.Consumer, "on_partitions_revoked", ["self", "revoked"]),
        (driver.Consumer, "on_partitions_assigned", ["self", "assigned", "generation_id"]),
        (driver.Consumer, "highwater", ["self", "tp"]),
        (driver.Consumer, "stop_flow", ["self"]),
        (driver.AIOKafkaConsumerThread, "_create_worker_consumer", ["self", "transport"]),
        (driver.AIOKafkaConsumerThread, "_ensure_consumer", ["self"]),
        (driver.AIOKafkaConsumerThread, "_commit", ["self", "offsets"]),
        (driver.AIOKafkaConsumerThread, "_highwaters", ["self", "partitions"]),
        (
            driver.AIOKafkaConsumerThread,
            "_fetch_records",
            ["self", "consumer", "active_partitions", "timeout", "max_records"],
        ),
        (driver.AIOKafkaConsumerThread, "on_start", ["self"]),
        (driver.AIOKafkaConsumerThread, "on_thread_stop", ["self"]),
        (driver.AIOKafkaConsumerThread, "on_partitions_assigned", ["self", "assigned", "generation_id"]),
        (driver.Producer, "_new_producer", ["self", "transactional_id"]),
        (driver.Producer, "_settings_extra", ["self"]),
        (driver.Producer, "flush", ["self"]),
        (driver.Producer, "on_stop", ["self"]),
        (driver.Transport, "__init__", ["self", "args", "kwargs"]),
        (driver, "server_list", ["urls", "default_port"]),
        (driver, "credentials_to_aiokafka_auth", ["credentials", "ssl_context"]),
        (Recovery, "on_rebalance", ["self", "assigned", "revoked", "newly_assigned", "generation_id"]),
        (Recovery, "on_recovery_completed", ["self", "generation_id"]),
        (Recovery, "__init__", ["self", "app", "tables", "kwargs"]),
        (Collection, "_new_store", ["self"]),
        (memory.Store, "apply_changelog_batch", ["self", "batch", "to_key", "to_value"]),
        (memory.Store, "on_recovery_completed", ["self", "active_tps", "standby_tps"]),
        (memory.Store, "on_rebalance", ["self", "assigned", "revoked", "newly_assigned", "generation_id"]),
        (memory.Store, "__post_init__", ["self"]),
        (rocksdb.Store, "_db_for_partition", ["self", "partition"]),
        (rocksdb.Store, "_visible_items", ["self", "db"]),
        (App, "_on_partitions_revoked", ["self", "revoked"]),
        (QueueServiceThread, "call_thread", ["self", "fun", "args", "kwargs"]),
        (GroupCoordinator, "_do_heartbeat", ["self"]),
        (Fetcher, "fetched_records", ["self", "partitions", "timeout", "max_records"]),
        (Assignment, "state_value", ["self", "tp"]),
        (aiokafka.AIOKafkaConsumer, "seek", ["self", "partition", "offset"]),
        (aiokafka.AIOKafkaConsumer, "highwater", ["self", "partition"]),
        (aiokafka.AIOKafkaConsumer, "commit", ["self", "offsets"]),
        (aiokafka.AIOKafkaProducer, "create_batch", ["self"]),
        (aiokafka.AIOKafkaProducer, "send_batch", ["self", "batch", "topic", "partition"]),
        (aiokafka.AIOKafkaProducer, "send", ["self", "topic", "value", "key", "partition", "timestamp_ms", "headers"]),
        (BatchBuilder, "append", ["self", "timestamp", "key", "value", "headers"]),
        (Event, "__init__", ["self", "app", "key", "value", "headers", "message"]),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", None),
)
def test_a_method_has_the_parameters_that_it_is_called_or_overridden_with(owner, name, expected):
    assert parameters(getattr(owner, name)) == expected


@pytest.fixture
async def app() -> AsyncIterator[Any]:
    """An app with the fast path, whose consumer is made and not started."""
    made: Any = Counting("127.0.0.1:1", "unit").app
    _ = made.consumer
    yield made
    made.consumer._thread.thread_loop.close()


async def test_a_consumer_keeps_its_books_under_these_names(app):
    consumer = app.consumer
    tp = TP("unit.events", 0)
    assert consumer._read_offset[tp] is None
    assert consumer._committed_offset[tp] is None
    assert consumer._acked[tp] == []
    assert consumer._acked_index[tp] == set()
    assert not consumer._unacked_messages
    assert consumer.commit_interval == FAUST_SETTINGS["broker_commit_interval"]
    assert consumer.flow_active
    assert isinstance(consumer.can_resume_flow, asyncio.Event)
    assert isinstance(consumer.suspend_flow, asyncio.Event)
    assert callable(consumer.callback)
    assert consumer._thread.tp_last_committed_at == {}
    assert consumer._thread.consumer is consumer


async def test_an_app_keeps_what_is_read_of_it_under_these_names(app):
    assert app.rebalancing_count == 0
    assert app.consumer_generation_id == 0
    assert app.topics._tp_index == {}
    assert app.topics.acks_enabled_for("unit.events") in {True, False}
    assert app.producer._producer is None
    assert isinstance(app.flow_control, FlowControlEvent)
    assert app.monitor.track_tp_end_offset
    assert app.monitor.on_tp_commit
    assert app.sensors.on_commit_initiated
    assert app.sensors.on_commit_completed
    assert app.tables._recovery is None
    await app.consumer.on_start()
    assert app.tables.recovery is app.consumer._recovery
    assert app.tables.recovery.active_tps == set()
    assert app.tables.recovery.active_offsets == {}


async def test_the_commit_handler_is_a_task_of_the_consumer_once_and_is_ours(app):
    handlers = [task for task in app.consumer._get_tasks() if task.fun.__name__ == "_commit_handler"]
    assert len(handlers) == 1
    assert handlers[0].fun.__module__ == "contextengine.agents.transport"


async def test_a_stream_acknowledges_a_batch_by_its_last_offset_and_only_once_it_is_asked_for_the_next(app):
    """Faust's compiled stream iterator writes into the consumer's books itself, by no call that we could override."""
    tp = TP("unit.events", 0)
    app.flow_control.resume()
    app.topics._acking_topics.add(tp.topic)
    stream = app.stream(app.topic(tp.topic, key_serializer="raw", value_serializer="raw"))
    records = [object(), object()]
    message = ConsumerMessage(tp.topic, 0, 41, 0.0, 0, None, None, records, None, tp=tp, generation_id=0)
    message.incref(1)
    events = stream.events()
    await stream.channel.put(Event(app, None, records, None, message))
    event = await anext(events)
    assert event.value is records
    assert event.message.partition == 0
    assert list(app.consumer._unacked_messages) == [message]
    assert app.consumer._acked_index[tp] == set()
    asking = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0.01)
    assert app.consumer._acked_index[tp] == {41}
    assert app.consumer._acked[tp] == [41]
    assert not app.consumer._unacked_messages
    asking.cancel()
    await stream.stop()


async def test_a_stream_skips_an_event_of_an_old_generation_and_does_not_acknowledge_it(app):
    tp = TP("unit.events", 0)
    app.flow_control.resume()
    app.consumer_generation_id = 2
    stream = app.stream(app.topic(tp.topic, key_serializer="raw", value_serializer="raw"))
    message = ConsumerMessage(tp.topic, 0, 41, 0.0, 0, None, None, [], None, tp=tp, generation_id=1)
    message.incref(1)
    await stream.channel.put(Event(app, None, [], None, message))
    asking = asyncio.ensure_future(anext(stream.events()))
    await asyncio.sleep(0.01)
    assert not asking.done()
    assert app.consumer._acked_index[tp] == set()
    asking.cancel()
    await stream.stop()


async def test_a_full_queue_takes_more_only_by_force_and_a_rebalance_cancels_those_who_wait(app):
    queue = ThrowableQueue(maxsize=1, flow_control=app.flow_control, clear_on_resume=True)
    app.flow_control.resume()
    queue.put_nowait("first")
    assert queue.qsize() == 1
    waiting = asyncio.ensure_future(queue.put("second"))
    await asyncio.sleep(0)
    app.flow_control.clear()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_faust_counts_a_rebalance_when_it_begins_and_ends_recovery_last():
    assert "thread.app.on_rebalance_start()" in source(driver.ConsumerRebalanceListener.on_partitions_revoked)
    assert "self.rebalancing_count += 1" in source(App.on_rebalance_start)
    body = source(Recovery.on_recovery_completed)
    steps = ["perform_seek", "self.app.flow_control.resume()", "consumer.resume_flow()", "on_rebalance_end"]
    assert [body.index(step) for step in steps] == sorted(body.index(step) for step in steps)


def test_faust_takes_a_changelog_record_that_it_has_been_told_of_for_seen():
    """So the last record of a bulk restore, told before it is shown, wakes the recovery and is applied by nobody."""
    body = source(Recovery._slurp_changelogs.fun)
    assert "seen_offset = offsets.get(tp, None)" in body
    assert "if seen_offset is None or offset > seen_offset:" in body
    assert body.index("if seen_offset is None") < body.index("await _maybe_signal_recovery_end()\n\n")


def test_faust_makes_the_recovery_only_when_there_is_none():
    assert "if self._recovery is None" in source(TableManager.recovery.fget)


def test_faust_keeps_the_offsets_of_partitions_that_stay_over_a_rebalance():
    """Which is why a memory store keeps their values: the next restore reads only what came after."""
    assert "for tp in revoked:\n            self.revoke(tp)" in source(Recovery.on_rebalance)


def test_faust_forgets_acknowledged_offsets_when_partitions_are_revoked_before_it_waits_for_the_streams():
    body = source(base_consumer.Consumer.on_partitions_revoked)
    assert body.index("self._acked.pop(tp, None)") < body.index("self._on_partitions_revoked")


def test_faust_waits_for_the_streams_before_it_stops_the_agents():
    assert "await self._consumer_wait_empty(consumer, self.log)" in source(App._stop_consumer)
    assert "_stop_consumer" in source(App.on_stop)
    assert "await self.on_stop()\n            await self._stop_children()" in source(Service.stop)


def test_faust_reports_an_agents_exception_before_it_starts_the_agent_anew():
    body = source(Agent._execute_actor)
    assert body.index("await self._on_error(self, exc)") < body.rindex("await aref.crash(exc)")
    assert "on_task_error" in source(App._on_agent_error)


def test_faust_finds_the_channels_of_a_partition_in_the_conductors_index():
    assert "for tp in assignmap[subtopic]:\n                        tp_index[tp].add(topic)" in source(
        Conductor._update_tp_index
    )


def test_faust_hard_codes_a_fetch_wait_that_the_fetcher_is_given_when_it_starts():
    assert "fetch_max_wait_ms=1500" in source(driver.AIOKafkaConsumerThread._create_worker_consumer)
    assert "fetch_max_wait_ms=self._fetch_max_wait_ms" in source(aiokafka.AIOKafkaConsumer.start)


def test_aiokafka_has_its_coordinator_from_the_start_and_beats_through_its_attribute():
    assert "self._coordinator = GroupCoordinator(" in source(aiokafka.AIOKafkaConsumer.start)
    assert "success = await self._do_heartbeat()" in source(GroupCoordinator._heartbeat_routine)
    assert "self.generation = OffsetCommitRequest.DEFAULT_GENERATION_ID" in source(GroupCoordinator.reset_generation)


async def test_aiokafka_knows_positions_by_assignment():
    subscriptions = SubscriptionState()
    tp = TopicPartition("unit.events", 0)
    subscriptions.assign_from_user([tp])
    assert isinstance(subscriptions.subscription, Subscription)
    assignment = subscriptions.subscription.assignment
    state = assignment.state_value(tp)
    assert isinstance(state, TopicPartitionState)
    state.seek(7)
    assert state.position == 7
    assert state.highwater is None
    assert assignment.tps == {tp}
    assert "self._subscription = SubscriptionState(" in source(aiokafka.AIOKafkaConsumer.__init__)
    assert "tp_state.highwater = highwater" in source(Fetcher._proc_fetch_request)


def test_aiokafka_returns_fetched_records_in_the_step_that_moves_their_positions():
    """Between the two there is no await, so the positions seen after a fetch are those that its records moved."""
    body = source(Fetcher.fetched_records)
    taken, returned = body.index("res_or_error.getall(max_records)"), body.index("if drained or not timeout:")
    assert "await" not in body[taken:returned]


def test_a_batch_takes_any_first_record_and_no_other_beyond_its_size_and_keeps_headers():
    batch = BatchBuilder(1_000, 0)
    assert batch.append(timestamp=None, key=b"k", value=b"x" * 5_000, headers=[("cx-a", b"1"), ("b", b"")])
    assert batch.append(timestamp=None, key=b"k", value=b"x", headers=[]) is None
    assert batch.record_count() == 1
    (record,) = consumer_records(bytes(batch._build()), "t", 0, 0)
    assert record.headers == (("cx-a", b"1"), ("b", b""))


def test_the_estimated_size_of_a_record_is_never_less_than_its_batch_will_have():
    for value, headers in [(b"", []), (b"x" * 100_000, []), (b"x" * 9, [("name", b"v" * 5_000)])]:
        batch = BatchBuilder(1, 0)
        batch.append(timestamp=None, key=b"key", value=value, headers=headers)
        assert len(batch._build()) <= DefaultRecordBatchBuilder.estimate_size_in_bytes(b"key", value, headers) + 61


def test_an_idempotent_producer_never_gives_a_batch_up():
    """Which is why a flush has a limit of its own."""
    assert "if self._sender._txn_manager is None and batch.expired():" in source(SendProduceReqHandler._can_retry)
    assert "await self.flush()" in source(MessageAccumulator.close)


def test_a_batch_without_a_leader_is_given_up_when_its_time_to_live_is_over_even_so():
    """Which `be_patient` undoes."""
    assert "if self._batches[tp][0].expired():" in source(MessageAccumulator.drain_by_nodes)
    assert "MessageBatch(tp, builder, self._batch_ttl," in source(MessageAccumulator)


def test_aiokafka_keeps_what_it_fetched_by_partition_and_makes_records_by_a_method_of_the_fetch():
    """Which is where a batch topic's records are left as they were parsed."""
    assert "self._records = collections.OrderedDict()" in source(Fetcher.__init__)
    assert "self._records[tp] = FetchResult(" in source(Fetcher._proc_fetch_request)
    assert "self._consumer_record(tp, record)" in source(PartitionRecords._unpack_records)
    assert "self._fetcher = Fetcher(" in source(aiokafka.AIOKafkaConsumer.start)
