"""The demo's conversations, and the timing that is made for them. Pure, but for reading the shipped files.

What was said is real where `origin` says `people` (conversations/SOURCES.md); when it was said nobody has recorded. So
times are made:

    speech             150 words a minute, a usual rate of conversation
    a turn's end       is known 200 ms after it, and its transcript is there after 300 ms
    the model          is asked 800 ms after the person has finished, and answers at once
    the person         answers 900 ms after the model has finished
    a turn with `at`   starts then; a wait of more than a minute before it is a hold: the person mutes the microphone

All times are milliseconds of the conversation's own time, from its start.
"""

from __future__ import annotations

import re
from enum import StrEnum
from importlib.resources import files
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from contextengine.schemas.events import ASSISTANT, USER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PEOPLE: Final = "people"
WORDS_A_MINUTE: Final = 150
KNOWN_AFTER_MS: Final = 200
TRANSCRIPT_AFTER_MS: Final = 300
MODEL_WAITS_MS: Final = 800
PERSON_WAITS_MS: Final = 900
HOLD_MS: Final = 60_000
MUTE_AFTER_MS: Final = 500
CHUNK_MS: Final = 1_000
HANG_UP_AFTER_MS: Final = 1_500


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What somebody says, and `at` which minute:second of the call if that was laid down."""

    speaker: str
    text: str
    at: str = ""


class Conversation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A conversation as it is shipped: `origin` is `people` (they wrote it) or `script` (we did)."""

    name: str
    origin: str
    source: str
    licence: str
    facts: dict[str, str]
    turns: list[Turn]


class Act(StrEnum):
    """What the VoiceEngine does, or notices, at a beat."""

    USER_STARTS = "user_starts"
    AUDIO = "audio"
    USER_FINISHED = "user_finished"
    USER_SAID = "user_said"
    ASK_MODEL = "ask_model"
    MODEL_FINISHED = "model_finished"
    MUTE = "mute"
    UNMUTE = "unmute"
    HANG_UP = "hang_up"


class Beat(NamedTuple):
    """One thing that happens, `at_ms` in the call; `span_ms` is the length of the speech or audio that it is about."""

    at_ms: int
    act: Act
    text: str = ""
    span_ms: int = 0


def conversations() -> list[Conversation]:
    """The shipped conversations, those that people wrote first."""
    folder = files(__package__) / "conversations"
    shipped = [
        msgspec.json.decode(file.read_bytes(), type=Conversation)
        for file in folder.iterdir()
        if file.name.endswith(".json")
    ]
    return sorted(shipped, key=lambda conversation: (conversation.origin, conversation.name))


def beats(conversation: Conversation) -> list[Beat]:
    """Everything that happens in the call, in order. ValueError when a turn's `at` is before the one before it ends."""
    return sorted(_beats(conversation), key=lambda beat: beat.at_ms)


def time_scales(calls: Sequence[Conversation], speed: float) -> dict[str, float]:
    """How many times as fast as in life each call goes: `speed`, and a scripted one so that it ends with the others.

    A call's own time is its wall time multiplied by this; SessionStarted tells it to the engine.
    """
    lengths = {call.name: beats(call)[-1].at_ms for call in calls}
    longest_ms = max((lengths[call.name] for call in calls if call.origin == PEOPLE), default=60_000)
    return {
        call.name: speed if call.origin == PEOPLE else max(speed, speed * lengths[call.name] / longest_ms)
        for call in calls
    }


def _beats(conversation: Conversation) -> Iterator[Beat]:
    free_ms = 0
    for turn in conversation.turns:
        earliest_ms = free_ms + (MODEL_WAITS_MS if turn.speaker == ASSISTANT else PERSON_WAITS_MS)
        start_ms = _ms(turn.at) if turn.at else earliest_ms
        if start_ms < earliest_ms:
            raise ValueError(f"{conversation.name}: {turn.text!r} starts at {turn.at}, before it can")
        if start_ms - free_ms > HOLD_MS:
            yield Beat(free_ms + MUTE_AFTER_MS, Act.MUTE)
            yield Beat(start_ms - MUTE_AFTER_MS, Act.UNMUTE)
        free_ms = start_ms + speech_ms(turn.text)
        yield from (_user_turn if turn.speaker == USER else _model_turn)(start_ms, free_ms, spoken(turn.text))
    yield Beat(free_ms + HANG_UP_AFTER_MS, Act.HANG_UP)


def _user_turn(start_ms: int, end_ms: int, text: str) -> Iterator[Beat]:
    yield Beat(start_ms, Act.USER_STARTS)
    for chunk_ms in range(start_ms, end_ms, CHUNK_MS):
        span_ms = min(CHUNK_MS, end_ms - chunk_ms)
        yield Beat(chunk_ms + span_ms, Act.AUDIO, span_ms=span_ms)
    yield Beat(end_ms + KNOWN_AFTER_MS, Act.USER_FINISHED)
    yield Beat(end_ms + TRANSCRIPT_AFTER_MS, Act.USER_SAID, text)


def _model_turn(start_ms: int, end_ms: int, text: str) -> Iterator[Beat]:
    yield Beat(start_ms, Act.ASK_MODEL, text, end_ms - start_ms)
    yield Beat(end_ms, Act.MODEL_FINISHED, text)


def speech_ms(text: str) -> int:
    """How long it takes to say `text`."""
    return max(1, len(re.findall(r"\w[\w'.:-]*", text))) * 60_000 // WORDS_A_MINUTE


def spoken(text: str) -> str:
    """`text` without the spaces that a tokenizer put around punctuation; the words stay as they are."""
    text = re.sub(r" (n't|'[a-z]+)\b", r"\1", text)
    return re.sub(r" +([.,!?:;]+)(?= |$)", r"\1", re.sub(r"([.!?]) (?=[.!?])", r"\1", text))


def _ms(at: str) -> int:
    minutes, _, seconds = at.partition(":")
    return (int(minutes) * 60 + int(seconds)) * 1_000
