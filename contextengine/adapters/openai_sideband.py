"""A sideband: one websocket beside a live OpenAI Realtime call, which asks and hears what became of what it asked.

    | the server says                                           | that answers                                     |
    |-----------------------------------------------------------|--------------------------------------------------|
    | item.added, .done, .created or .retrieved                 | all that was asked about this item: in context   |
    | error with the event_id of what was asked                 | this: the error                                  |
    | error without event_id that names an item in its message  | all that was asked about this item: the error    |
    | the connection ends                                       | all that was asked: ConnectionResetError         |
    | anything else, nonsense included                          | nothing; whoever asks sets the limit             |

An acknowledgement carries no event_id, and the service has been seen to leave it out of errors.
"""

from __future__ import annotations

import asyncio
import logging
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from msgspec import UNSET, Struct, UnsetType
from websockets.exceptions import ConnectionClosed

from contextengine.schemas.context import Respond

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from openai.resources.realtime.realtime import AsyncRealtimeConnection

log = logging.getLogger(__name__)

_SHOWS_AN_ITEM: Final = frozenset(
    {
        "conversation.item.added",
        "conversation.item.done",
        "conversation.item.created",
        "conversation.item.retrieved",
    }
)


class ServerError(Struct, frozen=True):
    """What an `error` event says."""

    type: str = ""
    code: str | None = None
    message: str = ""
    event_id: str | None = None


class _Item(Struct):
    id: str | None = None


class _Response(Struct):
    id: str | None = None
    conversation_id: str | UnsetType | None = UNSET


class _ServerEvent(Struct):
    """What a sideband wants to know of a server event; a call's audio and transcripts pass by undecoded."""

    type: str
    item: _Item | None = None
    error: ServerError | None = None
    response: _Response | None = None


_decode = msgspec.json.Decoder(_ServerEvent).decode


class _Asked(NamedTuple):
    item_id: str
    answer: asyncio.Future[ServerError | None]


class Sideband:
    """A connection that is open, until the peer ends it or nobody has asked anything for `idle_s` seconds."""

    def __init__(self, connection: AsyncRealtimeConnection, idle_s: float) -> None:
        self._connection = connection
        self._idle_s = idle_s
        self._asked: dict[str, _Asked] = {}
        self._numbers = count(1)
        self._retired = False
        self._responses: set[str] = set()
        self._response_asked = False
        self._response_due = False
        self._clock = asyncio.get_running_loop().time
        self._used_at = self._clock()
        self._reader = asyncio.create_task(self._read())

    @property
    def is_open(self) -> bool:
        """Whether more may be asked."""
        return not self._retired and not self._reader.done()

    @property
    def is_speaking(self) -> bool:
        """Whether the model is speaking, as far as this sideband has heard, or has just been asked to."""
        return bool(self._responses) or self._response_asked

    async def ask(self, event: Mapping[str, Any], item_id: str) -> ServerError | None:
        """Send a client event about an item and wait for the answer; None says that the item is in context.

        Raises ConnectionResetError when the connection has ended; the item may be in context or not.
        """
        event_id = f"{item_id}-{next(self._numbers)}"
        answer: asyncio.Future[ServerError | None] = asyncio.get_running_loop().create_future()
        self._asked[event_id] = _Asked(item_id, answer)
        try:
            await self._send({**event, "event_id": event_id})
            return await answer
        finally:
            del self._asked[event_id]
            self._used_at = self._clock()
            if self._retired:
                self.retire()

    async def ask_to_speak(self, respond: Respond) -> None:
        """Ask the model for its next turn: NOW only when it is silent, AFTER_TURN when it has finished the present one.

        Raises ConnectionResetError when the connection has ended.
        """
        if respond is Respond.NEVER:
            return
        if not self.is_speaking:
            self._response_asked = True
            await self._send({"type": "response.create", "event_id": f"{respond}-{next(self._numbers)}"})
        elif respond is Respond.AFTER_TURN:
            self._response_due = True

    def retire(self) -> None:
        """Take no more questions, and close as soon as those that wait have their answers or have given up."""
        self._retired = True
        if not self._asked:
            self._reader.cancel()

    def when_closed(self, act: Callable[[], None]) -> None:
        """Call `act` once the connection has ended, for whatever reason."""
        self._reader.add_done_callback(lambda _: act())

    async def close(self) -> None:
        """Close at once; what waits for an answer gets ConnectionResetError."""
        self._retired = True
        self._reader.cancel()
        await asyncio.wait([self._reader])

    async def _send(self, event: Any) -> None:
        try:
            await self._connection.send(event)
        except ConnectionClosed as closed:
            raise ConnectionResetError(str(closed)) from closed

    async def _read(self) -> None:
        ending = "closed by us"
        try:
            while (left_s := self._left_s()) > 0:
                try:
                    async with asyncio.timeout(left_s):
                        frame = await self._connection.recv_bytes()
                except TimeoutError:
                    continue
                await self._hear(frame)
        except ConnectionClosed as closed:
            ending = str(closed)
        except ConnectionResetError as lost:
            ending = str(lost)
        finally:
            self._retired = True
            for _, answer in self._asked.values():
                if not answer.done():
                    answer.set_exception(ConnectionResetError(ending))
            await self._connection.close()

    def _left_s(self) -> float:
        """How long the connection stays open from now on if nothing happens."""
        busy = self._asked or self._response_due
        return self._idle_s if busy else self._used_at + self._idle_s - self._clock()

    async def _hear(self, frame: bytes) -> None:
        try:
            event = _decode(frame)
        except (ValueError, RecursionError) as nonsense:  # what msgspec raises for bytes, UTF-8, JSON, types and depth
            log.warning("a frame from OpenAI Realtime is no server event: %s", nonsense)
            return
        if event.type in _SHOWS_AN_ITEM and event.item is not None:
            item_id = event.item.id
            self._answer(None, [asked for asked in self._asked.values() if asked.item_id == item_id])
        elif event.type == "error" and event.error is not None:
            self._hear_error(event.error)
        elif event.type == "response.created" and event.response is not None:
            self._response_asked = False
            if event.response.conversation_id is not None:  # null: out of band, not a turn of the conversation
                self._responses.add(event.response.id or "")
        elif event.type == "response.done" and event.response is not None:
            self._responses.discard(event.response.id or "")
            if self._response_due and not self.is_speaking:
                self._response_due = False
                await self.ask_to_speak(Respond.AFTER_TURN)

    def _hear_error(self, error: ServerError) -> None:
        if error.event_id is None:
            self._answer(error, [asked for asked in self._asked.values() if asked.item_id in error.message])
        elif (asked := self._asked.get(error.event_id)) is not None:
            self._answer(error, [asked])
        elif error.event_id.startswith((Respond.NOW, Respond.AFTER_TURN)):
            self._response_asked = False
            if error.code != "conversation_already_has_active_response":
                log.warning("OpenAI Realtime does not let the model speak: %s", error.message)
            elif error.event_id.startswith(Respond.AFTER_TURN):
                self._response_due = True

    def _answer(self, answer: ServerError | None, concerned: Iterable[_Asked]) -> None:
        for asked in concerned:
            if not asked.answer.done():
                asked.answer.set_result(answer)
