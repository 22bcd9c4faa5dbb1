"""How each speaker's feelings move.

A speaker's chances of each emotion are followed twice, by a quick and by a slow average (exponential smoothing). Their
difference is the shift: it grows when a feeling rises above what is usual for this speaker, and labels that flicker
from message to message do not move it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from contextengine.engine.triggers.language import EMOTIONS, Reading
from contextengine.schemas.detectors import Mood, Moods

_QUICK: Final = 2
_SLOW: Final = 6
"""Messages that the averages reach back, roughly; the first message starts both."""
_MOST_SPEAKERS: Final = 8


class MoodShift(NamedTuple):
    """The feeling that has risen most above its usual, by how much, and the same for anything negative (per mille)."""

    emotion: str
    rise: int
    negative: int


def follow_mood(moods: Moods, speaker: str, reading: Reading) -> MoodShift:
    """Take a message of `speaker` into their mood, and say how it has moved. Their first message moves nothing."""
    now = [*reading.emotions, reading.negative]
    mood = moods.by_speaker.pop(speaker, None) or Mood(now, now)
    moods.by_speaker[speaker] = mood
    if len(moods.by_speaker) > _MOST_SPEAKERS:
        del moods.by_speaker[next(iter(moods.by_speaker))]
    mood.quick = [old + (new - old) // _QUICK for old, new in zip(mood.quick, now, strict=True)]
    mood.slow = [old + (new - old) // _SLOW for old, new in zip(mood.slow, now, strict=True)]
    *rises, negative = [quick - slow for quick, slow in zip(mood.quick, mood.slow, strict=True)]
    rise = max(rises)
    return MoodShift(EMOTIONS[rises.index(rise)] if rise > 0 else "neutral", max(0, rise), negative)
