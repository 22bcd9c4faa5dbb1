"""What the tests of outages measure: how soon contexts flow again, and how much memory grows meanwhile."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from broker_log import until
from fleet import PROVIDER, Conversations, Fleet

from contextengine.schemas.events import ATTACH, USER, MessageCompleted, SessionEnded, SessionStarted

PROBES: Final = 20


async def flowing_s(fleet: Fleet, load: Conversations, within_s: float = 60.0) -> float:
    """Seconds until the provider has a context for what is said from now on, in each of some new conversations.

    They go the way of all others, behind what waits in the publisher; they are in most of the partitions.
    """
    began_s = time.monotonic()
    run = uuid.uuid4().hex[:8]
    calls = {f"rtc_{run}-{number}" for number in range(PROBES)}
    for call_id in calls:
        session = load.publisher.session(call_id.removeprefix("rtc_"))
        fleet.provider.open_call(call_id)
        session.publish(SessionStarted, provider=PROVIDER, model="gpt-realtime", route=ATTACH, call_id=call_id)
        session.publish(MessageCompleted, speaker=USER, text="ping")
    await until(lambda: all(fleet.provider.calls[call_id].items for call_id in calls), within_s)
    took_s = time.monotonic() - began_s
    for call_id in calls:
        load.publisher.session(call_id.removeprefix("rtc_")).publish(SessionEnded, reason="hangup")
    return took_s


@asynccontextmanager
async def watched_memory(fleet: Fleet) -> AsyncIterator[dict[str, float]]:
    """How much the memory of each process has grown at most (MiB), from the beginning of the block on; by name."""
    before = {process.name: process.memory_mib for process in fleet.processes}
    grown = dict.fromkeys(before, 0.0)

    async def watch() -> None:
        while True:
            for process in fleet.processes:
                grown[process.name] = max(grown[process.name], process.memory_mib - before[process.name])
            await asyncio.sleep(0.5)

    watching = asyncio.create_task(watch())
    try:
        yield grown
    finally:
        watching.cancel()
