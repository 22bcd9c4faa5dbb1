"""The demo's own VoiceEngine: it holds a call at the provider, plays a conversation into it, publishes what happens.

Its media leg is a websocket that opens the call under a name, where a real one would be WebRTC or SIP. It knows nothing
of ContextEngine but the events that it publishes. What others put into the call, it hears on its own leg like anybody.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from contextengine.adapters.simulators.realtime_conversation import words_to_say
from contextengine.demo.timing import KNOWN_AFTER_MS, Act, Beat, beats, speech_ms
from contextengine.errors import ContextEngineError
from contextengine.schemas.events import (
    ASSISTANT,
    ATTACH,
    USER,
    AudioChunkReceived,
    GenerationStarted,
    MessageCompleted,
    PlaybackEnded,
    PlaybackStarted,
    ResponseCompleted,
    ResponseStarted,
    SessionEnded,
    SessionStarted,
    TurnEnded,
    TurnStarted,
    UserMuted,
    UserUnmuted,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from openai import AsyncOpenAI
    from openai.resources.realtime.realtime import AsyncRealtimeConnection

    from contextengine.demo.timing import Conversation
    from contextengine.topics.publisher import Publisher

PROVIDER: Final = "openai_realtime"
MODEL: Final = "gpt-realtime"
ANSWER_S: Final = 10.0
"""How long the provider may take to begin a turn that it was asked for."""


class CallFailed(ContextEngineError):
    """The provider refused what the demo's VoiceEngine asked of it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The model was asked for a turn: when (Unix ms), and which items were in the call's context then, in order."""

    session_id: str
    response_id: str
    asked_ms: int
    item_ids: tuple[str, ...]


class Call:
    """One call, `time_scale` times as fast as its conversation; `on_asked` hears of each turn of the model."""

    def __init__(
        self,
        conversation: Conversation,
        publisher: Publisher,
        time_scale: float,
        on_asked: Callable[[Asked], None],
    ) -> None:
        self.conversation = conversation
        self.call_id = f"rtc_{conversation.name}"
        self._publisher = publisher
        self._publish = publisher.session(conversation.name).publish
        self._scale = time_scale
        self._on_asked = on_asked
        self._item_ids: list[str] = []
        self._asked_ms = 0
        self._answer: asyncio.Future[str | None] | None = None
        self._response_id = ""
        self._said: dict[str, str] = {}
        self._unplanned: asyncio.Task[None] | None = None

    async def play(self, client: AsyncOpenAI) -> None:
        """Open the call, play the conversation, hang up. Raises TimeoutError when the provider does not answer."""
        connecting = client.realtime.connect(model=MODEL, extra_query={"call_id": self.call_id})
        async with connecting as leg, asyncio.TaskGroup() as tasks:
            hearing = tasks.create_task(self._hear(leg))
            await self._play(leg)
            hearing.cancel()

    async def _play(self, leg: AsyncRealtimeConnection) -> None:
        self._publish(
            SessionStarted,
            provider=PROVIDER,
            model=MODEL,
            route=ATTACH,
            call_id=self.call_id,
            time_scale=self._scale,
            facts=self.conversation.facts,
        )
        await self._publisher.flush()  # a call's time counts from when the broker has its start
        clock = asyncio.get_running_loop().time
        started = clock()
        for beat in beats(self.conversation):
            await asyncio.sleep(started + beat.at_ms / self._scale / 1_000 - clock())
            if self._unplanned is not None:
                await self._unplanned  # the person lets the model finish
            await self._act(beat, leg)

    async def _act(self, beat: Beat, leg: AsyncRealtimeConnection) -> None:
        now_ms = _now_ms()
        match beat.act:
            case Act.USER_STARTS:
                self._publish(TurnStarted, speaker=USER, known_ms=now_ms)
            case Act.AUDIO:
                self._publish(AudioChunkReceived, speaker=USER, duration_ms=beat.span_ms)
            case Act.USER_FINISHED:
                edge_ms = now_ms - round(KNOWN_AFTER_MS / self._scale)
                self._publish(TurnEnded, speaker=USER, at_ms=edge_ms, known_ms=now_ms)
            case Act.USER_SAID:
                # A real service transcribes the audio itself; this stands for it.
                await leg.conversation.item.create(
                    item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": beat.text}]}
                )
                self._publish(MessageCompleted, speaker=USER, text=beat.text)
            case Act.ASK_MODEL:
                await self._ask(beat.text, leg)
            case Act.MODEL_FINISHED:
                self._model_finished(self._response_id)
            case Act.MUTE:
                self._publish(UserMuted)
            case Act.UNMUTE:
                self._publish(UserUnmuted)
            case Act.HANG_UP:
                self._publish(SessionEnded)

    async def _ask(self, text: str, leg: AsyncRealtimeConnection) -> None:
        """Ask the model for its next turn, in which it says `text`, and wait until all of it is there."""
        answer: str | None = None
        while answer is None:  # refused while it says something that somebody else has asked it for
            self._answer = asyncio.get_running_loop().create_future()
            self._asked_ms = _now_ms()
            await leg.response.create(response={"metadata": words_to_say(text)})
            async with asyncio.timeout(ANSWER_S):
                answer = await self._answer
        self._response_id = answer

    async def _hear(self, leg: AsyncRealtimeConnection) -> None:
        while True:
            event: dict[str, Any] = json.loads(await leg.recv_bytes())
            match event["type"]:
                case "conversation.item.added":
                    self._item_ids.append(event["item"]["id"])
                case "response.created":
                    self._created(event["response"])
                case "response.output_audio_transcript.delta":
                    self._spoke(event["response_id"], event["delta"])
                case "response.done":
                    self._done(event["response"])
                case "error" if event["error"]["code"] == "conversation_already_has_active_response":
                    self._answered(None)
                case "error":
                    raise CallFailed(f"call {self.call_id}: the provider says {event['error']}")

    def _answered(self, response_id: str | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(response_id)

    def _created(self, response: dict[str, Any]) -> None:
        asked_ms = self._asked_ms if _is_planned(response) else _now_ms()
        self._publish(GenerationStarted, response_id=response["id"], at_ms=asked_ms)
        self._on_asked(Asked(self.conversation.name, response["id"], asked_ms, tuple(self._item_ids)))

    def _spoke(self, response_id: str, words: str) -> None:
        if response_id not in self._said:
            self._publish(ResponseStarted, response_id=response_id)
            self._publish(PlaybackStarted, response_id=response_id)
            self._publish(TurnStarted, speaker=ASSISTANT, known_ms=_now_ms())
        self._said[response_id] = self._said.get(response_id, "") + words

    def _done(self, response: dict[str, Any]) -> None:
        self._publish(ResponseCompleted, response_id=response["id"])
        if _is_planned(response):
            self._answered(response["id"])
        else:
            self._unplanned = asyncio.create_task(self._finish_unplanned(response["id"]))

    async def _finish_unplanned(self, response_id: str) -> None:
        await asyncio.sleep(speech_ms(self._said[response_id]) / self._scale / 1_000)
        self._model_finished(response_id)

    def _model_finished(self, response_id: str) -> None:
        self._publish(PlaybackEnded, response_id=response_id)
        self._publish(TurnEnded, speaker=ASSISTANT, known_ms=_now_ms())
        self._publish(MessageCompleted, speaker=ASSISTANT, text=self._said[response_id])


def _is_planned(response: dict[str, Any]) -> bool:
    """Whether we asked for this turn: one that somebody else asked for has no words prescribed."""
    return bool(response["metadata"])


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
