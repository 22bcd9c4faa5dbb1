"""Records that nobody can read, under load: dead letters with their bytes unchanged, and nobody waits for them."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from broker_log import read_raw, until, write
from fleet import Fleet, verify

from contextengine.schemas.codec import decode, encode
from contextengine.schemas.events import TurnEnded
from contextengine.topics.catalogue import catalogue


def poison(number, chance):
    """A record that is no event; no two are equal."""
    whole = encode(TurnEnded(session_id=f"nobody-{number}", producer="p", incarnation=0, seq=0, at_ms=0, speaker="x",
                             known_ms=0))  # fmt: skip
    broken = (
        chance.randbytes(chance.randrange(8, 2_000)),
        whole[: -chance.randrange(1, 5)] + b"%d" % number * 40,
        whole[:2] + chance.randbytes(8) + whole[10:],
        whole,  # in the wrong partition, under the wrong key
        b"%d" % number,
    )
    return broken[number % len(broken)]


async def set_max_bytes(settings, topic, limit):
    """How large a record of this topic may be from now on; its other settings stay."""
    admin = AIOKafkaAdminClient(**settings.kafka_client())
    await admin.start()
    try:
        wanted = topic.config() | {"max.message.bytes": str(limit)}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic.name, wanted)])
    finally:
        await admin.close()


async def committed(settings, group, topic):
    """What a group has committed, by partition."""
    admin = AIOKafkaAdminClient(**settings.kafka_client())
    await admin.start()
    try:
        partitions = [TopicPartition(topic.name, number) for number in range(topic.partitions)]
        offsets = await admin.list_consumer_group_offsets(group, partitions=partitions)
        return {tp.partition: found.offset for tp, found in offsets.items()}
    finally:
        await admin.close()


async def test_poison_in_every_tenth_place_is_buried_unchanged_and_holds_nobody_up(
    kafka, tmp_path, base, full, figures
):
    """A thousand records in ten thousand (in the short form a hundred in a thousand) are no events."""
    chance = random.Random(20260101)  # noqa: S311
    poisons = [poison(number, chance) for number in range(1_000 if full else 100)]
    async with Fleet(kafka, tmp_path) as fleet:
        topics = catalogue(fleet.settings)
        async with (
            fleet.under(base) as talk,
            AIOKafkaProducer(**fleet.settings.kafka_client()) as producer,
        ):
            for number, value in enumerate(poisons):
                await producer.send_and_wait(topics.events.name, value, b"poison", partition=number % 12)
                await asyncio.sleep(10 / base.events_per_s)
        proof = await verify(fleet, talk)
        dead = Counter(record.value for record in await read_raw(fleet.settings, topics.dead))
        decisions = await read_raw(fleet.settings, topics.decisions)
    stalls_ms = sorted(record.timestamp - decode(record.value).now_ms for record in decisions)
    stall_ms = stalls_ms[-1]
    events = proof.report.events
    figures |= {"poison": len(poisons), "events": events, "dead letters": dead.total(), "stall ms": stall_ms}
    assert dead == Counter(poisons)
    figures["its p99 ms"] = stalls_ms[len(stalls_ms) * 99 // 100]
    assert stall_ms <= (1_000 if full else 3_000), "the short form runs beside others"


async def test_a_dead_letter_that_cannot_be_written_halts_its_partition_until_it_can(kafka, tmp_path, base, figures):
    """It is not committed, its worker says so and is not ready, the others go on; its restart then mends it."""
    async with Fleet(kafka, tmp_path) as fleet:
        topics, group = catalogue(fleet.settings), fleet.settings.worker_group
        async with fleet.under(base) as talk:
            await write(fleet.settings, topics.events, b"no event either", partition=5)
            await asyncio.sleep(3)
            await set_max_bytes(fleet.settings, topics.dead, 100)
            (offset,) = await write(fleet.settings, topics.events, b"no event", partition=5)

            async def halted():
                return [w for w in fleet.workers if await w.metric("contextengine_halted_partitions")]

            await until(halted, within_s=30)
            [owner] = await halted()
            before = await committed(fleet.settings, group, topics.events)
            await asyncio.sleep(3)
            after = await committed(fleet.settings, group, topics.events)
            ready = [await worker.is_ready() for worker in fleet.workers]
            await set_max_bytes(fleet.settings, topics.dead, topics.dead.max_message_bytes)
            await owner.stop()
            await owner.start()
        proof = await verify(fleet, talk)
        dead = await read_raw(fleet.settings, topics.dead)
    figures |= {"injections": proof.injections, "attempts twice": proof.attempt_copies}
    assert after[5] == before[5] <= offset
    assert all(after[number] > before[number] for number in range(12) if number != 5)
    assert ready == [worker is not owner for worker in fleet.workers]
    assert f"{topics.dead.name} partition 5 refuses" in owner.said
    assert {record.value for record in dead} == {b"no event", b"no event either"}
