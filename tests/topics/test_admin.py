"""The topics are made as the catalogue says, and nothing starts on others."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import replace

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from contextengine.errors import BrokerUnavailable, ConfigurationError, TopicMismatch
from contextengine.settings import load
from contextengine.topics import admin, rulebook
from contextengine.topics.catalogue import catalogue


async def make(settings, name, partitions, config=None):
    client = AIOKafkaAdminClient(**settings.kafka_client())
    await client.start()
    await client.create_topics([NewTopic(name, partitions, 1, topic_configs=config or {})])
    await client.close()


async def test_applied_topics_are_all_there_and_have_no_differences(settings):
    before = await admin.check(settings)
    assert {difference.found for difference in before.differences} == {admin.MISSING}
    report = await admin.apply(settings, "log-1")
    names = {topic.name for topic in catalogue(settings)}
    assert set(report.created) == names
    assert report.differences == ()
    found = await admin.describe(settings)
    assert set(found) == names
    assert found[catalogue(settings).events.name].partitions == settings.partitions


async def test_applying_again_creates_nothing_and_keeps_the_log_id(settings):
    await admin.apply(settings, "log-1")
    report = await admin.apply(settings, "log-2")
    assert (report.created, report.differences) == ((), ())
    assert await rulebook.read_log_id(settings) == "log-1"


async def test_two_that_apply_at_once_agree_on_one_log_id(settings):
    reports = await asyncio.gather(admin.apply(settings, "log-1"), admin.apply(settings, "log-2"))
    events = catalogue(settings).events.name
    winner = [events in report.created for report in reports].index(True)
    assert await rulebook.read_log_id(settings) == f"log-{winner + 1}"


async def test_an_events_topic_that_was_made_anew_has_another_log_id(settings):
    await admin.apply(settings, "log-1")
    client = AIOKafkaAdminClient(**settings.kafka_client())
    await client.start()
    await client.delete_topics([catalogue(settings).events.name])
    await client.close()
    while catalogue(settings).events.name in await admin.describe(settings):
        await asyncio.sleep(0.05)
    report = await admin.apply(settings, "log-2")
    assert report.created == (catalogue(settings).events.name,)
    assert await rulebook.read_log_id(settings) == "log-2"


async def test_partitions_never_grow_in_place(settings):
    await admin.apply(settings, "log-1")
    wider = settings.model_copy(update={"partitions": 8})
    with pytest.raises(TopicMismatch, match="drain to a new prefix"):
        await admin.apply(wider, "log-2")
    assert ("partitions", "4", "8") in {(d.setting, d.found, d.wanted) for d in (await admin.check(wider)).differences}


async def test_unequal_partitions_are_refused_before_anything_is_created(settings):
    await make(settings, catalogue(settings).injections.name, 3)
    with pytest.raises(TopicMismatch, match="partitions is 3"):
        await admin.apply(settings, "log-1")
    assert set(await admin.describe(settings)) == {catalogue(settings).injections.name}


async def test_a_topic_with_settings_that_lose_events_is_a_difference(settings):
    topics = catalogue(settings)
    wrong = {
        **topics.events.config(),
        "cleanup.policy": "compact",
        "retention.ms": "1000",
        "max.message.bytes": "1000",
        "message.timestamp.type": "CreateTime",
    }
    await make(settings, topics.events.name, 4, wrong)
    said = "\n".join(str(d) for d in (await admin.check(settings)).differences if d.topic == topics.events.name)
    assert f"{topics.events.name}: cleanup.policy is compact, should be delete" in said
    assert all(setting in said for setting in ("retention.ms", "max.message.bytes", "message.timestamp.type"))


async def test_what_a_broker_does_not_report_is_said_and_is_no_difference(embedded_settings):
    await make(embedded_settings, catalogue(embedded_settings).results.name, 4)
    topics, found = catalogue(embedded_settings), await admin.describe(embedded_settings)
    assert not [difference for difference in admin.compare(topics, found) if difference.topic == topics.results.name]
    assert "not reported by this broker" in next(admin.unreported(topics, found))
    assert (await admin.check(embedded_settings)).notes == (admin.IGNORED_BY_EMBEDDED,)


def test_keeping_records_longer_than_asked_does_no_harm(settings):
    topics = catalogue(settings)
    found = {t.name: admin.Found(t.partitions, 3, {**t.config(), "retention.ms": "-1"}) for t in topics}
    assert list(admin.compare(topics, found)) == []
    found[topics.events.name] = replace(found[topics.events.name], config={"retention.ms": "1"})
    assert [difference.setting for difference in admin.compare(topics, found)] == ["retention.ms"]


async def test_a_rule_set_is_read_back_under_its_hash_with_its_offset(settings):
    await admin.apply(settings, "log-1")
    offset = await rulebook.append(settings, "hash-1", b"rules: []")
    await rulebook.append(settings, "hash-2", bytes(600_000))
    again = await rulebook.append(settings, "hash-1", b"rules: [a]")
    entries = await rulebook.read(settings)
    assert list(entries) == [rulebook.LOG_ID, "hash-2", "hash-1"]
    assert entries["hash-1"] == rulebook.Entry(again, b"rules: [a]")
    assert again == offset + 2


async def test_reading_or_writing_rules_without_their_topic_says_what_to_do_and_creates_none(settings):
    with pytest.raises(ConfigurationError, match="topics apply"):
        await rulebook.read(settings)
    with pytest.raises(ConfigurationError, match="topics apply"):
        await rulebook.append(settings, "hash", b"")
    assert await admin.describe(settings) == {}


async def test_without_a_log_id_the_worker_is_told_to_apply(settings):
    await make(settings, catalogue(settings).rules.name, 1)
    with pytest.raises(ConfigurationError, match="log id"):
        await rulebook.read_log_id(settings)


@pytest.mark.parametrize("errand", [admin.check, rulebook.read])
async def test_no_broker_is_said_at_once_with_its_address(errand):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        before = time.monotonic()
        with pytest.raises(BrokerUnavailable, match=address):
            await errand(load(environ={}, broker=address))
    assert time.monotonic() - before < 2


async def test_a_broker_that_accepts_and_says_nothing_is_given_up_within_seconds(monkeypatch):
    monkeypatch.setattr("contextengine.topics.errand.ANSWER_MS", 300)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        before = time.monotonic()
        for errand in (admin.check(load(environ={}, broker=address)), rulebook.read(load(environ={}, broker=address))):
            with pytest.raises(BrokerUnavailable, match=address):
                await errand
    assert time.monotonic() - before < 2
