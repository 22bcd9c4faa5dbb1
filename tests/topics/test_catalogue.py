"""Every topic is in the catalogue, with settings that neither lose nor misorder records."""

from __future__ import annotations

import pytest
from aiokafka.partitioner import DefaultPartitioner

from contextengine.settings import load
from contextengine.topics.catalogue import (
    EVENT_BYTES,
    HEADERS_BYTES,
    MAX_MESSAGE_BYTES,
    catalogue,
    partition_for,
)

TOPICS = catalogue(load(environ={}, prefix="shop", partitions=6))


def test_the_names_stand_under_the_prefix():
    assert [topic.name for topic in TOPICS] == [
        "shop.events",
        "shop.rules",
        "shop.injections",
        "shop.injections.retry.1s",
        "shop.injections.dead",
        "shop.attempts",
        "shop.results",
        "shop.decisions",
        "shop-worker-sessions-changelog",
    ]


def test_all_but_the_rules_have_equal_partition_counts():
    assert {topic.partitions for topic in TOPICS if topic is not TOPICS.rules} == {6}
    assert TOPICS.rules.partitions == 1


def test_every_log_carries_the_broker_s_time():
    logs = [topic for topic in TOPICS if topic.cleanup == "delete"]
    assert {topic.timestamps for topic in logs} == {"LogAppendTime"}


def test_state_is_compacted_and_the_log_is_not():
    compacted = [topic.name for topic in TOPICS if topic.config()["cleanup.policy"] == "compact"]
    assert compacted == ["shop.rules", "shop-worker-sessions-changelog"]
    assert TOPICS.sessions_changelog.config()["min.compaction.lag.ms"] == "3600000"
    assert "retention.ms" not in TOPICS.sessions_changelog.config()


@pytest.mark.parametrize(("name", "days"), [("events", 1), ("results", 7), ("dead", 14), ("decisions", 1)])
def test_records_stay_as_long_as_the_contract_says(name, days):
    assert getattr(TOPICS, name).config()["retention.ms"] == str(days * 86_400_000)


def test_the_largest_legal_record_still_fits_as_a_dead_letter_with_its_headers():
    assert EVENT_BYTES + HEADERS_BYTES < MAX_MESSAGE_BYTES == TOPICS.events.max_message_bytes
    assert TOPICS.dead.max_message_bytes == 2 * MAX_MESSAGE_BYTES > MAX_MESSAGE_BYTES + HEADERS_BYTES


@pytest.mark.parametrize(("replication", "in_sync"), [(1, "1"), (2, "1"), (3, "2")])
def test_with_three_copies_a_write_waits_for_two(replication, in_sync):
    topics = catalogue(load(environ={}, replication=replication))
    assert {topic.config()["min.insync.replicas"] for topic in topics} == {in_sync}
    assert {topic.replication for topic in topics} == {replication}


@pytest.mark.parametrize(
    ("key", "murmur2"),
    [  # computed by Kafka's Java client, from its own tests (UtilsTest.testMurmur2)
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_a_key_has_the_partition_that_every_kafka_client_gives_it(key, murmur2):
    for partitions in (1, 4, 12):
        assert partition_for(key, partitions) == (murmur2 & 0x7FFFFFFF) % partitions
        assert partition_for(key, partitions) == DefaultPartitioner()(key, list(range(partitions)), [])
