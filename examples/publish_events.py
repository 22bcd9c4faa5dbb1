"""Publishing a conversation's events from a VoiceEngine: `python examples/publish_events.py [HOST:PORT]`."""

from __future__ import annotations

import asyncio
import sys

from contextengine.errors import ContextEngineError
from contextengine.schemas.events import MessageCompleted, SessionEnded, SessionStarted, TurnEnded, TurnStarted
from contextengine.settings import load
from contextengine.topics.publisher import Publisher


async def main(broker: str | None = None) -> int:
    """Publish a short call, as a VoiceEngine would while it goes on; returns how many events did not arrive."""
    async with Publisher(load(broker=broker), name="my-voice-engine") as publisher:
        session = publisher.session("call-42")
        session.publish(SessionStarted, provider="openai_realtime", model="gpt-realtime", call_id="rtc_42")
        session.publish(TurnStarted, speaker="user", known_ms=0)  # publish() returns at once, whatever the broker does
        session.publish(MessageCompleted, speaker="user", text="I need a hotel for two nights")
        session.publish(TurnEnded, speaker="user", known_ms=0)
        session.publish(SessionEnded, reason="hangup")
    return publisher.dropped.total()


if __name__ == "__main__":
    try:
        lost = asyncio.run(main(*sys.argv[1:2]))
    except ContextEngineError as error:
        sys.exit(f"error: {error}")
    if lost:
        sys.exit(f"{lost} events were not acknowledged: does a broker run, with topics (`contextengine topics apply`)?")
