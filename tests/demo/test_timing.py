"""The conversations that the demo ships, and the timing that is made for them."""

from __future__ import annotations

import itertools

import pytest

from contextengine.demo.timing import (
    HOLD_MS,
    MODEL_WAITS_MS,
    PEOPLE,
    PERSON_WAITS_MS,
    Act,
    Conversation,
    Turn,
    beats,
    conversations,
    speech_ms,
    spoken,
    time_scales,
)
from contextengine.engine.session import FASTEST
from contextengine.schemas.events import ASSISTANT, USER

SHIPPED = conversations()


def conversation(*turns: Turn, origin: str = PEOPLE, name: str = "c") -> Conversation:
    return Conversation(name=name, origin=origin, source="", licence="", facts={}, turns=list(turns))


def test_three_conversations_that_people_wrote_and_one_script_are_shipped_with_source_and_licence():
    assert sorted(shipped.origin for shipped in SHIPPED) == ["people", "people", "people", "script"]
    assert all(shipped.source and shipped.licence for shipped in SHIPPED)


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda shipped: shipped.name)
def test_speakers_take_turns_the_user_first_and_there_are_more_than_ten_messages(shipped):
    speakers = [turn.speaker for turn in shipped.turns]
    assert speakers == [USER, ASSISTANT] * (len(speakers) // 2)
    assert len(speakers) > 10


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda shipped: shipped.name)
def test_beats_come_in_order_and_end_with_the_hang_up(shipped):
    times = [beat.at_ms for beat in beats(shipped)]
    assert times == sorted(times)
    assert beats(shipped)[-1].act is Act.HANG_UP


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda shipped: shipped.name)
def test_nobody_speaks_while_another_does(shipped):
    speaking = None
    for beat in beats(shipped):
        if beat.act in (Act.USER_STARTS, Act.ASK_MODEL):
            assert speaking is None
            speaking = beat.act
        elif beat.act in (Act.USER_SAID, Act.MODEL_FINISHED):
            speaking = None


def test_the_script_says_the_seeds_sentence_falls_silent_for_long_and_reaches_thirty_minutes():
    script = SHIPPED[-1]
    played = beats(script)
    assert any(turn.text == "I'm feeling really stressed about my startup." for turn in script.turns)
    assert played[-1].at_ms > 30 * 60_000
    said = [beat for beat in played if beat.act in (Act.MODEL_FINISHED, Act.USER_STARTS)]
    waits = [later.at_ms - earlier.at_ms for earlier, later in itertools.pairwise(said)]
    assert any(12_000 < wait < HOLD_MS for wait in waits)


def test_a_hundred_and_fifty_words_take_a_minute():
    assert speech_ms("word " * 150) == 60_000


def test_punctuation_is_no_word():
    assert speech_ms("wow ! ! ! lol") == speech_ms("wow lol")


def test_the_model_is_asked_after_the_person_has_finished_and_the_person_answers_after_the_model():
    played = beats(conversation(Turn(USER, "a b c d e"), Turn(ASSISTANT, "f g h i j"), Turn(USER, "k")))
    acts = {beat.act: beat.at_ms for beat in reversed(played)}
    start = PERSON_WAITS_MS
    assert acts[Act.USER_STARTS] == start
    assert acts[Act.ASK_MODEL] == start + 2_000 + MODEL_WAITS_MS
    assert acts[Act.MODEL_FINISHED] == acts[Act.ASK_MODEL] + 2_000
    assert acts[Act.USER_FINISHED] < acts[Act.USER_SAID] < acts[Act.ASK_MODEL]


def test_audio_adds_up_to_the_speech():
    text = "eleven words take four point four seconds at this made rate"
    played = beats(conversation(Turn(USER, text)))
    assert sum(beat.span_ms for beat in played if beat.act is Act.AUDIO) == speech_ms(text)


def test_a_wait_of_more_than_a_minute_is_a_hold_and_a_shorter_one_a_silence():
    def acts(at: str) -> set[Act]:
        return {beat.act for beat in beats(conversation(Turn(USER, "a"), Turn(ASSISTANT, "b"), Turn(USER, "c", at=at)))}

    assert {Act.MUTE, Act.UNMUTE} <= acts("2:00")
    assert not {Act.MUTE, Act.UNMUTE} & acts("0:50")


def test_a_turn_that_is_laid_down_before_it_can_start_is_an_error():
    with pytest.raises(ValueError, match="before it can"):
        beats(conversation(Turn(USER, "word " * 100), Turn(ASSISTANT, "b", at="0:05")))


def test_real_conversations_go_at_the_speed_and_the_script_ends_with_the_longest_of_them():
    scales = time_scales(SHIPPED, 2.0)
    ends_s = {call.name: beats(call)[-1].at_ms / scales[call.name] for call in SHIPPED}
    assert {scales[call.name] for call in SHIPPED if call.origin == PEOPLE} == {2.0}
    assert ends_s["founder"] == pytest.approx(max(ends_s[c.name] for c in SHIPPED if c.origin == PEOPLE))


def test_at_the_greatest_speed_of_the_demo_no_call_is_faster_than_the_engine_takes():
    assert max(time_scales(SHIPPED, 6.0).values()) <= FASTEST


def test_a_script_that_is_shorter_than_the_others_is_not_slowed_down():
    calls = [conversation(Turn(USER, "word " * 50)), conversation(Turn(USER, "a"), origin="script", name="s")]
    assert time_scales(calls, 2.0)["s"] == 2.0


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("hey ! do you love cats ?", "hey! do you love cats?"),
        ("wow ! ! ! that is a lot lol", "wow!!! that is a lot lol"),
        ("That does n't matter , you 're welcome .", "That doesn't matter, you're welcome."),
        ("arrive by 19:45 . The price is 10.1 GBP", "arrive by 19:45. The price is 10.1 GBP"),
        ("Reference number is : YF86GE4J", "Reference number is: YF86GE4J"),
    ],
)
def test_what_a_tokenizer_did_to_spaces_is_undone_and_nothing_else(written, said):
    assert spoken(written) == said
    assert spoken(written).replace(" ", "") == written.replace(" ", "")
