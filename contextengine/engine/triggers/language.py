"""What a message says beside its words: feelings, confusion, a goodbye, a change of topic.

Linear models over n-grams, trained by `training/train.py`; docs/detectors.md is their model card. A text is cut into
n-grams once, and one pass over them serves every head: a feature's weights for all heads stand side by side in the
lanes of one integer, so adding two integers adds all heads. Arithmetic is on integers throughout: the same text gives
the same reading on every machine.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple

import msgspec

LONGEST_TEXT: Final = 2_000
"""Characters of a message that are read: two minutes of speech. What follows changes no reading."""
EMOTIONS: Final = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")
"""Ekman's six (Ekman, 1992) and none of them."""
STATES: Final = ("negative", "confused", "closing")
PROFILES: Final = ("chat", "task")
"""Kinds of conversation that a topic head was trained for: small talk, and getting things done."""
CUES: Final = ("now", "before", "new")
"""Where a word counts for a change of topic: in the message, in the one before, or new to the last few."""
HEADS: Final = (*EMOTIONS, *STATES, *(f"{profile} {cue}" for profile in PROFILES for cue in CUES))
LOGIT: Final = 64
"""Steps to one unit of log-odds: scores and biases are integers of this unit."""

_LANE_BITS: Final = 32
_LANE: Final = (1 << _LANE_BITS) - 1
_MIDDLE: Final = 1 << (_LANE_BITS - 1)
_MIDDLES: Final = sum(_MIDDLE << (_LANE_BITS * lane) for lane in range(len(HEADS)))
_LANES: Final = struct.Struct(f"<{len(HEADS)}I")
_NEW: Final = {profile: HEADS.index(f"{profile} new") for profile in PROFILES}
_FIRST_CUE: Final = len(EMOTIONS) + len(STATES)
_SCALE_BITS: Final = 16
_CERTAIN: Final = 8 * LOGIT
_UNKNOWN_RARITY: Final = 127
_MAGIC: Final = b"CEL1"

_TOKEN: Final = re.compile(
    r"[^\W_]{1,24}(?:'[^\W_]{1,24})?|[?!]{1,4}|\.\.|[:;=]['-]?[()dp/|\\3]|<3|[\u2600-\u27bf\U0001f000-\U0001faff]"
)
_DRAWN_OUT: Final = re.compile(r"(.)\1\1+")
_CHANCE: Final = [
    round(1000 / (1 + (Decimal(-step) / LOGIT).exp())) for step in range(-_CERTAIN, _CERTAIN + 1)
]  # Decimal's exp is the same on every machine, the C library's is not


class Grams(NamedTuple):
    """A text cut up: its words and signs in order, and the features that the models know it by."""

    tokens: list[str]
    features: set[str]


class Reading(NamedTuple):
    """What was read in a message. Chances are per mille.

    `emotions` follow `EMOTIONS`, each for itself: they need not add up. `cues` are the sums of the lanes of `CUES`,
    profile by profile, for `contextengine.engine.triggers.topic`.
    """

    tokens: list[str]
    emotions: tuple[int, ...]
    negative: int
    confused: int
    closing: int
    cues: tuple[int, ...]


class Felt(NamedTuple):
    """The emotion of a message and its intensity: from 0, where it is hardly named, to 1000, where it is sure."""

    emotion: str
    intensity: int


class Head(msgspec.Struct, frozen=True):
    """How the sum of a head's weights becomes log-odds: `sum * scale / 65536 + bias`. `threshold` is per mille."""

    scale: int
    bias: int = 0
    threshold: int = 500


class TopicHead(msgspec.Struct, frozen=True):
    """How a profile judges a change of topic; `shape` are weights of the figures of `topic.shape_of`."""

    scale: int
    bias: int
    shape: tuple[int, ...]
    threshold: int


class Card(msgspec.Struct, frozen=True):
    """The head of the weights file: everything but the features."""

    heads: dict[str, Head]
    topics: dict[str, TopicHead]


def grams_of(text: str) -> Grams:
    """Cut up the first `LONGEST_TEXT` characters of `text`."""
    text = text[:LONGEST_TEXT]
    tokens = _TOKEN.findall(_DRAWN_OUT.sub(r"\1\1", text.lower().replace("\u2019", "'")))
    features = set(tokens)
    if tokens:
        features.update(map(" ".join, zip(["<", *tokens], [*tokens, ">"], strict=True)))
        features.update(map(" * ".join, zip(tokens, tokens[2:], strict=False)))
        long = [token for token in tokens if len(token) > 4]
        features.update([token[:4] + "~" for token in long], [token[:6] + "~" for token in long if len(token) > 6])
        if len(text) > 5 and text.isupper():
            features.add("<loud>")
    return Grams(tokens, features)


