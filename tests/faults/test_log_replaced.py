"""A log that is not the one that the states were made from: the worker stops by name, and does not ignore events."""

from __future__ import annotations

import asyncio
import shutil
import time
import uuid

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete
from apache_kafka import ApacheKafka, KafkaUnavailable
from broker_log import read_raw, until
from fleet import Fleet, Load, verify

from contextengine.topics import admin
from contextengine.topics.catalogue import catalogue

SOME = Load(sessions=12, events_per_s=60, seconds=3)
MISCONFIGURED = 2


async def delete_topics(settings, *topics):
    """Delete them, and wait until they are gone."""
    client = AIOKafkaAdminClient(**settings.kafka_client())
    await client.start()
    try:
        await client.delete_topics([topic.name for topic in topics])
        while {topic.name for topic in topics} & set(await client.list_topics()):
            await asyncio.sleep(0.1)
    finally:
        await client.close()


async def outlive_retention(settings, topic):
    """Every record of the topic is gone, as if it had outlived its retention."""
    client, consumer = (kind(**settings.kafka_client()) for kind in (AIOKafkaAdminClient, AIOKafkaConsumer))
    await client.start()
    await consumer.start()
    try:
        ends = await consumer.end_offsets([TopicPartition(topic.name, number) for number in range(topic.partitions)])
        await client.delete_records({tp: RecordsToDelete(end) for tp, end in ends.items()})
    finally:
        await consumer.stop()
        await client.close()


async def ended(process, within_s=30.0):
    """Wait until it has ended by itself; how long that took."""
    began_s = time.monotonic()
    await until(lambda: not process.runs, within_s)
    return time.monotonic() - began_s


async def talked_in(fleet):
    """Some conversations, begun and ended."""
    async with fleet.under(SOME) as load:
        pass
    return load


async def test_a_worker_whose_log_was_recreated_while_it_was_away_stops_by_name_and_starts_over_when_told(
    kafka, tmp_path
):
    """What it says to do helps."""
    async with Fleet(kafka, tmp_path, workers=1, delivers=0) as fleet:
        settings, topics, [worker] = fleet.settings, catalogue(fleet.settings), fleet.workers
        await talked_in(fleet)
        await fleet.drained()
        assert await worker.stop() == 0
        await delete_topics(settings, topics.events)
        await admin.apply(settings, uuid.uuid4().hex)
        load = await talked_in(fleet)
        injected = len(await read_raw(settings, topics.injections))
        worker.launch()
        await ended(worker)
        assert worker.status == MISCONFIGURED
        assert "it was recreated" in worker.last_words
        assert f"delete {topics.sessions_changelog.name} too" in worker.last_words
        assert len(await read_raw(settings, topics.injections)) == injected, "it decided something all the same"
        # What stands in the other topics comes from the old log; the judge looks at the new one's only.
        await delete_topics(settings, topics.sessions_changelog, *topics[2:-1])
        await admin.apply(settings, uuid.uuid4().hex)
        await worker.start()
        fleet.add("deliver")
        await fleet.delivers[0].start()
        await verify(fleet, load)


async def test_a_worker_whose_log_is_recreated_under_it_stops_by_name(kafka, tmp_path, figures):
    async with Fleet(kafka, tmp_path, workers=1, delivers=0) as fleet:
        settings, topics, [worker] = fleet.settings, catalogue(fleet.settings), fleet.workers
        await talked_in(fleet)
        await fleet.drained()
        await delete_topics(settings, topics.events)
        await admin.apply(settings, uuid.uuid4().hex)
        await talked_in(fleet)
        figures["stops after (s)"] = round(await ended(worker, 60), 1)
        assert worker.status == MISCONFIGURED
        assert "it was recreated" in worker.last_words


@pytest.mark.full_faults
async def test_a_worker_that_was_away_for_longer_than_the_retention_stops_by_name(kafka, tmp_path):
    async with Fleet(kafka, tmp_path, workers=1, delivers=0) as fleet:
        settings, topics, [worker] = fleet.settings, catalogue(fleet.settings), fleet.workers
        await talked_in(fleet)
        await fleet.drained()
        assert await worker.stop() == 0
        await talked_in(fleet)
        await outlive_retention(settings, topics.events)
        worker.launch()
        await ended(worker)
        assert worker.status == MISCONFIGURED
        assert "what lies between has outlived its retention" in worker.last_words


@pytest.mark.full_faults
async def test_who_was_away_for_longer_than_the_retention_and_has_missed_nothing_goes_on(kafka, tmp_path):
    """An installation that nobody used for a day."""
    async with Fleet(kafka, tmp_path, workers=1, delivers=0) as fleet:
        settings, topics, [worker] = fleet.settings, catalogue(fleet.settings), fleet.workers
        await talked_in(fleet)
        await fleet.drained()
        assert await worker.stop() == 0
        await outlive_retention(settings, topics.events)
        await worker.start()
        assert await worker.stop() == 0


async def test_a_broker_that_has_lost_everything_is_noticed_by_everybody(tmp_path, figures):
    """Its disk was replaced: nobody says that he is ready, and the worker stops by name."""
    try:
        cluster = ApacheKafka().start()
    except KafkaUnavailable as reason:
        pytest.skip(str(reason))
    try:
        async with Fleet(cluster.bootstrap, tmp_path, workers=1) as fleet:
            [worker], [deliver], [node] = fleet.workers, fleet.delivers, cluster.nodes
            await talked_in(fleet)
            await fleet.drained()
            node.kill()
            shutil.rmtree(node.folder / "data")
            await asyncio.to_thread(node.start)
            began_s = time.monotonic()

            async def nobody_is_ready():
                return not [process.name for process in fleet.processes if await process.is_ready()]

            await until(nobody_is_ready, 60)
            figures["noticed after (s)"] = round(time.monotonic() - began_s, 1)
            await ended(worker)
            await asyncio.sleep(5)
            assert await nobody_is_ready()
            assert "topics apply" in deliver.said
            assert worker.status == MISCONFIGURED
            assert "topics apply" in worker.last_words
    finally:
        cluster.stop()
