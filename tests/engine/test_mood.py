"""How a speaker's feelings move."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from contextengine.engine.triggers.language import shipped
from contextengine.engine.triggers.mood import Moods, MoodShift, follow_mood

MODEL = shipped()
CALM = "The order number is four seven one."
ANGRY = "This is ridiculous, I hate this, I am so angry!"
GLAD = "Great, thank you so much, that is wonderful!"


def moved(*said: tuple[str, str]) -> list[MoodShift]:
    """The shifts of a conversation."""
    moods = Moods()
    return [follow_mood(moods, speaker, MODEL.read(text)) for speaker, text in said]


def test_somebody_calm_who_gets_angry_moves_to_anger_and_to_the_negative():
    shifts = moved(("ann", CALM), ("ann", CALM), ("ann", ANGRY))
    assert shifts[-1].emotion == "anger"
    assert shifts[-1].negative > 150


def test_somebody_who_is_angry_from_the_start_does_not_move():
    assert moved(("ann", ANGRY), ("ann", ANGRY))[-1] == MoodShift("neutral", 0, 0)


def test_somebody_who_cheers_up_moves_away_from_the_negative():
    shifts = moved(("ann", ANGRY), ("ann", GLAD))
    assert shifts[-1].emotion == "joy"
    assert shifts[-1].negative < 0


def test_one_speakers_anger_is_not_the_others():
    assert moved(("ann", CALM), ("bob", ANGRY), ("ann", CALM))[-1] == MoodShift("neutral", 0, 0)


@given(st.lists(st.tuples(st.text(max_size=3), st.text(max_size=60))))
def test_the_moods_of_any_crowd_are_a_small_state_that_can_be_stored(said):
    moods = Moods()
    for speaker, text in said:
        shift = follow_mood(moods, speaker, MODEL.read(text))
        assert -1000 <= shift.negative <= 1000
        assert 0 <= shift.rise <= 1000
    assert len(moods.by_speaker) <= 8
    assert msgspec.json.decode(msgspec.json.encode(moods), type=Moods) == moods
