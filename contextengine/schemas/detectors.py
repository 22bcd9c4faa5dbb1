"""What the detectors remember about a session: its topics, and how its speakers have felt."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

_LABEL_TERMS: Final = 3


class Topic(Struct, gc=False):
    """Something talked about: a number of its own, its words by weight, and the message that spoke of it last."""

    number: int
    terms: dict[str, int]
    last: int = 0

    @property
    def label(self) -> str:
        """Its heaviest words."""
        return " ".join(term for term, _ in sorted(self.terms.items(), key=by_weight)[:_LABEL_TERMS])


class Thread(Struct, gc=False):
    """What is remembered about a conversation's topics; `topics` has the current one last."""

    messages: int = 0
    window: list[list[str]] = []
    before: list[int] = []
    drifts: list[int] = []
    topics: list[Topic] = []
    numbers: int = 0
    turning: bool = False


class Mood(Struct, gc=False):
    """A speaker's averages, per mille, in the order of `EMOTIONS`, and at the end of anything negative."""

    quick: list[int]
    slow: list[int]


class Moods(Struct, gc=False):
    """The moods of those who spoke last, by speaker."""

    by_speaker: dict[str, Mood] = {}


def by_weight(term: tuple[str, int]) -> tuple[int, str]:
    """The order of a topic's terms: the heaviest first, equals by the alphabet."""
    return -term[1], term[0]
