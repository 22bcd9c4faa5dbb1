from __future__ import annotations

from typing import Any, Literal, NotRequired, Required, TypedDict

import pytest
from openai.types.realtime import RealtimeClientEventParam, RealtimeServerEvent

from contextengine.adapters.simulators.sdk_types import PayloadMismatch, PayloadType

CLIENT_EVENT = PayloadType(RealtimeClientEventParam)


def item_create(**item: Any) -> dict[str, Any]:
    message = {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "VIP"}]}
    return {"type": "conversation.item.create", "item": message | item}


def session_update(**session: Any) -> dict[str, Any]:
    return {"type": "session.update", "session": {"type": "realtime", **session}}


@pytest.mark.parametrize(
    "frame",
    [
        item_create(),
        item_create(id="abc", status="completed", object="realtime.item"),
        item_create(role="user", content=[{"type": "input_audio", "audio": "AAAA", "transcript": "hello"}]),
        item_create() | {"event_id": "e1", "previous_item_id": "root"},
        {"type": "conversation.item.retrieve", "item_id": "abc"},
        {"type": "response.create"},
        {"type": "response.create", "response": {"metadata": {"say_00": "Hello"}, "max_output_tokens": "inf"}},
        {"type": "response.create", "response": {"metadata": None, "max_output_tokens": 7, "input": []}},
        session_update(instructions="Be brief.", tracing=None, tool_choice="auto"),
        session_update(audio={"output": {"speed": 1}, "input": {"turn_detection": {"type": "semantic_vad"}}}),
        session_update(tools=[{"type": "function", "name": "f", "parameters": {"type": "object"}}]),
    ],
)
def test_a_frame_that_the_sdk_could_send_passes(frame):
    CLIENT_EVENT.check(frame)


@pytest.mark.parametrize(
    ("frame", "path", "problem"),
    [
        (item_create() | {"silent": True}, "silent", "is no field of ConversationItemCreateEventParam"),
        (item_create(name="VIP"), "item.name", "is no field of RealtimeConversationItemSystemMessageParam"),
        (item_create(content="VIP"), "item.content", "is a string, must be an array"),
        (item_create(content=[{"type": "input_text", "text": 7}]), "item.content[0].text", "is a number, must be"),
        (item_create(content=[{"type": "text"}]), "item.content[0].type", "must be one of 'input_text'"),
        (item_create(content=[{"text": "a"}, "b"]), "item.content[1]", "is a string, must be an object"),
        (item_create(role="developer"), "item.role", "none that can stand here"),
        (item_create(type="note"), "item.type", "none that can stand here"),
        ({"type": "conversation.item.create"}, "item", "is missing"),
        ({"item": {}}, "type", "is missing"),
        ({"type": "conversation.item.make"}, "type", "none that can stand here"),
        ({"type": "conversation.item.retrieve", "item_id": None}, "item_id", "is null, must be a string"),
        ({"type": "response.create", "response": {"metadata": {"n": 1}}}, "response.metadata.n", "is a number"),
        ({"type": "response.create", "response": {"parallel_tool_calls": 1}}, "response.parallel_tool_calls", "a bool"),
        (session_update(max_output_tokens=True), "session.max_output_tokens", "is a boolean"),
        (session_update(max_output_tokens=1.5), "session.max_output_tokens", "an integer"),
        (session_update(audio={"input": {"turn_detection": {"type": "server_vad", "loud": 1}}}), None, "ServerVad"),
        ([], "", "is an array, must be an object"),
    ],
)
def test_a_wrong_frame_is_refused_with_the_path_of_what_is_wrong(frame, path, problem):
    with pytest.raises(PayloadMismatch) as refusal:
        CLIENT_EVENT.check(frame)
    assert problem in str(refusal.value)
    assert path in {None, refusal.value.path}


def test_server_events_are_checked_as_strictly_as_client_events():
    """The SDK's server models allow unknown keys; the check does not."""
    server_event = PayloadType(RealtimeServerEvent)
    deleted = {"type": "conversation.item.deleted", "event_id": "e", "item_id": "i"}
    server_event.check(deleted)
    with pytest.raises(PayloadMismatch, match=r"item: is no field of ConversationItemDeletedEvent"):
        server_event.check(deleted | {"item": {}})


class Tree(TypedDict, total=False):
    """A type that contains itself."""

    kind: Required[Literal["tree"]]
    branches: list[Tree]


class Total(TypedDict):
    """A type whose annotations are strings, as in this whole module."""

    must: int
    may: NotRequired[float]


def test_a_type_may_contain_itself():
    tree = PayloadType(Tree)
    tree.check({"kind": "tree", "branches": [{"kind": "tree", "branches": []}]})
    with pytest.raises(PayloadMismatch, match=r"branches\[0\]\.kind: is missing"):
        tree.check({"kind": "tree", "branches": [{}]})


def test_required_keys_are_right_under_postponed_annotations():
    total = PayloadType(Total)
    total.check({"must": 1})
    total.check({"must": 1, "may": 2})
    with pytest.raises(PayloadMismatch, match="must: is missing"):
        total.check({"may": 1.5})


def test_a_type_that_cannot_be_checked_is_refused_at_once():
    """Passing everything silently is the fault that this check exists to end."""
    with pytest.raises(TypeError, match="no check is known"):
        PayloadType(list[set[int]])
