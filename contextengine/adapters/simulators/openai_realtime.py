"""A simulator of OpenAI Realtime that hosts live calls: the real protocol on a local port, with faults on demand.

A *call* is one conversation that any number of websockets share. `/v1/realtime?model=M` opens a call, and
`?model=M&call_id=C` opens it under a name: this stands for the media leg (in reality WebRTC or SIP), and the call
ends with it. `?call_id=C` joins an open call as a sideband. Whatever changes the conversation is told to every socket
of the call; errors and retrieved items go to the one that asked.

Every inbound frame is checked against the SDK's own types and the service's limits; a wrong one is answered with an
`error` event and kept in `violations`.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import parse_qs, urlsplit

from openai.types.realtime import RealtimeClientEventParam
from websockets.asyncio.server import Server, ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosedError

from contextengine.adapters.simulators.realtime_conversation import (
    METADATA_CHARS,
    METADATA_KEYS,
    Conversation,
    Event,
    Item,
    Refused,
    Response,
    Turn,
    say_what_it_is_told,
)
from contextengine.adapters.simulators.sdk_types import PayloadMismatch, PayloadType

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator

    from websockets.http11 import Request
    from websockets.http11 import Response as HttpResponse

PATH: Final = "/v1/realtime"
ITEM_ID_CHARS: Final = 32
NONSENSE: Final = (
    "{",
    "[]",
    "null",
    '"conversation.item.done"',
    '{"type": 7}',
    '{"type": "conversation.item.imagined", "item": {"id": "x"}}',
    '{"type": "conversation.item.added"}',
    '{"type": "conversation.item.done", "item": null}',
    '{"type": "error"}',
    '{"type": "error", "error": "no"}',
    b"\xff\xfe",
)
"""Frames that no server of this protocol should send; a client has to survive them."""

_CLIENT_EVENT: Final = PayloadType(RealtimeClientEventParam)
_FOR_THE_ASKER: Final = frozenset({"error", "session.created", "conversation.item.retrieved"})


class FaultKind(StrEnum):
    """What goes wrong with a conversation.item.create; the item is in the context after those marked +."""

    SLOW = "slow"  # + acknowledged after the fault's latency
    LOSE = "lose"  # never acknowledged
    MUTE = "mute"  # + never acknowledged
    REFUSE = "refuse"  # an error event with the fault's code
    NONSENSE = "nonsense"  # frames of NONSENSE instead of the acknowledgement
    DROP_UNSEEN = "drop_unseen"  # the connection ends
    DROP_UNACKED = "drop_unacked"  # + the connection ends
    DROP_ACKED = "drop_acked"  # + acknowledged, then the connection ends


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault for one conversation.item.create; `close_code` None ends a connection without a closing handshake."""

    kind: FaultKind
    latency_ms: int = 0
    code: str = "server_error"
    error_type: str = "server_error"
    close_code: int | None = None


@dataclass(eq=False)
class Call:
    """A conversation and the sockets that share it."""

    call_id: str
    conversation: Conversation
    is_open: bool = True
    sockets: set[ServerConnection] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    numbers: Iterator[int] = field(default_factory=count)

    @property
    def items(self) -> list[Item]:
        """The items in context, in order."""
        return self.conversation.items

    @property
    def turns(self) -> list[Turn]:
        """What the model saw at each turn that it was asked for."""
        return self.conversation.turns

    def emit(self, events: Iterable[Event], asker: ServerConnection | None = None) -> None:
        """Send server events to every socket, or to `asker` alone those that concern nobody else."""
        for event in events:
            whole = {"event_id": f"event_{next(self.numbers):06}", **event}
            alone = event["type"] in _FOR_THE_ASKER
            broadcast([asker] if alone and asker else self.sockets, json.dumps(whole))

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the sockets, until the call ends."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


def check_client_event(event: Event) -> None:
    """Raise PayloadMismatch unless the service takes this client event: types, then limits."""
    _CLIENT_EVENT.check(event)
    item_id = event.get("item", {}).get("id", "")
    if len(item_id) > ITEM_ID_CHARS:
        raise PayloadMismatch(
            "item.id",
            f"string too long. Expected a string with maximum length {ITEM_ID_CHARS},"
            f" but got a string with length {len(item_id)} instead.",
        )
    metadata = event.get("response", {}).get("metadata") or {}
    if len(metadata) > METADATA_KEYS or any(len(value) > METADATA_CHARS for value in metadata.values()):
        raise PayloadMismatch("response.metadata", f"more than {METADATA_KEYS} keys or {METADATA_CHARS} characters")


