"""The demo's VoiceEngine in a call at the simulator."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from openai import AsyncOpenAI

from contextengine.adapters.simulators.openai_realtime import RealtimeSimulator
from contextengine.demo.run import PROMPTED, _say
from contextengine.demo.timing import Conversation, Turn
from contextengine.demo.voice_engine import Call
from contextengine.schemas.events import ASSISTANT, USER

SPEED = 20.0
TALK = Conversation(
    name="talk",
    origin="people",
    source="",
    licence="",
    facts={"goal": "a test"},
    turns=[Turn(USER, "hello there"), Turn(ASSISTANT, "hello you"), Turn(USER, "bye", at="0:20")],
)


class Published:
    """Stands for the publisher: what the VoiceEngine publishes of its one session."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict]] = []

    def session(self, _: str) -> Published:
        """Be that session's publisher too."""
        return self

    def publish(self, event: type, **fields: object) -> None:
        """Keep it."""
        self.events.append((event.__name__, fields))

    async def flush(self) -> int:
        """Nothing is missing."""
        return 0

    def texts(self) -> list[tuple[object, object]]:
        """Who has said what, in order."""
        return [(fields["speaker"], fields["text"]) for name, fields in self.events if name == "MessageCompleted"]


@pytest.fixture
async def simulator():
    async with RealtimeSimulator(model_says=_say) as simulator:
        yield simulator


@pytest.fixture
async def client(simulator):
    async with AsyncOpenAI(base_url=simulator.base_url, api_key="k", max_retries=0) as client:
        yield client


async def play(client, published, asked=lambda _: None) -> None:
    async with asyncio.timeout(10):
        await Call(TALK, published, SPEED, asked).play(client)


async def until(holds: Callable[[], bool]) -> None:
    """Wait until it does."""
    while not holds():
        await asyncio.sleep(0.001)


async def sideband(client, simulator):
    """Another leg of the call, as soon as it is open."""
    await until(lambda: "rtc_talk" in simulator.calls)
    return client.realtime.connect(call_id="rtc_talk", websocket_connection_options={"close_timeout": 0.1})


async def test_a_call_is_told_from_its_start_to_its_end_turn_by_turn(client, simulator):
    published = Published()
    await play(client, published)
    names = [name for name, _ in published.events if name != "AudioChunkReceived"]
    user = ["TurnStarted", "TurnEnded", "MessageCompleted"]
    model = ["GenerationStarted", "ResponseStarted", "PlaybackStarted", "TurnStarted", "ResponseCompleted"]
    model += ["PlaybackEnded", "TurnEnded", "MessageCompleted"]
    assert names == ["SessionStarted", *user, *model, *user, "SessionEnded"]
    start = published.events[0][1]
    assert (start["call_id"], start["time_scale"], start["facts"]) == ("rtc_talk", SPEED, {"goal": "a test"})
    assert published.texts() == [(USER, "hello there"), (ASSISTANT, "hello you"), (USER, "bye")]
    assert simulator.violations == []


async def test_what_another_leg_puts_into_the_call_is_heard_to_be_in_context_at_the_next_turn(client, simulator):
    asked = []
    playing = asyncio.create_task(play(client, Published(), asked.append))
    async with await sideband(client, simulator) as leg:
        item = {"type": "message", "role": "system", "id": "i1", "content": [{"type": "input_text", "text": "be kind"}]}
        await leg.conversation.item.create(item=item)
        await playing
    assert [("i1" in turn.item_ids) for turn in asked] == [True]
    assert [list(turn.item_ids) for turn in asked] == [turn.item_ids for turn in simulator.calls["rtc_talk"].turns]


async def test_a_turn_that_another_leg_asks_for_is_played_and_told_as_any_other(client, simulator):
    published = Published()
    playing = asyncio.create_task(play(client, published))
    async with await sideband(client, simulator) as leg:
        await until(lambda: (ASSISTANT, "hello you") in published.texts())
        await leg.response.create()
        await playing
    assert published.texts() == [(USER, "hello there"), (ASSISTANT, "hello you"), (ASSISTANT, PROMPTED), (USER, "bye")]


async def test_the_model_is_asked_again_when_it_was_saying_something_for_somebody_else(client, simulator):
    simulator.word_ms = 20
    published = Published()
    playing = asyncio.create_task(play(client, published))
    async with await sideband(client, simulator) as leg:
        await until(lambda: (USER, "hello there") in published.texts())
        await leg.response.create()
        await playing
    assert sorted(published.texts()) == sorted(
        [(USER, "hello there"), (ASSISTANT, PROMPTED), (ASSISTANT, "hello you"), (USER, "bye")]
    )
