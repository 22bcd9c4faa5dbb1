"""What a conversation is about, and when that changes."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contextengine.engine.triggers.language import shipped
from contextengine.engine.triggers.topic import Thread, TopicChange, follow_topic

MODEL = shipped()
BOOKING = [
    ("user", "I am looking for a cheap hotel in the north of town."),
    ("model", "There are two guesthouses. Would you like free parking?"),
    ("user", "Yes, with parking please."),
    ("model", "I have booked the guesthouse. The reference number is KQ4."),
    ("user", "Thanks. I also need a train to London on Sunday."),
    ("model", "What time would you like to leave?"),
    ("user", "After 9:15, please."),
    ("model", "The train leaves at 9:30. Shall I book it?"),
    ("user", "Yes please, for two people."),
]


def told(turns: list[tuple[str, str]], profile: str, thread: Thread | None = None) -> list[TopicChange]:
    """What the detector says of each message."""
    thread = thread or Thread()
    return [
        follow_topic(thread, MODEL.read(text), MODEL, profile, by_user=speaker == "user") for speaker, text in turns
    ]


def test_another_wish_in_the_middle_of_a_booking_is_a_new_topic_and_nothing_else_is():
    assert [at for at, change in enumerate(told(BOOKING, "task")) if change.changed] == [4]


def test_a_topic_is_named_by_its_words():
    changes = told(BOOKING, "task")
    assert "guesthouse" in changes[3].topic.terms
    assert "train" in changes[-1].topic.terms
    assert changes[-1].topic.number == changes[3].topic.number + 1


def test_coming_back_to_what_was_spoken_of_before_is_a_return_and_no_new_topic():
    back = [
        ("model", "Booked."),
        ("user", "Thanks. Also, does the guesthouse have parking and free wifi in the north?"),
    ]
    changes = told(BOOKING + back, "task")
    assert changes[-1].changed
    assert changes[-1].returned
    assert changes[-1].topic.number == changes[0].topic.number


def test_a_question_out_of_the_blue_changes_the_topic_of_a_chat():
    chat = [
        ("user", "i have two dogs, they love to run in the park"),
        ("user", "my dogs love the park too"),
        ("user", "that is nice, which park do they like"),
        ("user", "the one by the river, they swim there"),
        ("user", "what do you do for a living?"),
    ]
    changes = told(chat, "chat")
    assert changes[-1].changed
    assert not any(change.changed for change in changes[:-1])


@pytest.mark.parametrize("profile", ["chat", "task", "drift"])
def test_the_first_message_changes_nothing(profile):
    assert not told([("user", "What about a train instead? By the way, do you like cats?")], profile)[0].changed


def test_by_drift_alone_only_the_user_changes_the_topic():
    changes = told([(speaker, text) for _, text in BOOKING for speaker in ("user", "model")], "drift")
    assert not any(change.changed for change in changes[1::2])


@pytest.mark.parametrize("profile", ["chat", "task", "drift"])
@given(st.lists(st.tuples(st.sampled_from(["user", "model"]), st.text(max_size=200)), max_size=40))
@settings(max_examples=40, deadline=None)
def test_any_conversation_is_followed_the_same_way_from_a_state_that_was_stored(profile, turns):
    whole, stored, changes = Thread(), Thread(), []
    for turn in turns:
        stored = msgspec.json.decode(msgspec.json.encode(stored), type=Thread)
        changes.append(told([turn], profile, stored))
        assert changes[-1] == told([turn], profile, whole)
    numbers = [change[0].topic.number for change in changes]
    assert all(
        later == earlier or change[0].changed
        for (earlier, later), change in zip(pairwise(numbers), changes[1:], strict=True)
    )


def test_a_long_conversation_keeps_a_small_state():
    thread = Thread()
    for at in range(2_000):
        words = " ".join(f"word{at}x{n}" for n in range(400))
        follow_topic(thread, MODEL.read(f"By the way, what about {words}?"), MODEL, "chat")
    assert len(msgspec.json.encode(thread)) < 4_000
