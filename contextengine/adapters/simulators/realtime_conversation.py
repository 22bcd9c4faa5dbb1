"""A conversation of the simulated OpenAI Realtime service: its items in order and its model's turns. No I/O.

    | client event               | answer                                  | refused when                |
    |----------------------------|-----------------------------------------|-----------------------------|
    | conversation.item.create   | item.added, item.done                   | id taken; previous unknown  |
    | conversation.item.delete   | item.deleted                            | item unknown                |
    | conversation.item.retrieve | item.retrieved                          | item unknown                |
    | conversation.item.truncate | item.truncated; the transcript is gone  | no assistant item           |
    | response.create            | response.created, output, response.done | another one is being spoken |
    | response.cancel            | output, response.done (cancelled)       | nothing to cancel           |
    | session.update             | session.updated                         | no realtime session         |
    | input_audio_buffer.append  | nothing                                 |                             |
    | input_audio_buffer.clear   | input_audio_buffer.cleared              |                             |

Codes and messages of refusals are the real service's, as its users have logged them; the code for an unknown previous
item is modelled on its siblings. Other client events are refused as not simulated. Server events are JSON without
their `event_id`, which whoever sends them adds.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Event: TypeAlias = dict[str, Any]
Item: TypeAlias = dict[str, Any]

METADATA_KEYS: Final = 16
METADATA_CHARS: Final = 512


class Refused(Exception):
    """The service's `error` answer to a client event that it understood."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


@dataclass(frozen=True, slots=True)
class Turn:
    """What the model saw when it was asked for one turn: `items` are the conversation's at that moment, in order."""

    response_id: str
    items: tuple[Item, ...]
    instructions: str
    metadata: Mapping[str, str]

    @property
    def item_ids(self) -> list[str]:
        """Ids of the items in context, in order."""
        return [item.get("id", "") for item in self.items]


def words_to_say(words: str) -> dict[str, str]:
    """A response's `metadata` that tells the simulated model what to say: at most 8,192 characters."""
    parts = [words[start : start + METADATA_CHARS] for start in range(0, len(words), METADATA_CHARS)]
    if len(parts) > METADATA_KEYS:
        raise ValueError(f"{len(words)} characters do not fit into a response's metadata")
    return {f"say_{number:02}": part for number, part in enumerate(parts)}


def say_what_it_is_told(turn: Turn) -> str:
    """What the simulated model says: the words that the response's metadata carries, or a short assent."""
    return "".join(turn.metadata[key] for key in sorted(turn.metadata) if key.startswith("say_")) or "I see."


class Response:
    """One turn of the model, from response.created to response.done; each method answers with server events."""

    def __init__(self, turn: Turn, conversation: Conversation, *, joins: bool, modality: str) -> None:
        self.turn = turn
        self.joins = joins
        """Whether the output becomes part of the conversation; one such response at a time."""
        self._conversation = conversation
        self._modality = modality
        self._said = ""
        self.item: Item = {
            "id": conversation.new_id("item"),
            "object": "realtime.item",
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }

    def open(self) -> list[Event]:
        """The output item appears, still empty."""
        added = self._conversation.insert(self.item) if self.joins else []
        return [
            {"type": "response.created", "response": self._resource("in_progress", [])},
            {"type": "response.output_item.added", **self._place(), "item": deepcopy(self.item)},
            *added,
            {"type": "response.content_part.added", **self._part_place(), "part": self._part("")},
        ]

    def say(self, words: str) -> list[Event]:
        """The model has said `words` more."""
        self._said += words
        return [{"type": f"{self._stream}.delta", **self._part_place(), "delta": words}]

    def close(self, status: Literal["completed", "cancelled"]) -> list[Event]:
        """The output is final: all that was said until now."""
        kind, text = ("output_text", "text") if self._modality == "text" else ("output_audio", "transcript")
        self.item["content"] = [{"type": kind, text: self._said}]
        self.item["status"] = "completed" if status == "completed" else "incomplete"
        final = deepcopy(self.item)
        return [
            {"type": f"{self._stream}.done", **self._part_place(), text: self._said},
            {"type": "response.content_part.done", **self._part_place(), "part": self._part(self._said)},
            {"type": "response.output_item.done", **self._place(), "item": final},
            *([{"type": "conversation.item.done", "item": final}] if self.joins else []),
            {"type": "response.done", "response": self._resource(status, [final])},
        ]

    @property
    def _stream(self) -> str:
        return "response.output_text" if self._modality == "text" else "response.output_audio_transcript"

    def _place(self) -> Event:
        return {"response_id": self.turn.response_id, "output_index": 0}

    def _part_place(self) -> Event:
        return {**self._place(), "item_id": self.item["id"], "content_index": 0}

    def _part(self, said: str) -> Event:
        return {"type": "text", "text": said} if self._modality == "text" else {"type": "audio", "transcript": said}

    def _resource(self, status: str, output: list[Item]) -> Event:
        resource = {
            "object": "realtime.response",
            "id": self.turn.response_id,
            "conversation_id": self._conversation.conversation_id if self.joins else None,
            "status": status,
            "output": output,
            "output_modalities": [self._modality],
            "metadata": dict(self.turn.metadata),
        }
        if status == "cancelled":
            resource["status_details"] = {"type": "cancelled", "reason": "client_cancelled"}
        return resource