class RealtimeSimulator:
    """Hosts calls on a local port (0: a free one) while its `async with` block runs.

    `model_says` gives the words of each turn, spoken at `word_ms` for each word (0: at once); `ack_latency_ms` delays
    every acknowledgement of an item. `api_key` None admits every bearer token. `any_call` opens a call that is not
    there when somebody joins it: it stands for a media leg that nobody plays. Nothing is random.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
        model_says: Callable[[Turn], str] = say_what_it_is_told,
        word_ms: int = 0,
        ack_latency_ms: int = 0,
        faults: Iterable[Fault] = (),
        any_call: bool = False,
    ) -> None:
        self.calls: dict[str, Call] = {}
        self.violations: list[str] = []
        self.faults = deque(faults)
        self.word_ms = word_ms
        self.ack_latency_ms = ack_latency_ms
        self._host, self._port = host, port
        self._api_key = api_key
        self._any_call = any_call
        self._model_says = model_says
        self._server: Server | None = None

    @property
    def base_url(self) -> str:
        """What the official SDK takes as its `base_url`."""
        return f"http://{self._host}:{self._port}/v1"

    async def __aenter__(self) -> Self:
        self._server = await serve(
            self._serve, self._host, self._port, process_request=self._admit, compression=None, close_timeout=1
        )
        self._port = next(iter(self._server.sockets)).getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._server is not None:
            for call_id in tuple(self.calls):
                await self.close_call(call_id)
            self._server.close()
            await self._server.wait_closed()

    def open_call(self, call_id: str, model: str = "gpt-realtime") -> Call:
        """Host a call without a media leg; it ends with close_call."""
        call = self.calls[call_id] = Call(call_id, Conversation(call_id, model))
        return call

    async def close_call(self, call_id: str) -> None:
        """End a call: its sockets are closed with 1000, and nobody can join it any more."""
        call = self.calls[call_id]
        call.is_open = False
        for task in tuple(call.tasks):
            task.cancel()
        await asyncio.gather(*call.tasks, return_exceptions=True)
        await asyncio.gather(*(socket.close(1000) for socket in tuple(call.sockets)))

    def fail_next(self, fault: Fault, times: int = 1) -> None:
        """Let the next `times` item creations, of any call, meet this fault."""
        self.faults.extend([fault] * times)

    def _admit(self, socket: ServerConnection, request: Request) -> HttpResponse | None:
        url = urlsplit(request.path)
        query = parse_qs(url.query)
        token = re.fullmatch(r"Bearer (\S+)", request.headers.get("Authorization", ""))
        if self._any_call and "model" not in query and "call_id" in query and not self._joinable(query["call_id"][0]):
            self.open_call(query["call_id"][0])
        status, code, message = HTTPStatus.SWITCHING_PROTOCOLS, "", ""
        if url.path != PATH:
            status, code, message = HTTPStatus.NOT_FOUND, "not_found", f"Only {PATH} is simulated."
        elif token is None or self._api_key not in {None, token[1]}:
            status, code, message = HTTPStatus.UNAUTHORIZED, "invalid_api_key", "Incorrect API key provided."
        elif not {"model", "call_id"} & query.keys():
            status, code, message = HTTPStatus.BAD_REQUEST, "missing_model", "You must provide a model parameter."
        elif "model" in query and "call_id" in query and self._joinable(query["call_id"][0]):
            status, code, message = HTTPStatus.BAD_REQUEST, "call_exists", "The call is open already: join it."
        elif "model" not in query and not self._joinable(query["call_id"][0]):
            status, code = HTTPStatus.NOT_FOUND, "call_id_not_found"
            message = "No session found for the provided call_id"
        if status is HTTPStatus.SWITCHING_PROTOCOLS:
            return None
        error = {"type": "invalid_request_error", "code": code, "message": message, "param": None}
        return socket.respond(status, json.dumps({"error": error}))

    def _joinable(self, call_id: str) -> bool:
        return call_id in self.calls and self.calls[call_id].is_open

    async def _serve(self, socket: ServerConnection) -> None:
        assert socket.request is not None  # noqa: S101 - the handshake is over
        query = parse_qs(urlsplit(socket.request.path).query)
        owns = "model" in query
        if owns:
            call_id = query.get("call_id", [f"rtc_{len(self.calls) + 1:06}"])[0]
            call = self.open_call(call_id, query["model"][0])
        else:
            call = self.calls[query["call_id"][0]]
            if not call.is_open:  # it ended during the handshake
                return
        call.sockets.add(socket)
        try:
            call.emit([{"type": "session.created", "session": call.conversation.session}], socket)
            async for data in socket:
                self._receive(call, socket, data)
        except ConnectionClosedError:
            pass  # a client that vanishes is everyday life
        finally:
            call.sockets.discard(socket)
            if owns:
                await self.close_call(call.call_id)

    def _receive(self, call: Call, socket: ServerConnection, data: str | bytes) -> None:
        event: Event = {}
        try:
            event = _decode(data)
            check_client_event(event)
            if event["type"] == "response.create":
                response = call.conversation.ask(event)
                call.emit(response.open())
                self._speak(call, response)
            elif event["type"] == "conversation.item.create":
                self._create_item(call, socket, event)
            else:
                call.emit(call.conversation.apply(event), socket)
        except PayloadMismatch as mismatch:
            self.violations.append(f"{call.call_id}: {mismatch}")
            call.emit([_error(event, "invalid_value", f"Invalid '{mismatch.path}': {mismatch.problem}")], socket)
        except Refused as refused:
            call.emit([_error(event, refused.code, refused.message, refused.param)], socket)

    def _create_item(self, call: Call, socket: ServerConnection, event: Event) -> None:
        fault = self.faults.popleft() if self.faults else Fault(FaultKind.SLOW, self.ack_latency_ms)
        acknowledgement: list[Event] = []
        if fault.kind in {FaultKind.SLOW, FaultKind.MUTE, FaultKind.DROP_UNACKED, FaultKind.DROP_ACKED}:
            acknowledgement = call.conversation.apply(event)
        if fault.kind is FaultKind.REFUSE:
            acknowledgement = [_error(event, fault.code, "The simulator was asked to refuse.", kind=fault.error_type)]
        if fault.kind in {FaultKind.SLOW, FaultKind.REFUSE, FaultKind.DROP_ACKED}:
            self._after(call, fault.latency_ms, lambda: call.emit(acknowledgement, socket))
        if fault.kind is FaultKind.NONSENSE:
            for frame in NONSENSE:
                broadcast({socket}, frame)
        if fault.kind in {FaultKind.DROP_UNSEEN, FaultKind.DROP_UNACKED, FaultKind.DROP_ACKED}:
            self._after(call, fault.latency_ms, lambda: self._drop(call, socket, fault.close_code))

    def _speak(self, call: Call, response: Response) -> None:
        words = re.findall(r"\s*\S+", self._model_says(response.turn))

        async def speak() -> None:
            for word in words:
                await asyncio.sleep(self.word_ms / 1000)
                if response.turn.response_id not in call.conversation.responses:
                    return
                call.emit(response.say(word))
            call.emit(call.conversation.finish(response, "completed"))

        call.start(speak())

    def _drop(self, call: Call, socket: ServerConnection, close_code: int | None) -> None:
        if close_code is None:
            socket.transport.close()
        else:
            call.start(socket.close(close_code))

    def _after(self, call: Call, latency_ms: int, act: Callable[[], None]) -> None:
        async def act_later() -> None:
            await asyncio.sleep(latency_ms / 1000)
            act()

        if latency_ms:
            call.start(act_later())
        else:
            act()


def _decode(data: str | bytes) -> Event:
    if isinstance(data, bytes):
        raise PayloadMismatch("", "the frame is binary, must be text")
    try:
        decoded = json.loads(data)
    except ValueError as error:
        raise PayloadMismatch("", f"the frame is not JSON: {error}") from error
    if not isinstance(decoded, dict):
        raise PayloadMismatch("", "the frame must be an object")
    return decoded


def _error(
    event: Event, code: str, message: str, param: str | None = None, *, kind: str = "invalid_request_error"
) -> Event:
    cause = event.get("event_id")
    details = {"type": kind, "code": code, "message": message, "param": param}
    return {"type": "error", "error": {**details, "event_id": cause if isinstance(cause, str) else None}}
