"""OpenAI Realtime, joined beside a live call by its `call_id`: a context becomes an item of the conversation.

What an attempt found, and its verdict:

    | found                                                              | verdict                  |
    |--------------------------------------------------------------------|--------------------------|
    | no time left                                                       | expired                  |
    | not joined: 408, 409, 429, 5xx, no network, no time                | failed, transient        |
    | not joined: other statuses (no such call, wrong key), no quota     | failed                   |
    | item acknowledged, or its id taken already                         | delivered, in context    |
    | error: invalid_request_error                                       | refused                  |
    | error: no quota, wrong key, session over                           | failed                   |
    | any other error                                                    | failed, transient        |
    | silence, or the connection lost; a probe finds the item            | delivered, in context    |
    | silence, or the connection lost; a probe says there is no such item | failed, transient        |
    | silence, or the connection lost; no answer to a probe              | unknown                  |

Sources: the SDK's status table (`openai` retries 408, 409, 429 and 5xx), error events as the service words them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from openai import AsyncOpenAI, OpenAIError
from openai.types.realtime.realtime_conversation_item_system_message_param import Content as SystemText
from openai.types.realtime.realtime_conversation_item_user_message_param import Content as UserText
from websockets.exceptions import InvalidStatus, WebSocketException

from contextengine.adapters.adapter import Capabilities, is_trusted, render_untrusted
from contextengine.adapters.openai_sideband import ServerError, Sideband
from contextengine.errors import SettingsInvalid, Unrenderable
from contextengine.schemas.context import Respond
from contextengine.schemas.injection import AttemptVerdict, Confirmation, Verdict
from contextengine.settings import Settings

if TYPE_CHECKING:
    from openai.types.realtime import (
        ConversationItemCreateEventParam,
        RealtimeConversationItemSystemMessageParam,
        RealtimeConversationItemUserMessageParam,
    )

    from contextengine.schemas.injection import InjectionAttempt

log = logging.getLogger(__name__)

ITEM_ID_CHARS: Final = 32
ACKNOWLEDGEMENT_SHARE: Final = 2 / 3
"""How much of an attempt's time it waits for the acknowledgement; the rest is for a probe."""

_MESSAGE_CHARS: Final = 1_024
_RETRIED_STATUSES: Final = frozenset({408, 409, 429})
_HOPELESS_CODES: Final = frozenset({"insufficient_quota", "invalid_api_key", "session_expired"})
_RETRIED_CODES: Final = frozenset({"rate_limit_exceeded", "server_error"})
_NOT_JOINED: Final = (OSError, WebSocketException, OpenAIError)  # TimeoutError and ConnectionError are OSErrors
_WEBSOCKET: Final[Any] = {"max_size": 2**24, "compression": None, "close_timeout": 1}


class Finding(NamedTuple):
    """A verdict and what led to it."""

    verdict: Verdict
    error_class: str = ""
    message: str = ""
    transient: bool = False


IN_CONTEXT: Final = Finding(Verdict.DELIVERED)


def from_settings(settings: Settings) -> OpenAIRealtime:
    """The adapter that the settings ask for. SettingsInvalid without a key."""
    if settings.openai_api_key is None:
        raise SettingsInvalid("openai_api_key is not set, and calls at OpenAI cannot be joined without one")
    return OpenAIRealtime(settings.openai_api_key.get_secret_value(), settings.openai_base_url)


