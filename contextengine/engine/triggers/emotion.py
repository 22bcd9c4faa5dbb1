"""Which emotion a message speaks of, by a list of words.

The labels are Ekman's six (Ekman, 1992) and `stress`, which voice products ask for first. A plain list: it knows what
people call their feelings, not what they imply; a negation right before a word silences it. A trained detector takes
its place behind the same function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

_WORDS: Final[Mapping[str, str]] = {
    "stress": "stressed stress stressful overwhelmed burnout exhausted overworked pressure swamped frazzled",
    "fear": "afraid scared anxious worried nervous terrified panic panicking worry frightened anxiety dread",
    "sadness": "sad depressed unhappy miserable lonely crying heartbroken hopeless upset grief disappointed",
    "anger": "angry furious annoyed frustrated mad outraged irritated hate frustrating unacceptable",
    "joy": "happy glad great excited wonderful love loving thrilled delighted awesome fantastic",
    "disgust": "disgusting disgusted gross revolting awful nasty",
    "surprise": "surprised wow unbelievable amazed shocked astonished unexpected",
}
_EMOTION_OF: Final = {word: emotion for emotion, words in _WORDS.items() for word in words.split()}
_NEGATIONS: Final = frozenset({"not", "no", "never", "isn't", "aren't", "wasn't", "don't", "n't", "hardly"})


class Feeling(NamedTuple):
    """An emotion, and the words that speak of it."""

    emotion: str
    words: tuple[str, ...]


def feeling_in(words: Sequence[str]) -> Feeling | None:
    """The emotion with the most words in the message (the first named of equals), or None when there is none."""
    found: dict[str, list[str]] = {}
    for at, word in enumerate(words):
        emotion = _EMOTION_OF.get(word)
        if emotion is not None and not (_NEGATIONS & set(words[max(0, at - 2) : at])):
            found.setdefault(emotion, []).append(word)
    if not found:
        return None
    emotion = max(found, key=lambda name: len(found[name]))
    return Feeling(emotion, tuple(found[emotion]))
