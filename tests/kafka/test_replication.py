"""Three brokers and three copies: one may fail, and when two do nothing is said to be written that is not."""

from __future__ import annotations

import uuid

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from broker_log import read, until

from contextengine.schemas.events import MessageCompleted
from contextengine.settings import load
from contextengine.topics import admin
from contextengine.topics.catalogue import catalogue
from contextengine.topics.publisher import Publisher


@pytest.fixture(scope="module")
def cluster(start_kafka):
    return start_kafka({"broker.session.timeout.ms": "3000", "broker.heartbeat.interval.ms": "500"}, brokers=3)


@pytest.fixture
async def settings(cluster):
    """Settings for a cluster that is whole, and whose topics are there."""
    for node in cluster.nodes:
        if not node.running:
            node.start()
    made = load(
        environ={}, broker=cluster.bootstrap, replication=3, partitions=4, prefix=f"test-{uuid.uuid4().hex[:8]}"
    )
    await admin.apply(made, "log-1")
    return made


async def test_every_topic_has_three_copies_and_a_write_waits_for_two(settings):
    topics = [topic.name for topic in catalogue(settings)]
    client = AIOKafkaAdminClient(**settings.kafka_client())
    await client.start()
    try:
        described = await client.describe_topics(topics)
        configs = await client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in topics])
    finally:
        await client.close()
    copies = {len(partition["replicas"]) for topic in described for partition in topic["partitions"]}
    needed = {
        entry[1]
        for answer in configs
        for resource in answer.resources
        for entry in resource[4]
        if entry[0] == "min.insync.replicas"
    }
    assert (copies, needed) == ({3}, {"2"})
    assert (await admin.check(settings)).differences == ()


async def test_with_one_broker_killed_writing_goes_on_and_with_two_it_waits_until_one_is_back(
    cluster, settings, caplog
):
    first, second, _ = cluster.nodes
    async with Publisher(settings, name="test") as publisher:
        sessions = [publisher.session(f"s{number}") for number in range(20)]

        def all_say(text):
            for session in sessions:
                session.publish(MessageCompleted, speaker="user", text=text)

        all_say("three brokers")
        assert await publisher.flush() == 0
        first.kill()
        all_say("two brokers")
        assert await publisher.flush(within_ms=30_000) == 0
        second.kill()
        all_say("one broker")
        assert await publisher.flush(within_ms=8_000) > 0
        await until(lambda: "NotEnoughReplicas" in caplog.text, within_s=30)
        second.start()
        assert await publisher.flush(within_ms=30_000) == 0
    assert not publisher.dropped
    seqs = {session.session_id: [] for session in sessions}
    for event in await read(settings, catalogue(settings).events):
        seqs[event.session_id].append(event.seq)
    assert {tuple(dict.fromkeys(found)) for found in seqs.values()} == {(0, 1, 2)}
