"""The simulator, driven with the official SDK. Every frame that a `Leg` reads is checked against the SDK's types."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import pytest
from openai import AsyncOpenAI
from openai.types.realtime import RealtimeServerEvent
from websockets.exceptions import ConnectionClosed, InvalidStatus

from contextengine.adapters.simulators.openai_realtime import NONSENSE, Fault, FaultKind, RealtimeSimulator
from contextengine.adapters.simulators.realtime_conversation import words_to_say
from contextengine.adapters.simulators.sdk_types import PayloadType

SERVER_EVENT = PayloadType(RealtimeServerEvent)
CALL = "rtc_alice"


class Leg:
    """One socket of a call."""

    def __init__(self, connection):
        self.connection = connection

    async def event(self) -> dict[str, Any]:
        """The next server event."""
        async with asyncio.timeout(2):
            event = json.loads(await self.connection.recv_bytes())
        SERVER_EVENT.check(event)
        return event

    async def until(self, kind: str) -> list[dict[str, Any]]:
        """The server events up to and with the first of this type."""
        events = [await self.event()]
        while events[-1]["type"] != kind:
            events.append(await self.event())
        return events

    async def hears_nothing(self) -> bool:
        """Whether a while passes without a server event."""
        try:
            async with asyncio.timeout(0.1):
                await self.connection.recv_bytes()
        except TimeoutError:
            return True
        return False

    async def is_closed_with(self) -> int | None:
        """The close code that the peer sent; None for a connection that just ended."""
        try:
            async with asyncio.timeout(2):
                while True:
                    await self.connection.recv_bytes()
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else None

    async def tells(self, text: str, *, item_id: str, **options: Any) -> None:
        """Add a system message."""
        item = {"type": "message", "role": "system", "id": item_id, "content": [{"type": "input_text", "text": text}]}
        await self.connection.conversation.item.create(item=item, **options)


@pytest.fixture
async def simulator():
    async with RealtimeSimulator(word_ms=1) as simulator:
        yield simulator


@pytest.fixture
async def join(simulator):
    """Joins a call through the official SDK."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(AsyncOpenAI(base_url=simulator.base_url, api_key="k", max_retries=0))

        async def join(call_id: str = CALL, **options: Any) -> Leg:
            leg = Leg(await stack.enter_async_context(client.realtime.connect(call_id=call_id, **options)))
            assert (await leg.event())["type"] == "session.created"
            return leg

        yield join


@pytest.fixture
async def call(simulator):
    """A call that is open; the test joins it."""
    return simulator.open_call(CALL)


async def test_a_created_item_is_told_to_every_socket_of_the_call(call, join):
    voice_engine, sideband = await join(), await join()
    await sideband.tells("VIP", item_id="a")
    for leg in voice_engine, sideband:
        added, done = await leg.event(), await leg.event()
        assert [added["type"], done["type"]] == ["conversation.item.added", "conversation.item.done"]
        assert added["item"]["id"] == done["item"]["id"] == "a"
    assert [item["id"] for item in call.items] == ["a"]


async def test_an_item_without_an_id_gets_one(call, join):
    leg = await join()
    await leg.connection.conversation.item.create(item={"type": "message", "role": "user", "content": []})
    assert (await leg.event())["item"]["id"] == call.items[0]["id"]


async def test_items_go_where_previous_item_id_says(call, join):
    leg = await join()
    await leg.tells("first", item_id="a")
    await leg.tells("last", item_id="b")
    await leg.tells("root", item_id="r", previous_item_id="root")
    await leg.tells("middle", item_id="m", previous_item_id="a")
    events = [await leg.event() for _ in range(8)]
    assert events[-1]["previous_item_id"] == "a"
    assert [item["id"] for item in call.items] == ["r", "a", "m", "b"]


@pytest.mark.usefixtures("call")
@pytest.mark.parametrize(
    ("event", "code"),
    [
        ({"type": "conversation.item.delete", "item_id": "x"}, "item_delete_invalid_item_id"),
        ({"type": "conversation.item.retrieve", "item_id": "x"}, "item_retrieve_invalid_item_id"),
        ({"type": "response.cancel"}, "response_cancel_not_active"),
        ({"type": "input_audio_buffer.commit"}, "not_simulated"),
    ],
)
async def test_what_cannot_be_done_is_an_error_that_names_the_client_event(simulator, join, event, code):
    asker, other = await join(), await join()
    await asker.connection.send(event | {"event_id": "mine"})
    error = (await asker.event())["error"]
    assert (error["code"], error["event_id"], error["type"]) == (code, "mine", "invalid_request_error")
    assert await other.hears_nothing()
    assert simulator.violations == []


async def test_a_taken_id_and_an_unknown_previous_item_are_errors(call, join):
    leg = await join()
    await leg.tells("one", item_id="a")
    await leg.until("conversation.item.done")
    await leg.tells("two", item_id="a")
    assert "already exists" in (await leg.event())["error"]["message"]
    await leg.tells("three", item_id="c", previous_item_id="x")
    assert (await leg.event())["error"]["param"] == "previous_item_id"
    assert [item["id"] for item in call.items] == ["a"]