class OpenAIRealtime:
    """Puts contexts into OpenAI Realtime calls. One sideband for each call, opened when first needed.

    `base_url` may name a simulator. A sideband is closed when nothing was sent for `idle_s` seconds.
    """

    provider: str = "openai_realtime"
    capabilities: Capabilities = Capabilities(
        append_silently=True,
        replace=False,
        retract=True,
        acknowledge=True,
        interrupts_generation=False,
        maximum_bytes=32_768,
    )

    def __init__(self, api_key: str, base_url: str = "https://api.openai.com/v1", *, idle_s: float = 60.0) -> None:
        self._client = AsyncOpenAI(api_key=api_key, base_url=base_url, max_retries=0)
        self._idle_s = idle_s
        self._sidebands: dict[str, asyncio.Task[Sideband]] = {}
        self._closed = False

    def render(self, attempt: InjectionAttempt) -> ConversationItemCreateEventParam:
        """One conversation.item.create under the injection's id: trusted text as system, other as delimited user text.

        Pure. Raises Unrenderable without a call to join, and for text that is empty or above `maximum_bytes`.
        """
        context, item_id = attempt.injection.context, attempt.injection.injection_id
        text = context.render()
        if not attempt.destination.call_id:
            raise Unrenderable(f"session {attempt.session_id} has no call_id to join")
        if len(item_id) > ITEM_ID_CHARS:
            raise Unrenderable(f"item ids have at most {ITEM_ID_CHARS} characters, {item_id!r} has {len(item_id)}")
        if not text:
            raise Unrenderable(f"injection {item_id} says nothing")
        if not is_trusted(context):
            text = render_untrusted(context, nonce=item_id)
        elif (size := len(text.encode())) > self.capabilities.maximum_bytes:
            raise Unrenderable(f"injection {item_id} has {size} bytes, more than {self.capabilities.maximum_bytes}")
        said: RealtimeConversationItemSystemMessageParam | RealtimeConversationItemUserMessageParam
        if is_trusted(context):
            says = SystemText(type="input_text", text=text)
            said = {"type": "message", "role": "system", "id": item_id, "content": [says]}
        else:
            quotes = UserText(type="input_text", text=text)
            said = {"type": "message", "role": "user", "id": item_id, "content": [quotes]}
        return {"type": "conversation.item.create", "item": said}

    async def send(
        self, attempt: InjectionAttempt, payload: ConversationItemCreateEventParam, timeout_s: float
    ) -> AttemptVerdict:
        """Try once, for at most `timeout_s` seconds. What the provider or the network does is the verdict."""
        call_id = attempt.destination.call_id or ""
        deadline = asyncio.get_running_loop().time() + timeout_s
        sent_ms = answered_ms = 0
        if timeout_s <= 0:
            finding = Finding(Verdict.EXPIRED, message="no time was left to send it")
        else:
            try:
                async with asyncio.timeout_at(deadline):
                    sideband = await self._join(call_id)
            except _NOT_JOINED as error:
                finding = judge_not_joined(error)
            else:
                sent_ms = _wall_ms()
                finding = await self._create(sideband, payload, attempt, deadline)
                answered_ms = _wall_ms() if finding.verdict is not Verdict.UNKNOWN else 0
        if finding.verdict is Verdict.DELIVERED:
            await self._ask_to_speak(call_id, attempt.injection.context.metadata.respond, deadline)
        return self._verdict(attempt, finding, sent_ms, answered_ms)

    async def find(self, attempt: InjectionAttempt, timeout_s: float) -> AttemptVerdict | None:
        """Delivered, if the call has the item; the one question that it is asked changes nothing in it."""
        try:
            async with asyncio.timeout(timeout_s):
                error = await self._retrieve(attempt.destination.call_id or "", attempt.injection.injection_id)
        except _NOT_JOINED:
            return None
        return self._verdict(attempt, IN_CONTEXT, 0, _wall_ms()) if error is None else None

    async def close(self) -> None:
        """Close every connection; nothing is sent afterwards."""
        self._closed = True
        openings = list(self._sidebands.values())
        for opening in openings:
            opening.cancel()
        for opened in await asyncio.gather(*openings, return_exceptions=True):
            if isinstance(opened, Sideband):
                await opened.close()
        await self._client.close()

    async def _create(
        self, sideband: Sideband, payload: ConversationItemCreateEventParam, attempt: InjectionAttempt, deadline: float
    ) -> Finding:
        item_id, now = attempt.injection.injection_id, asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(now + (deadline - now) * ACKNOWLEDGEMENT_SHARE):
                error = await sideband.ask(payload, item_id)
        except (TimeoutError, ConnectionResetError) as silence:
            sideband.retire()
            return await self._probe(attempt.destination.call_id or "", item_id, deadline, silence)
        return IN_CONTEXT if error is None else judge_error(error)

    async def _probe(self, call_id: str, item_id: str, deadline: float, silence: Exception) -> Finding:
        """Whether the item is in context, asked on a fresh connection."""
        happened = f"sent, then {_name(silence)}"
        try:
            async with asyncio.timeout_at(deadline):
                error = await self._retrieve(call_id, item_id)
        except _NOT_JOINED as unanswered:
            return Finding(Verdict.UNKNOWN, type(silence).__name__, f"{happened}; probe: {_name(unanswered)}", True)
        if error is None:
            return IN_CONTEXT
        if error.code == "item_retrieve_invalid_item_id":
            return Finding(Verdict.FAILED, "not_in_context", f"{happened}; the call has no such item", True)
        return Finding(Verdict.UNKNOWN, type(silence).__name__, f"{happened}; probe: {error.message}", True)

    async def _retrieve(self, call_id: str, item_id: str) -> ServerError | None:
        sideband = await self._join(call_id)
        return await sideband.ask({"type": "conversation.item.retrieve", "item_id": item_id}, item_id)

    def _verdict(self, attempt: InjectionAttempt, finding: Finding, sent_ms: int, answered_ms: int) -> AttemptVerdict:
        delivered = finding.verdict is Verdict.DELIVERED
        role = "system" if is_trusted(attempt.injection.context) else "user"
        return AttemptVerdict(
            session_id=attempt.session_id,
            injection_id=attempt.injection.injection_id,
            attempt=attempt.attempt,
            provider=self.provider,
            verdict=finding.verdict,
            confirmation=Confirmation.IN_CONTEXT if delivered else Confirmation.NONE,
            achieved="native" if delivered else "none",
            role=role if delivered else "",
            transient=finding.transient,
            error_class=finding.error_class,
            message=finding.message[:_MESSAGE_CHARS],
            sent_ms=sent_ms,
            answered_ms=answered_ms,
        )

    async def _ask_to_speak(self, call_id: str, respond: Respond, deadline: float) -> None:
        """The context is in already: a model that cannot be asked to speak changes no verdict."""
        if respond is Respond.NEVER:
            return
        try:
            async with asyncio.timeout_at(deadline):
                sideband = await self._join(call_id)
                await sideband.ask_to_speak(respond)
        except _NOT_JOINED as error:
            log.warning("call %s: the model was not asked to speak: %s", call_id, _name(error))

    async def _join(self, call_id: str) -> Sideband:
        """The call's sideband; those who need it at the same time share one opening."""
        if self._closed:
            raise ConnectionAbortedError("the adapter is closed")
        opening = self._sidebands.get(call_id)
        if opening is None or not _may_be_used(opening):
            opening = self._sidebands[call_id] = asyncio.create_task(self._open(call_id))
            opening.add_done_callback(lambda opened: self._opened(call_id, opened))
        return await asyncio.shield(opening)

    async def _open(self, call_id: str) -> Sideband:
        joining = self._client.realtime.connect(call_id=call_id, websocket_connection_options=_WEBSOCKET)
        return Sideband(await joining.enter(), self._idle_s)

    def _opened(self, call_id: str, opened: asyncio.Task[Sideband]) -> None:
        if opened.cancelled() or opened.exception() is not None:
            self._forget(call_id, opened)
        else:
            opened.result().when_closed(lambda: self._forget(call_id, opened))

    def _forget(self, call_id: str, opened: asyncio.Task[Sideband]) -> None:
        if self._sidebands.get(call_id) is opened:
            del self._sidebands[call_id]


