"""When it is quiet, and since when: what begins a silence, what ends it, and what does neither."""

from __future__ import annotations

import pytest

from contextengine.schemas.events import (
    ASSISTANT,
    AudioChunkReceived,
    ContextRequested,
    EmotionShifted,
    ErrorOccurred,
    GenerationStarted,
    MessageCompleted,
    PlaybackEnded,
    PlaybackStarted,
    ResponseCompleted,
    ResponseInterrupted,
    ResponseStarted,
    SilenceDetected,
    StreamStateChanged,
    ToolCallEnded,
    ToolCallStarted,
    TopicChanged,
    TurnEnded,
    TurnStarted,
    UserMuted,
    UserUnmuted,
)

SILENCE = """
- name: idle
  when: {silence: 10 s}
  inject: {strategy: {silence: offer help}}
  cooldown: 0 s
"""


@pytest.fixture
def call(call_with):
    call = call_with(SILENCE)
    call.says("let me see")
    return call


def fired_after_ms(call, since_ms):
    """How long after `since_ms` the silence rule fired, or None within the next minute."""
    call.advance_ms(60_000)
    fired = [made.now_ms for made in call.explanations() if made.fired]
    return fired[-1] - since_ms if fired else None


def test_silence_counts_from_the_end_of_the_last_turn(call):
    assert fired_after_ms(call, call.now_ms) == 10_000


def test_silence_counts_from_the_edge_in_the_speech_not_from_when_it_became_known(call):
    """The detector needs 700 ms to be sure that a turn has ended."""
    call.send(TurnStarted, speaker="user")
    call.advance_ms(2_000)
    call.send(TurnEnded, speaker="user", at_ms=call.now_ms - 700)
    assert fired_after_ms(call, call.now_ms) == 9_300


def test_silence_counts_from_the_end_of_playback_not_from_the_end_of_the_models_output(call):
    response = {"response_id": "r"}
    call.send(GenerationStarted, **response)
    call.send(ResponseStarted, **response)
    call.send(PlaybackStarted, **response)
    call.send(ResponseCompleted, **response)
    call.advance_ms(30_000)
    assert [made for made in call.explanations() if made.fired] == []
    call.send(PlaybackEnded, **response)
    assert fired_after_ms(call, call.now_ms) == 10_000


def test_silence_counts_from_the_end_of_playback_even_if_a_detector_says_that_the_person_was_quiet_before(call):
    call.send(PlaybackStarted, response_id="r")
    call.advance_ms(8_000)
    call.send(PlaybackEnded, response_id="r")
    call.send(SilenceDetected, at_ms=call.now_ms - 8_000)
    assert fired_after_ms(call, call.now_ms) == 10_000


def test_a_turn_of_the_model_that_is_cut_off_begins_a_silence_when_the_person_has_finished_too(call):
    call.send(GenerationStarted, response_id="r")
    call.send(PlaybackStarted, response_id="r")
    call.send(TurnStarted, speaker="user")
    call.send(ResponseInterrupted, response_id="r")
    call.advance_ms(20_000)
    call.send(TurnEnded, speaker="user")
    assert fired_after_ms(call, call.now_ms) == 10_000


def test_the_end_of_the_assistants_turn_ends_its_output_and_its_playback_too(call):
    """For a VoiceEngine that tells of turns only."""
    call.send(GenerationStarted, response_id="r")
    call.send(PlaybackStarted, response_id="r")
    call.send(TurnEnded, speaker="user")
    call.advance_ms(30_000)
    assert call.injections() == []
    call.send(TurnEnded, speaker=ASSISTANT)
    assert fired_after_ms(call, call.now_ms) == 10_000


@pytest.mark.parametrize(
    ("begin", "end", "fields"),
    [
        (ToolCallStarted, ToolCallEnded, {"tool": "search", "tool_call_id": "t"}),
        (UserMuted, UserUnmuted, {}),
        (TurnStarted, TurnEnded, {"speaker": ASSISTANT}),
        (GenerationStarted, ResponseCompleted, {"response_id": "r"}),
        (PlaybackStarted, PlaybackEnded, {"response_id": "r"}),
    ],
    ids=["a tool call", "mute", "a turn", "generation", "playback"],
)
def test_silence_rests_meanwhile_and_begins_anew_afterwards(call, begin, end, fields):
    call.advance_ms(5_000)
    call.send(begin, **fields)
    call.advance_ms(30_000)
    assert call.injections() == []
    call.send(end, **fields)
    assert fired_after_ms(call, call.now_ms) == 10_000


def test_two_tool_calls_at_once_rest_until_both_have_ended(call):
    for tool in ("search", "weather"):
        call.send(ToolCallStarted, tool=tool, tool_call_id=tool)
    call.send(ToolCallEnded, tool="search", tool_call_id="search")
    call.advance_ms(30_000)
    assert call.injections() == []
    call.send(ToolCallEnded, tool="weather", tool_call_id="weather", failed=True)
    assert fired_after_ms(call, call.now_ms) == 10_000


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (AudioChunkReceived, {"speaker": "user", "duration_ms": 200, "energy": 0.4}),
        (StreamStateChanged, {"state": "running", "latency_ms": 40}),
        (EmotionShifted, {"speaker": "user", "emotion": "joy"}),
        (TopicChanged, {"topic": "weather"}),
        (ContextRequested, {"request_id": "r"}),
        (ErrorOccurred, {"stage": "tts", "code": "timeout"}),
    ],
    ids=["audio", "figures", "an emotion", "a topic", "a request", "an error"],
)
def test_what_is_no_speech_does_not_end_a_silence(call, kind, fields):
    quiet_since_ms = call.now_ms
    call.advance_ms(6_000)
    call.send(kind, **fields)
    assert fired_after_ms(call, quiet_since_ms) == 10_000


def test_in_a_chat_a_silence_begins_with_each_message(call_with):
    chat = call_with(SILENCE, modality="text")
    chat.says("hello")
    chat.advance_ms(6_000)
    chat.says("hello?")
    assert fired_after_ms(chat, chat.now_ms) == 10_000


def test_a_silence_that_a_detector_heard_to_begin_later_counts_from_there(call):
    """It heard a cough that was no turn."""
    call.advance_ms(4_000)
    call.send(SilenceDetected, at_ms=call.now_ms - 1_000)
    assert fired_after_ms(call, call.now_ms) == 9_000


def test_a_producers_clock_that_runs_an_hour_late_moves_no_silence(call_with):
    """The offset between its clock and the broker's is learned at the start."""
    call = call_with(SILENCE, at_ms=1_767_225_600_000 - 3_600_000)
    late = 3_600_000
    call.send(TurnStarted, speaker="user", at_ms=call.now_ms - late)
    call.advance_ms(1_000)
    call.send(MessageCompleted, speaker="user", text="hello", at_ms=call.now_ms - late)
    call.send(TurnEnded, speaker="user", at_ms=call.now_ms - late)
    assert fired_after_ms(call, call.now_ms) == 10_000


def test_there_is_no_silence_before_the_start_and_after_the_end(call_with):
    call = call_with(SILENCE, started=False)
    call.send(MessageCompleted, speaker="user", text="hello")
    assert fired_after_ms(call, call.now_ms) is None
    call = call_with(SILENCE)
    call.says("bye")
    call.ends()
    assert fired_after_ms(call, call.now_ms) is None
