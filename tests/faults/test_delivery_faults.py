"""Delivery consumers that are killed, sent back to the beginning, or an hour ahead: every context goes in once."""

from __future__ import annotations

import asyncio
import random

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from broker_log import read
from fleet import RULES, Fleet, Load, verify

from contextengine.topics.catalogue import catalogue


async def from_the_beginning(settings):
    """Reset the group of the delivery consumers, which must have no members."""
    topic = catalogue(settings).injections
    consumer = AIOKafkaConsumer(**settings.kafka_client(), group_id=settings.deliver_group, enable_auto_commit=False)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic.name, number) for number in range(topic.partitions)]
        consumer.assign(partitions)
        await consumer.commit(dict.fromkeys(partitions, 0))
    finally:
        await consumer.stop()


async def verdicts_twice(settings):
    """How many verdicts are in the log on attempts that had one."""
    verdicts = await read(settings, catalogue(settings).attempts)
    return len(verdicts) - len({(verdict.injection_id, verdict.attempt) for verdict in verdicts})


async def test_a_deliver_killed_after_the_provider_took_a_context_sends_it_at_most_once_more(
    kafka, tmp_path, base, full, figures
):
    """It dies within five milliseconds after the provider has put a context in, before anybody else knows."""
    chance = random.Random(20260101)  # noqa: S311
    kills = 10 if full else 2
    # So that hardly any context that the dead consumer had is superseded by the next one of its rule.
    load, rules = Load(base.events_per_s, base.events_per_s, base.seconds), RULES.partition("  - name: now-and-then")[0]
    async with Fleet(kafka, tmp_path, workers=2, rules=rules) as fleet:
        deliver, provider = fleet.delivers[0], fleet.provider
        async with fleet.under(load) as talk:
            for _ in range(kills):
                killed = asyncio.get_running_loop().create_future()

                def kill_soon(_, killed=killed):
                    provider.on_create = lambda _: None
                    asyncio.get_running_loop().call_later(
                        chance.choice((0, 0, 0.001, 0.005)), lambda: killed.set_result(deliver.kill())
                    )

                await asyncio.sleep(chance.uniform(0.5, 1.5))
                provider.on_create = kill_soon
                await killed
                await deliver.start()
        proof = await verify(fleet, talk)
        figures |= {
            "kills": kills,
            "injections": proof.injections,
            "sent twice": proof.send_copies,
            "outcomes belied": proof.belied,
            "verdicts twice": await verdicts_twice(fleet.settings),
        }
    assert max(provider.created.values()) <= 2
    assert proof.belied == 0
    assert figures["verdicts twice"] == 0


@pytest.mark.full_faults
async def test_a_group_that_begins_anew_sends_nothing_a_second_time(kafka, tmp_path, base, figures):
    """Its offsets are set to 0 under load; the verdicts in the log say what was done."""
    async with Fleet(kafka, tmp_path, workers=2) as fleet:
        deliver = fleet.delivers[0]
        async with fleet.under(base) as talk:
            await asyncio.sleep(base.seconds * 2 / 3)
            assert await deliver.stop() == 0
            before = fleet.provider.created.total()
            await from_the_beginning(fleet.settings)
            await deliver.start()
        proof = await verify(fleet, talk)
        figures |= {
            "injections before": before,
            "injections": proof.injections,
            "sent twice": proof.send_copies,
            "verdicts twice": await verdicts_twice(fleet.settings),
        }
    assert before > 0
    assert proof.send_copies == figures["verdicts twice"] == 0