def judge_error(error: ServerError) -> Finding:
    """The verdict that an `error` event about our item stands for."""
    kind = error.code or error.type or "error"
    if error.code == "item_create_duplicate_item_id" or "already exists" in error.message:
        return IN_CONTEXT
    if error.code in _HOPELESS_CODES:
        return Finding(Verdict.FAILED, kind, error.message)
    if error.type == "invalid_request_error" and error.code not in _RETRIED_CODES:
        return Finding(Verdict.REFUSED, kind, error.message)
    return Finding(Verdict.FAILED, kind, error.message, transient=True)


def judge_not_joined(error: Exception) -> Finding:
    """The verdict that a connection which did not come about stands for; nothing was sent."""
    if not isinstance(error, InvalidStatus):
        return Finding(Verdict.FAILED, type(error).__name__, _name(error), transient=True)
    status, said = error.response.status_code, _error_in(error.response.body)
    transient = (status in _RETRIED_STATUSES or status >= 500) and said.code not in _HOPELESS_CODES
    return Finding(Verdict.FAILED, f"http_{status}", said.message or str(error), transient)


class _HttpError(msgspec.Struct):
    error: ServerError


def _error_in(body: bytes | None) -> ServerError:
    try:
        return msgspec.json.decode(body or b"", type=_HttpError).error
    except (ValueError, RecursionError):
        return ServerError()


def _may_be_used(opening: asyncio.Task[Sideband]) -> bool:
    if not opening.done():
        return True
    return not opening.cancelled() and opening.exception() is None and opening.result().is_open


def _name(error: Exception) -> str:
    """What happened, for people; some exceptions have no text of their own."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _wall_ms() -> int:
    return round(time.time() * 1_000)
