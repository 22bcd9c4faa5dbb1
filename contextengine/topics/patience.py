"""A rest between two questions that nobody answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from aiokafka.client import AIOKafkaClient

REST_S: Final = 0.2


def be_patient(client: AIOKafkaClient) -> None:
    """Have a client rest after it has asked in vain where its topics are.

    aiokafka 0.14's producer asks again at once while it knows no leader of a partition, which is what a broker that
    ends in order leaves it with: a whole core, and 4,000 log lines a second, until the broker is back.
    """
    update = client._metadata_update  # noqa: SLF001

    async def update_or_rest(*arguments: Any) -> bool:
        updated: bool = await update(*arguments)
        if not updated:
            await asyncio.sleep(REST_S)
        return updated

    client._metadata_update = update_or_rest  # noqa: SLF001
