"""What is noticed in a message: the detectors that some rule asks for, each once.

They are the costly part of an event and what they remember the larger part of a state, so a rule set says what it
attends to: MOOD, CLOSING, CONFUSED, and `topic_of` a profile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from contextengine.engine.triggers.keywords import folded, words_of
from contextengine.engine.triggers.language import PROFILES, Reading, shipped
from contextengine.engine.triggers.mood import MoodShift, follow_mood
from contextengine.engine.triggers.topic import DRIFT, TopicChange, follow_topic
from contextengine.schemas.detectors import Thread
from contextengine.schemas.events import USER, MessageCompleted
from contextengine.schemas.session import Session

MOOD: Final = "mood"
CLOSING: Final = "closing"
CONFUSED: Final = "confused"
_TOPIC: Final = "topic:"
_REPEATED_WORDS: Final = 3
"""A message of fewer words is no repeated question."""


class Noticed(NamedTuple):
    """What is noticed in a message; `topics` by profile."""

    reading: Reading
    topics: Mapping[str, TopicChange]
    mood: MoodShift | None


def topic_of(profile: str) -> str:
    """Attention to the changes of topic that a profile of `engine.triggers.topic` tells."""
    return _TOPIC + profile


DETECTORS: Final = frozenset({MOOD, CLOSING, CONFUSED, *map(topic_of, (DRIFT, *PROFILES))})


def notice(session: Session, event: MessageCompleted, attends: frozenset[str]) -> Noticed | None:
    """Read a message that the session has just taken in, and remember what follows; None when nobody attends."""
    if not attends:
        return None
    model = shipped()
    reading = model.read(event.text)
    by_user = event.speaker == USER
    topics = {}
    for profile in sorted(one.removeprefix(_TOPIC) for one in attends if one.startswith(_TOPIC)):
        thread = session.threads.setdefault(profile, Thread())
        topics[profile] = follow_topic(thread, reading, model, profile, by_user=by_user)
    mood = None
    if MOOD in attends:
        mood = follow_mood(session.moods, event.speaker, reading)
        if by_user and not session.emotion_told:  # what a voice betrays counts more than words
            session.emotion = model.felt(reading).emotion
    if by_user and CLOSING in attends and reading.closing >= model.thresholds[CLOSING]:
        session.closing_at = session.messages
    if by_user and CONFUSED in attends and (reading.confused >= model.thresholds[CONFUSED] or _repeated(session)):
        session.confused_at = session.messages
    return Noticed(reading, topics, mood)


def _repeated(session: Session) -> bool:
    """Whether the person says what they have said before, word by word."""
    *earlier, now = [line.text for line in session.history if line.speaker == USER] or [""]
    words = words_of(now)
    if len(words) < _REPEATED_WORDS:
        return False
    longest = max(words, key=len)  # few texts have it, and to look costs a tenth of taking words apart
    return any(longest in folded(text) and words_of(text) == words for text in earlier)