async def test_an_item_can_be_retrieved_by_the_one_who_asks_and_deleted_for_all(call, join):
    asker, other = await join(), await join()
    await asker.tells("VIP", item_id="a")
    await asker.until("conversation.item.done")
    await other.until("conversation.item.done")
    await asker.connection.conversation.item.retrieve(item_id="a")
    assert (await asker.event())["item"]["content"] == [{"type": "input_text", "text": "VIP"}]
    await asker.connection.conversation.item.delete(item_id="a")
    assert (await asker.event())["item_id"] == (await other.event())["item_id"] == "a"
    assert call.items == []


async def test_a_turn_shows_what_the_model_saw_when_it_was_asked(call, join):
    leg = await join()
    await leg.tells("VIP", item_id="a")
    await leg.connection.response.create(response={"metadata": words_to_say("Welcome back, Alice.")})
    await leg.until("response.created")
    await leg.tells("late", item_id="b")
    await leg.until("response.done")
    await leg.connection.response.create()
    await leg.until("response.done")
    assert call.turns[0].item_ids == ["a"]
    assert call.turns[0].items[0]["content"][0]["text"] == "VIP"
    assert "b" in call.turns[1].item_ids


@pytest.mark.parametrize(
    ("modality", "delta"),
    [("audio", "response.output_audio_transcript.delta"), ("text", "response.output_text.delta")],
)
async def test_the_model_says_the_words_that_the_metadata_carries(call, join, modality, delta):
    leg, words = await join(), "Good evening. " * 60 + "How are you?"
    await leg.connection.response.create(
        response={"metadata": words_to_say(words), "output_modalities": [modality], "instructions": "Be kind."}
    )
    events = await leg.until("response.done")
    assert [events[0]["type"], events[-1]["response"]["status"]] == ["response.created", "completed"]
    assert "".join(event["delta"] for event in events if event["type"] == delta) == words
    assert words in call.items[0]["content"][0].values()
    assert call.turns[0].instructions == "Be kind."


async def test_a_second_response_waits_for_the_first_unless_it_is_out_of_band(simulator, call, join):
    simulator.word_ms = 30
    leg = await join()
    await leg.connection.response.create(response={"metadata": words_to_say("one two three")})
    await leg.connection.response.create(event_id="second")
    error = (await leg.until("error"))[-1]["error"]
    assert (error["code"], error["event_id"]) == ("conversation_already_has_active_response", "second")
    await leg.connection.response.create(response={"conversation": "none", "input": []})
    await leg.until("response.done")
    await leg.until("response.done")
    assert len(call.items) == 1
    assert [turn.items for turn in call.turns] == [(), ()]


async def test_a_cancelled_response_keeps_what_was_said_until_then(simulator, call, join):
    simulator.word_ms = 20
    leg = await join()
    await leg.connection.response.create(response={"metadata": words_to_say("one two three four five six seven")})
    await leg.until("response.output_audio_transcript.delta")
    await leg.connection.response.cancel()
    done = (await leg.until("response.done"))[-1]["response"]
    assert done["status"] == "cancelled"
    assert done["output"][0]["content"][0]["transcript"].startswith("one")
    await leg.connection.conversation.item.truncate(item_id=call.items[0]["id"], content_index=0, audio_end_ms=9)
    assert (await leg.event())["audio_end_ms"] == 9
    assert call.items[0]["content"] == [{"type": "output_audio"}]


@pytest.mark.usefixtures("call")
async def test_a_session_can_be_updated(join):
    leg = await join()
    await leg.connection.session.update(session={"type": "realtime", "instructions": "Be brief."})
    updated = await leg.event()
    assert updated["session"]["instructions"] == "Be brief."
    assert updated["session"]["model"] == "gpt-realtime"


@pytest.mark.usefixtures("call")
@pytest.mark.parametrize(
    ("frame", "path"),
    [
        ('{"type": "conversation.item.create", "event_id": "mine", "item": {"type": "message"}}', "item.role"),
        ('{"type": "response.create", "event_id": "mine", "silent": true}', "silent"),
        ('{"event_id": "mine"}', "type"),
        ("{", "not JSON"),
        ("[]", "object"),
        (b"{}", "binary"),
    ],
)
async def test_a_wrong_frame_is_an_error_and_a_violation(simulator, join, frame, path):
    leg = await join()
    await leg.connection.send_raw(frame)
    error = (await leg.event())["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_value")
    assert path in error["message"]
    assert error["event_id"] == ("mine" if "mine" in str(frame) else None)
    assert len(simulator.violations) == 1
    assert path in simulator.violations[0]


