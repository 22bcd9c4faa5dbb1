"""The labelled conversations that the detectors are trained and judged on, and the measures they are judged by.

Plain Python: judging needs nothing that the package does not have. A data folder holds `goemotions`, `tiage` and
`multiwoz`, as docs/detectors.md describes them.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

EKMAN: Final = {
    "anger": "anger annoyance disapproval",
    "disgust": "disgust",
    "fear": "fear nervousness",
    "joy": "joy amusement approval excitement gratitude love optimism relief pride admiration desire caring",
    "sadness": "sadness disappointment embarrassment grief remorse",
    "surprise": "surprise realization confusion curiosity",
    "neutral": "neutral",
}
"""GoEmotions' own grouping of its 28 labels (Demszky et al., 2020)."""
NEGATIVE: Final = " ".join(EKMAN[emotion] for emotion in ("anger", "disgust", "fear", "sadness"))
"""GoEmotions' negative sentiment; its positive one is Ekman's joy."""
MESSAGE_HEADS: Final = {
    name: frozenset(labels.split()) for name, labels in {**EKMAN, "negative": NEGATIVE, "confused": "confusion"}.items()
}
"""The labels of GoEmotions that each head answers for."""

_TAIL: Final = re.compile(r"\s+('(?:s|m|re|ve|ll|d|t)\b|n't\b|[.,!?;:])", re.IGNORECASE)
_MASK: Final = re.compile(r"\[(?:NAME|RELIGION)\]")


class Message(NamedTuple):
    """A single message and its labels."""

    text: str
    labels: frozenset[str]


class Turn(NamedTuple):
    """A message of a conversation: by the user or not, whether it changes the topic, and what it is about."""

    text: str
    by_user: bool
    shift: bool
    closing: bool
    domains: frozenset[str]


Dialogue = list[Turn]


def rows_of(path: Path) -> Iterator[Any]:
    """The JSON lines of a file, packed or not."""
    packed = path.suffix == ".gz"
    with gzip.open(path, "rt", encoding="utf-8") if packed else path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def goemotions(data: Path, split: str) -> list[Message]:
    """Its messages, without the masks that stand for names and religions."""
    rows = rows_of(data / "goemotions" / f"{split}.jsonl.gz")
    return [Message(_MASK.sub("", row["text"]), frozenset(row["labels"])) for row in rows]


def as_people_write(text: str) -> str:
    """A text without the spaces that a corpus put before punctuation and contractions."""
    return _TAIL.sub(r"\1", text)


def tiage(data: Path, split: str) -> list[Dialogue]:
    """Small talk between two people: nobody is the user, so everybody is."""
    return [
        [Turn(as_people_write(turn["text"]), True, bool(turn["shift"]), False, frozenset()) for turn in row["turns"]]
        for row in rows_of(data / "tiage" / f"{split}.jsonl")
    ]


def multiwoz(data: Path, split: str) -> list[Dialogue]:
    """Task dialogues. Closing is a goodbye, or thanks that ask for nothing more."""
    return [
        [
            Turn(
                as_people_write(turn["text"]),
                turn["sp"] == "U",
                bool(turn["shift"]),
                "bye" in turn["gen"] or ("thank" in turn["gen"] and not turn["dom"]),
                frozenset(turn["dom"]),
            )
            for turn in row["turns"]
        ]
        for row in rows_of(data / "multiwoz" / f"{split}.jsonl.gz")
    ]


def f1(truth: Sequence[bool], said: Sequence[bool]) -> float:
    """F1 of the positive class."""
    hits = sum(map(all, zip(truth, said, strict=True)))
    named = sum(truth) + sum(said)
    return 2 * hits / named if named else 0.0


def _missed(truth: Sequence[bool], said: Sequence[bool]) -> tuple[float, float]:
    """Pk (Beeferman et al., 1999) and WindowDiff (Pevzner and Hearst, 2002).

    The window is half the mean segment, at least 2.
    """
    segments = 1 + sum(truth[1:])
    window = max(2, round(len(truth) / segments / 2))
    places = range(len(truth) - window)
    if not places:
        return 0.0, 0.0
    counts = [(sum(truth[at + 1 : at + window + 1]), sum(said[at + 1 : at + window + 1])) for at in places]
    pk = sum((real == 0) != (told == 0) for real, told in counts)
    return pk / len(counts), sum(real != told for real, told in counts) / len(counts)


class TopicScore(NamedTuple):
    """`score` is F1/2 + (1 - Pk)/4 + (1 - WindowDiff)/4 (Jiang et al., 2023).

    Pk and WindowDiff are means over dialogues.
    """

    score: float
    f1: float
    pk: float
    windowdiff: float


def topic_score(dialogues: Sequence[Dialogue], said: Sequence[Sequence[bool]]) -> TopicScore:
    """How well changes told message by message agree with those of the dialogues. The first message is never one."""
    truth = [[turn.shift and at > 0 for at, turn in enumerate(dialogue)] for dialogue in dialogues]
    hits = f1([x for row in truth for x in row], [x for row in said for x in row])
    missed = [_missed(real, told) for real, told in zip(truth, said, strict=True)]
    pk, windowdiff = (sum(column) / len(missed) for column in zip(*missed, strict=True))
    return TopicScore(hits / 2 + (1 - pk) / 4 + (1 - windowdiff) / 4, hits, pk, windowdiff)


def best_threshold(candidates: Sequence[int], worth: Callable[[int], float]) -> int:
    """The candidate with the highest worth, judged together with its neighbours so that no single peak wins."""
    worths = [worth(candidate) for candidate in candidates]
    smooth = [sum(worths[max(0, at - 1) : at + 2]) / len(worths[max(0, at - 1) : at + 2]) for at in range(len(worths))]
    return candidates[max(range(len(smooth)), key=smooth.__getitem__)]
