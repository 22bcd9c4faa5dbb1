"""A producer without a broker does not spin."""

from __future__ import annotations

import asyncio
import logging

from aiokafka import AIOKafkaProducer

from contextengine.broker import EmbeddedBroker
from contextengine.topics.patience import REST_S, be_patient


async def test_a_producer_that_knows_no_leader_asks_a_few_times_a_second(caplog):
    """As a broker leaves it that ends in order: without leaders, then gone."""
    with EmbeddedBroker() as broker:
        producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap)
        be_patient(producer)
        await producer.start()
    producer.client.force_metadata_update()
    caplog.set_level(logging.ERROR, "aiokafka")

    async def asks_again_and_again() -> None:
        while True:  # as its sender does
            await producer.client.force_metadata_update()

    asking = asyncio.create_task(asks_again_and_again())
    await asyncio.sleep(5 * REST_S)
    asking.cancel()
    await producer.stop()
    asked = sum("Unable to update metadata" in record.getMessage() for record in caplog.records)
    assert 1 < asked < 10
