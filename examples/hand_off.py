"""Taking injections into a conversation that this process owns: `python examples/hand_off.py [HOST:PORT]`."""

from __future__ import annotations

import asyncio
import sys

from contextengine.errors import ContextEngineError
from contextengine.schemas.events import HAND_OFF, MessageCompleted, SessionStarted, TurnEnded
from contextengine.schemas.injection import Verdict
from contextengine.settings import load
from contextengine.streaming.injections import Injections
from contextengine.topics.publisher import Publisher

WAIT_S = 20


async def main(broker: str | None = None) -> None:
    """Hold a chat of one message, and take what is injected into it; TimeoutError when nothing is."""
    settings = load(broker=broker)
    async with Publisher(settings, name="my-text-chat") as publisher, Injections(settings) as injections:
        await injections.watch("chat-7")  # before SessionStarted, so that nothing is missed
        chat = publisher.session("chat-7")
        chat.publish(SessionStarted, provider="local", model="my-model", route=HAND_OFF, modality="text")
        chat.publish(MessageCompleted, speaker="user", text="I need a hotel for two nights")
        chat.publish(TurnEnded, speaker="user", known_ms=0)
        async with asyncio.timeout(WAIT_S):
            attempt = await anext(injections)  # a service would go on: async for attempt in injections
        print(attempt.injection.context.render())  # put this into your model's next request
        await injections.report(attempt, Verdict.DELIVERED)


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:2]))
    except TimeoutError:
        sys.exit(
            f"nothing was injected within {WAIT_S} s: is a worker running, with a rule that fires on `hotel`? "
            "`contextengine tail decisions --from-start` says what fired, and what was held back"
        )
    except ContextEngineError as error:
        sys.exit(f"error: {error}")