async def test_limits_that_are_not_in_the_types_are_enforced_too(simulator, call, join):
    leg = await join()
    await leg.tells("VIP", item_id="f" * 33)
    assert "maximum length 32" in (await leg.event())["error"]["message"]
    await leg.connection.response.create(response={"metadata": {"say": "a" * 513}})
    assert "response.metadata" in (await leg.event())["error"]["message"]
    assert len(simulator.violations) == 2
    assert call.items == []


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ({"call_id": "rtc_nobody"}, {}, 404),
        ({"call_id": CALL}, {"Authorization": ""}, 401),
        ({"call_id": CALL}, {"Authorization": "Bearer wrong"}, 401),
        ({"call_id": CALL, "model": "m"}, {}, 400),
        ({}, {}, 400),
    ],
)
async def test_a_handshake_without_call_or_key_is_refused(query, headers, status):
    async with (
        RealtimeSimulator(api_key="right") as simulator,
        AsyncOpenAI(base_url=simulator.base_url, api_key="right") as client,
    ):
        simulator.open_call(CALL)
        with pytest.raises(InvalidStatus) as refusal:
            await client.realtime.connect(extra_query=query, extra_headers=headers).enter()
    assert refusal.value.response.status_code == status
    assert "error" in json.loads(refusal.value.response.body)


async def test_a_call_ends_with_its_media_leg(simulator, join):
    media = await join(model="gpt-realtime")
    sideband = await join()
    await media.connection.close()
    assert await sideband.is_closed_with() == 1000
    with pytest.raises(InvalidStatus):
        await join()
    assert not simulator.calls[CALL].is_open


@pytest.mark.usefixtures("call")
async def test_closing_a_call_closes_its_sockets_in_mid_speech(simulator, join):
    simulator.word_ms = 1_000
    leg = await join()
    await leg.connection.response.create()
    await leg.until("response.created")
    await simulator.close_call(CALL)
    assert await leg.is_closed_with() == 1000


async def test_faults_meet_the_next_creations_and_then_end(simulator, call, join):
    leg = await join()
    simulator.fail_next(Fault(FaultKind.REFUSE, code="rate_limit_exceeded"), times=2)
    for number in range(3):
        await leg.tells("VIP", item_id=f"i{number}", event_id=f"e{number}")
    errors = [(await leg.event())["error"] for _ in range(2)]
    assert [error["event_id"] for error in errors] == ["e0", "e1"]
    assert {error["code"] for error in errors} == {"rate_limit_exceeded"}
    assert (await leg.event())["item"]["id"] == "i2"
    assert [item["id"] for item in call.items] == ["i2"]


@pytest.mark.parametrize(("kind", "in_context"), [(FaultKind.LOSE, []), (FaultKind.MUTE, ["a"])])
async def test_a_creation_can_stay_unanswered_with_and_without_effect(simulator, call, join, kind, in_context):
    leg = await join()
    simulator.fail_next(Fault(kind))
    await leg.tells("VIP", item_id="a")
    assert await leg.hears_nothing()
    assert [item["id"] for item in call.items] == in_context


@pytest.mark.usefixtures("call")
async def test_a_slow_acknowledgement_comes_after_its_latency(simulator, join):
    leg = await join()
    simulator.fail_next(Fault(FaultKind.SLOW, latency_ms=50))
    await leg.tells("VIP", item_id="a")
    started = asyncio.get_running_loop().time()
    await leg.until("conversation.item.done")
    assert asyncio.get_running_loop().time() - started >= 0.04


@pytest.mark.parametrize("close_code", [None, 1000, 1011])
@pytest.mark.parametrize(
    ("kind", "in_context", "acknowledged"),
    [
        (FaultKind.DROP_UNSEEN, [], False),
        (FaultKind.DROP_UNACKED, ["a"], False),
        (FaultKind.DROP_ACKED, ["a"], True),
    ],
)
async def test_a_connection_can_end_around_a_creation(
    simulator, call, join, kind, in_context, acknowledged, close_code
):
    leg = await join()
    simulator.fail_next(Fault(kind, close_code=close_code))
    await leg.tells("VIP", item_id="a")
    if acknowledged:
        await leg.until("conversation.item.done")
    assert await leg.is_closed_with() == close_code
    assert [item["id"] for item in call.items] == in_context
    assert simulator.calls[CALL].is_open


async def test_a_creation_can_be_answered_with_nonsense(simulator, call, join):
    leg = await join()
    simulator.fail_next(Fault(FaultKind.NONSENSE))
    await leg.tells("VIP", item_id="a")
    frames = [await leg.connection.recv_bytes() for _ in NONSENSE]
    assert frames == [frame if isinstance(frame, bytes) else frame.encode() for frame in NONSENSE]
    assert call.items == []


async def test_nothing_is_left_running_when_the_simulator_stops_in_mid_speech():
    before = asyncio.all_tasks()
    async with RealtimeSimulator(word_ms=1_000) as simulator:
        client = AsyncOpenAI(base_url=simulator.base_url, api_key="k")
        leg = Leg(await client.realtime.connect(model="gpt-realtime").enter())
        await leg.connection.response.create()
        await leg.until("response.content_part.added")
        simulator.fail_next(Fault(FaultKind.SLOW, latency_ms=60_000))
        await leg.tells("VIP", item_id="a")
        assert await leg.hears_nothing()
    assert await leg.is_closed_with() == 1000
    await client.close()
    assert asyncio.all_tasks() - before == set()
