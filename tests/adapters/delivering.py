"""A delivery consumer in a task, and an adapter that does what a test tells it."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager

from an_attempt import an_attempt
from broker_log import until

from contextengine.adapters.adapter import Capabilities
from contextengine.adapters.consumer import PARTITIONS, deliver
from contextengine.monitoring.health import Health
from contextengine.schemas.injection import AttemptVerdict, Confirmation, Verdict


def now_ms():
    return time.time_ns() // 1_000_000


def attempt_for(session_id, name, *, attempt=1, lives_ms=60_000, timeout_ms=5_000, provider="fake", route="attach"):
    """An attempt to put a context into a session, whose injection's id is `name`."""
    now = now_ms()
    life = {"trigger_ms": now, "deadline_ms": now + lives_ms}
    return an_attempt(session_id, name, attempt=attempt, provider=provider, route=route, timeout_ms=timeout_ms, **life)


class FakeAdapter:
    """Delivers, and remembers what it was asked to send; `behave` may do something else with an attempt."""

    provider = "fake"
    capabilities = Capabilities(
        append_silently=True,
        replace=False,
        retract=False,
        acknowledge=True,
        interrupts_generation=False,
        maximum_bytes=1_000,
    )

    def __init__(self, behave=None):
        self.sent = []
        self.timeouts = []
        self.behave = behave

    def render(self, attempt):
        """The context's text."""
        return attempt.injection.context.render()

    async def send(self, attempt, payload, timeout_s):  # noqa: ARG002  nobody receives it
        """What `behave` says, or a delivery."""
        self.sent.append(attempt.injection.injection_id)
        self.timeouts.append(timeout_s)
        if self.behave is not None:
            told = await self.behave(attempt)
            if told is not None:
                return told
        return self._delivered(attempt)

    async def find(self, attempt, timeout_s):  # noqa: ARG002  it knows at once
        """A delivery of what was sent before."""
        return self._delivered(attempt) if attempt.injection.injection_id in self.sent else None

    def _delivered(self, attempt):
        return AttemptVerdict(
            session_id=attempt.session_id,
            injection_id=attempt.injection.injection_id,
            attempt=attempt.attempt,
            verdict=Verdict.DELIVERED,
            provider=self.provider,
            confirmation=Confirmation.IN_CONTEXT,
            achieved="native",
            sent_ms=now_ms(),
            answered_ms=now_ms(),
        )

    async def close(self):
        """Nothing is open."""


@asynccontextmanager
async def delivering(settings, *adapters):
    """A delivery consumer that is ready. It ends in order; a test that wants a crash cancels what this yields."""
    health, stop = Health(PARTITIONS), asyncio.Event()
    running = asyncio.create_task(deliver(settings, {adapter.provider: adapter for adapter in adapters}, health, stop))
    try:
        await until(lambda: running.done() or health.ready()["ready"])
        if running.done():
            running.result()
        yield running
        stop.set()
        await running
    except asyncio.CancelledError:
        if not running.cancelled():
            raise
    finally:
        running.cancel()
        await asyncio.wait([running])
