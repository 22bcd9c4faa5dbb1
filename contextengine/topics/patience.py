"""What aiokafka 0.14's producer needs to outlast an absence of the broker."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from aiokafka import AIOKafkaProducer

REST_S: Final = 0.2


def be_patient(producer: AIOKafkaProducer) -> None:
    """Have a producer that is not started yet wait for the leaders of its partitions, however long they are away.

    A broker that ends in order leaves it without them. By itself it asks for them again at once: a whole core, and
    4,000 log lines a second. And it gives up a batch that has waited for as long as a request may take, whose sequence
    number is then missing: an idempotent producer's next batch is refused for ever (OutOfOrderSequenceNumber).
    """
    producer._message_accumulator._batch_ttl = math.inf  # noqa: SLF001
    client = producer.client
    update = client._metadata_update  # noqa: SLF001

    async def update_or_rest(*arguments: Any) -> bool:
        updated: bool = await update(*arguments)
        if not updated:
            await asyncio.sleep(REST_S)
        return updated

    client._metadata_update = update_or_rest  # noqa: SLF001
