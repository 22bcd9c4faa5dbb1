"""What is read in a message."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contextengine.engine.triggers.language import (
    EMOTIONS,
    HEADS,
    LONGEST_TEXT,
    Card,
    Head,
    LanguageModel,
    TopicHead,
    dump,
    grams_of,
    load,
    shipped,
)

MODEL = shipped()
DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("text", "emotion"),
    [
        ("This is unacceptable, I am furious and you people are useless!", "anger"),
        ("That is disgusting, how gross", "disgust"),
        ("I'm so scared, I am terrified of losing it", "fear"),
        ("Thank you so much, this is wonderful, I love it", "joy"),
        ("I am so sad, I miss her and I can't stop crying", "sadness"),
        ("Wow, what a surprise, I had no idea!", "surprise"),
        ("The train leaves at nine from platform four.", "neutral"),
    ],
)
def test_a_message_that_speaks_of_a_feeling_is_heard_as_that_feeling(text, emotion):
    assert MODEL.felt(MODEL.read(text)).emotion == emotion


def test_a_stronger_word_for_a_feeling_is_a_higher_intensity():
    def angry(text: str) -> int:
        return MODEL.read(text).emotions[EMOTIONS.index("anger")]

    assert angry("I hate this, it makes me furious") > angry("it is a bit annoying") > angry("it is on the table")


def test_what_is_neutral_has_no_intensity():
    assert MODEL.felt(MODEL.read("It is on the second shelf.")) == ("neutral", 0)


def test_a_complaint_is_negative_and_a_compliment_is_not():
    complaint = MODEL.read("this is the worst service, I am so disappointed")
    assert complaint.negative >= MODEL.thresholds["negative"]
    assert MODEL.read("this is the best service, thank you").negative < MODEL.thresholds["negative"]


def test_somebody_who_does_not_understand_is_confused_and_somebody_who_does_is_not():
    confused = MODEL.thresholds["confused"]
    assert MODEL.read("I'm confused, I don't understand what you mean?").confused >= confused
    assert MODEL.read("Yes, two tickets please.").confused < confused


def test_a_thank_you_goodbye_closes_and_thanks_with_another_wish_does_not():
    closing = MODEL.thresholds["closing"]
    assert MODEL.read("No, that is all I need. Thank you, goodbye!").closing >= closing
    assert MODEL.read("Thanks. Can you also book me a train to Cambridge on Sunday?").closing < closing


def test_the_typographic_apostrophe_and_a_drawn_out_vowel_are_read_like_the_plain_ones():
    assert MODEL.read("I don\u2019t like it, sooooooo bad") == MODEL.read("I don't like it, soo bad")


@given(st.text(st.characters(), max_size=300))
@settings(max_examples=300)
def test_any_text_in_any_script_gives_chances_between_nothing_and_certainty_and_always_the_same(text):
    reading = MODEL.read(text)
    chances = (*reading.emotions, reading.negative, reading.confused, reading.closing)
    assert all(0 <= chance <= 1000 for chance in chances)
    assert MODEL.read(text) == reading


@pytest.mark.parametrize("text", ["", " \n", "\x00\x07", "\ud800", "?!?!?!?!", "a" * 300, "\U0001f621"])
def test_odd_texts_are_read(text):
    assert len(MODEL.read(text).emotions) == len(EMOTIONS)


@pytest.mark.parametrize("piece", ["a", "ab ", "?!", "'a", "\u0300", "\U0001f621", "aaab", "\u4f60"])
def test_a_quarter_of_a_megabyte_takes_no_longer_than_the_part_that_is_read(piece):
    text = (piece * (262_144 // len(piece) + 1))[:262_144]
    start = time.thread_time()
    reading = MODEL.read(text)
    assert time.thread_time() - start < 0.05
    assert reading == MODEL.read(text[:LONGEST_TEXT])


def test_a_reading_does_not_depend_on_the_order_in_which_python_keeps_sets():
    """Another process has other string hashes; a replay must not."""
    program = (
        "from contextengine.engine.triggers.language import shipped\n"
        "print(shipped().read('Thanks, but I am really angry now! Where is my train?'))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(DOCS.parent)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1


def a_model(weight: int) -> LanguageModel:
    """A model that knows the word `grr`, which counts for anger alone."""
    head = Head(scale=1 << 16)
    card = Card(
        {name: head for name in HEADS if " " not in name},
        {profile: TopicHead(1 << 16, 0, (0,) * 9, 0) for profile in ("chat", "task")},
    )
    return load(dump(card, {"grr": [weight, *[0] * (len(HEADS) - 1)]}, {"grr": 90}))


@given(st.integers(-127, 127))
def test_one_heads_weight_moves_that_head_alone(weight):
    """The heads share one integer; a negative weight borrows nothing from its neighbours."""
    emotions = a_model(weight).read("grr").emotions
    assert (emotions[0] > 500) == (weight > 5) or abs(weight) <= 5
    assert emotions[1:] == (500,) * 6


def test_a_weights_file_remembers_how_seldom_a_word_is_said_and_knows_unheard_words_as_rarest():
    assert a_model(1).rarities(["grr", "brr"]) == {"grr": 90, "brr": 127}


@pytest.mark.parametrize("data", [b"", b"CEL0", b"no weights at all"])
def test_another_file_is_refused_with_what_to_do(data):
    with pytest.raises(ValueError, match=r"training/train\.py"):
        load(data)


def test_the_model_card_is_that_of_the_weights_shipped():
    weights = files("contextengine.engine.triggers").joinpath("language.weights").read_bytes()
    assert hashlib.sha256(weights).hexdigest() in (DOCS / "detectors.md").read_text()


def test_words_are_cut_at_a_bounded_length_so_that_a_session_can_remember_them():
    assert max(map(len, grams_of("x" * 50 + "yz" * 900).tokens)) <= 24
    assert len(json.dumps(grams_of("ab" * 900).tokens)) < 3_000