class Conversation:
    """Items, settings and turns of one call."""

    def __init__(self, call_id: str, model: str) -> None:
        self.conversation_id = f"conv_{call_id}"
        self.session: Event = {
            "type": "realtime",
            "model": model,
            "output_modalities": ["audio"],
            "instructions": "",
        }
        self.items: list[Item] = []
        self.turns: list[Turn] = []
        self.responses: dict[str, Response] = {}
        """Those being spoken, by id."""
        self._numbers: Iterator[int] = count(1)

    def new_id(self, prefix: str) -> str:
        """An id of the service's own."""
        return f"{prefix}_{next(self._numbers):06}"

    def insert(self, item: Item, at: int | None = None) -> list[Event]:
        """Put an item into the context, last or at a place; answers with item.added."""
        at = len(self.items) if at is None else at
        previous = self.items[at - 1]["id"] if at else None
        self.items.insert(at, item)
        return [{"type": "conversation.item.added", "previous_item_id": previous, "item": deepcopy(item)}]

    def apply(self, event: Event) -> list[Event]:
        """Let a client event (checked; not response.create) change the conversation. Raises Refused."""
        if (apply := self._APPLY.get(event["type"])) is None:
            raise Refused("not_simulated", f"The simulator does not know {event['type']}.", "type")
        return apply(self, event)

    def ask(self, event: Event) -> Response:
        """The response that response.create asks for, its turn's context noted. Raises Refused."""
        wanted = event.get("response", {})
        joins = wanted.get("conversation", "auto") != "none"
        if joins and (active := self._speaking()) is not None:
            raise Refused(
                "conversation_already_has_active_response",
                f"Conversation already has an active response in progress: {active.turn.response_id}."
                " Wait until the response is finished before creating a new one.",
            )
        turn = Turn(
            response_id=self.new_id("resp"),
            items=tuple(deepcopy(wanted.get("input", self.items))),
            instructions=wanted.get("instructions", self.session.get("instructions", "")),
            metadata=wanted.get("metadata") or {},
        )
        self.turns.append(turn)
        modalities = wanted.get("output_modalities", self.session["output_modalities"])
        response = Response(turn, self, joins=joins, modality=modalities[0])
        self.responses[turn.response_id] = response
        return response

    def finish(self, response: Response, status: Literal["completed", "cancelled"]) -> list[Event]:
        """End a response; [] when it has ended already."""
        ended = self.responses.pop(response.turn.response_id, None)
        return response.close(status) if ended is not None else []

    def _speaking(self) -> Response | None:
        return next((response for response in self.responses.values() if response.joins), None)

    def _create(self, event: Event) -> list[Event]:
        item = {"status": "completed", **event["item"], "object": "realtime.item"}
        item.setdefault("id", self.new_id("item"))
        if any(item["id"] == known["id"] for known in self.items):
            raise Refused(
                "item_create_duplicate_item_id", f"Error adding item: an item with id '{item['id']}' already exists."
            )
        after = event.get("previous_item_id")
        if after is None:
            at = len(self.items)
        elif after == "root":
            at = 0
        else:
            at = self._index(after, "create", "previous_item_id", "Error adding item: the previous item") + 1
        added = self.insert(item, at)
        return [*added, {**added[0], "type": "conversation.item.done"}]

    def _delete(self, event: Event) -> list[Event]:
        del self.items[self._index(event["item_id"], "delete", "item_id", "Error deleting item: the item")]
        return [{"type": "conversation.item.deleted", "item_id": event["item_id"]}]

    def _retrieve(self, event: Event) -> list[Event]:
        at = self._index(event["item_id"], "retrieve", "item_id", "Error retrieving item: the item")
        return [{"type": "conversation.item.retrieved", "item": deepcopy(self.items[at])}]

    def _truncate(self, event: Event) -> list[Event]:
        item = self.items[self._index(event["item_id"], "truncate", "item_id", "Error truncating item: the item")]
        if item.get("role") != "assistant":
            raise Refused(
                "item_truncate_invalid_item_id", "Only model output audio messages can be truncated.", "item_id"
            )
        for part in item["content"]:
            part.pop("transcript", None)
        fields = ("item_id", "content_index", "audio_end_ms")
        return [{"type": "conversation.item.truncated", **{name: event[name] for name in fields}}]

    def _cancel(self, event: Event) -> list[Event]:
        wanted = event.get("response_id")
        response = self.responses.get(wanted) if wanted is not None else self._speaking()
        if response is None:
            raise Refused("response_cancel_not_active", "Cancellation failed: no active response found")
        return self.finish(response, "cancelled")

    def _update_session(self, event: Event) -> list[Event]:
        if event["session"]["type"] != "realtime":
            raise Refused("not_simulated", "The simulator knows only realtime sessions.", "session.type")
        self.session |= event["session"]
        return [{"type": "session.updated", "session": deepcopy(self.session)}]

    def _append_audio(self, event: Event) -> list[Event]:  # noqa: ARG002 - audio is not simulated
        return []

    def _clear_audio(self, event: Event) -> list[Event]:  # noqa: ARG002 - audio is not simulated
        return [{"type": "input_audio_buffer.cleared"}]

    def _index(self, item_id: str, verb: str, param: str, what: str) -> int:
        for index, item in enumerate(self.items):
            if item["id"] == item_id:
                return index
        raise Refused(f"item_{verb}_invalid_{param}", f"{what} with id '{item_id}' does not exist.", param)

    _APPLY: Final[Mapping[str, Callable[[Conversation, Event], list[Event]]]] = {
        "conversation.item.create": _create,
        "conversation.item.delete": _delete,
        "conversation.item.retrieve": _retrieve,
        "conversation.item.truncate": _truncate,
        "response.cancel": _cancel,
        "session.update": _update_session,
        "input_audio_buffer.append": _append_audio,
        "input_audio_buffer.clear": _clear_audio,
    }