def chance(log_odds: int) -> int:
    """The probability, per mille, of log-odds in steps of `LOGIT`."""
    return _CHANCE[max(0, min(2 * _CERTAIN, log_odds + _CERTAIN))]


class LanguageModel:
    """Reads messages. Immutable; one serves all sessions."""

    def __init__(self, card: Card, weights: Mapping[str, Sequence[int]], rarity: Mapping[str, int]) -> None:
        self._packed = {
            feature: packed
            for feature, row in weights.items()
            if (packed := sum(weight << (_LANE_BITS * lane) for lane, weight in enumerate(row)))
        }
        self._rarity = dict(rarity)
        self._scales = [(card.heads[name].scale, card.heads[name].bias + _CERTAIN) for name in HEADS[:_FIRST_CUE]]
        self.thresholds: Final = {name: head.threshold for name, head in card.heads.items()}
        self.topics: Final = card.topics

    def read(self, text: str) -> Reading:
        """Read `text`, whatever it holds."""
        tokens, features = grams_of(text)
        total = sum(filter(None, map(self._packed.get, features)), _MIDDLES)
        sums = _LANES.unpack(total.to_bytes(_LANES.size, "little"))
        chances = []
        for lane, (scale, bias) in zip(sums, self._scales, strict=False):
            at = ((lane - _MIDDLE) * scale >> _SCALE_BITS) + bias
            chances.append(_CHANCE[at] if 0 <= at <= 2 * _CERTAIN else 0 if at < 0 else 1000)
        negative, confused, closing = chances[len(EMOTIONS) :]
        emotions, cues = tuple(chances[: len(EMOTIONS)]), tuple([lane - _MIDDLE for lane in sums[_FIRST_CUE:]])
        return Reading(tokens, emotions, negative, confused, closing, cues)

    def newness(self, tokens: Iterable[str], profile: str) -> int:
        """The sum of a profile's lane `new` over words that are new to a conversation."""
        lane = _NEW[profile]
        total = sum(filter(None, map(self._packed.get, tokens)), _MIDDLES)
        return (total >> (_LANE_BITS * lane) & _LANE) - _MIDDLE

    def rarities(self, tokens: Iterable[str]) -> dict[str, int]:
        """How seldom people say each of them, from 0 (all the time) to 127 (never heard)."""
        rarity = self._rarity
        return {token: rarity.get(token, _UNKNOWN_RARITY) for token in tokens}

    def felt(self, reading: Reading) -> Felt:
        """The emotion that stands out most above its threshold; `neutral` when none does."""
        best, most = "neutral", 0
        for emotion, probability in zip(EMOTIONS[:-1], reading.emotions, strict=False):
            threshold = self.thresholds[emotion]
            above = (probability - threshold) * 1000 // (1000 - threshold)
            if probability >= threshold and (best == "neutral" or above > most):
                best, most = emotion, above
        return Felt(best, most)


def load(data: bytes) -> LanguageModel:
    """The model in a weights file. Raises ValueError when it is none, or one of another make."""
    if data[:4] != _MAGIC:
        raise ValueError("these are no weights of a language model: train them with training/train.py")
    plain = memoryview(zlib.decompress(data[4:]))
    card_size, names_size = struct.unpack_from("<II", plain)
    card = msgspec.json.decode(plain[8 : 8 + card_size], type=Card)
    features = str(plain[8 + card_size : 8 + card_size + names_size], "utf-8").split("\n")
    columns = plain[8 + card_size + names_size :].cast("b")
    if len(columns) != len(features) * (len(HEADS) + 1):
        raise ValueError("these weights are of another version: train them again with training/train.py")
    lanes = [columns[at : at + len(features)] for at in range(0, len(columns), len(features))]
    rarity = {feature: rare for feature, rare in zip(features, lanes.pop(), strict=True) if rare >= 0}
    return LanguageModel(card, dict(zip(features, zip(*lanes, strict=True), strict=True)), rarity)


def dump(card: Card, weights: Mapping[str, Sequence[int]], rarity: Mapping[str, int]) -> bytes:
    """The weights file of a model: each feature has a weight from -127 to 127 for each of `HEADS`."""
    features = sorted(weights)
    lanes = [*zip(*(weights[feature] for feature in features), strict=True)]
    lanes.append(tuple(rarity.get(feature, -1) for feature in features))
    head, names = msgspec.json.encode(card), "\n".join(features).encode()
    columns = b"".join(struct.pack(f"{len(lane)}b", *lane) for lane in lanes)
    return _MAGIC + zlib.compress(struct.pack("<II", len(head), len(names)) + head + names + columns, 9)


@cache
def shipped() -> LanguageModel:
    """The model that comes with the package: a constant, read once."""
    return load(files(__package__).joinpath("language.weights").read_bytes())
