"""What a conversation is about, when that changes, and when it comes back to what it was about before.

A change is judged message by message, from what has been said and nothing later: by cue words of the message and of
the one before, words that are new to the last few messages, and how much the message shares with them. A profile says
for which kind of conversation the cues were trained; `drift` uses no cue words and judges the session by its own pace.

Topics stack: a new one is put on top, a return takes the earlier one out and puts it on top again. `Thread` is the
whole memory, plain and bounded, and lives in the session's state.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from operator import mul
from typing import Final, NamedTuple

from contextengine.engine.triggers.language import CUES, LOGIT, PROFILES, LanguageModel, Reading, chance
from contextengine.schemas.detectors import Thread, Topic, by_weight

DRIFT: Final = "drift"
WINDOW: Final = 4
"""Messages that a word must have been missing from to be new."""
_MOST_WORDS: Final = 24
_MOST_TOPICS: Final = 6
_MOST_TERMS: Final = 12
_MOST_DRIFTS: Final = 32
_CONTENT: Final = 60
"""From this rarity on a word says what a message is about."""
_SAME_TOPIC: Final = 300
"""Share of a message's content, per mille, that an earlier topic must cover for a return."""
_AGAIN: Final = LOGIT // 4
"""How much surer the detector must be to tell a change right after another."""
_DRIFT: Final = (-224, 80, -268, 0, 280, 0, 0, 0, 30)
"""Weights of the figures of `shape_of` where no cue word is known, set by hand."""
_USUAL_DRIFT: Final = (-21, 18, 36, 48, 58, 71, 85, 110)
"""Drift in the conversations of the training data, in eighths: what a session's own is judged by at first."""
_DRIFT_SHARE: Final = 78
"""The percentage of the drifts known that a change must reach."""


class TopicChange(NamedTuple):
    """How likely a message changes the topic (per mille), whether it does, and whether to an earlier one."""

    chance: int
    changed: bool
    returned: bool
    topic: Topic


def shape_of(thread: Thread, rarities: dict[str, int], heard: set[str], *, by_user: bool) -> tuple[int, ...]:
    """Figures of a message beside the last few, before it joins them; `heard` are all words of those.

    What it shares with the last message and with the window, each as a share of its rarity (per mille); the rarity it
    shares and that is new; its words and those of the last message; its place in the conversation (to 20); whether
    the user speaks; whether it asks.
    """
    last = thread.window[-1] if thread.window else []
    whole = sum(rarities.values()) or 1
    shared = sum([rarities[token] for token in heard & rarities.keys()])
    words, place = len(rarities), thread.messages
    return (
        sum([rarities[token] for token in last if token in rarities]) * 1000 // whole,
        shared * 1000 // whole,
        min(shared, 1000),
        min(whole - shared, 2000),
        words * 25 if words < 40 else 1000,
        len(last) * 25,
        place * 50 if place < 20 else 1000,
        1000 if by_user else 0,
        1000 if "?" in rarities else 0,
    )


def change_score(
    thread: Thread, reading: Reading, rarities: dict[str, int], model: LanguageModel, profile: str, *, by_user: bool
) -> int:
    """Log-odds, in steps of `LOGIT`, that the message changes the topic; for `drift` only its order means something."""
    heard = set[str]().union(*thread.window)
    shape = shape_of(thread, rarities, heard, by_user=by_user)
    if profile == DRIFT:
        return _weighed(_DRIFT, shape)
    head, at = model.topics[profile], len(CUES) * PROFILES.index(profile)
    words = reading.cues[at] + model.newness(rarities.keys() - heard, profile)
    words += thread.before[at + 1] if thread.before else 0
    return (words * head.scale >> 16) + _weighed(head.shape, shape) + head.bias


def _weighed(weights: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """The figures by their weights, which are per 1000."""
    whole: int = sum(map(mul, weights, shape))
    return whole // 1000


def follow_topic(
    thread: Thread, reading: Reading, model: LanguageModel, profile: str = DRIFT, *, by_user: bool = True
) -> TopicChange:
    """Judge a message and take it into the thread.

    `drift` tells changes by the user only: a model follows, it seldom leads.
    """
    rarities = model.rarities(reading.tokens)
    score = change_score(thread, reading, rarities, model, profile, by_user=by_user)
    threshold = _pace(thread) if profile == DRIFT else model.topics[profile].threshold
    judged = thread.messages > 0 and (by_user or profile != DRIFT)
    changed = judged and score >= threshold + (_AGAIN if thread.turning else 0)
    if judged and profile == DRIFT:
        thread.drifts = [*thread.drifts, score][-_MOST_DRIFTS:]
        score -= threshold
    thread.turning = changed
    returned = _turn_to(thread, rarities, changed=changed)
    remember(thread, rarities, reading.cues)
    return TopicChange(chance(score) if judged else 0, changed, returned, thread.topics[-1])


def remember(thread: Thread, words: Iterable[str], cues: tuple[int, ...] = ()) -> None:
    """Take a message, by its distinct words in order, into the window."""
    thread.window = [*thread.window, list(islice(words, _MOST_WORDS))][-WINDOW:]
    thread.before = list(cues)
    thread.messages += 1


def _pace(thread: Thread) -> int:
    """The drift that few messages of this session reach."""
    known = sorted((*_USUAL_DRIFT, *thread.drifts))
    return known[min(len(known) - 1, len(known) * _DRIFT_SHARE // 100)]


def _turn_to(thread: Thread, rarities: dict[str, int], *, changed: bool) -> bool:
    """Put the topic of the message on top and let it learn the words; whether it is an earlier one."""
    content = {token: rare for token, rare in rarities.items() if rare >= _CONTENT and token[0].isalpha()}
    returned = False
    if changed or not thread.topics:
        earlier = max(thread.topics[:-1], key=lambda topic: _covers(topic, content), default=None)
        if earlier is not None and _covers(earlier, content) >= _SAME_TOPIC:
            thread.topics = [*(topic for topic in thread.topics if topic is not earlier), earlier]
            returned = True
        else:
            thread.numbers += 1
            thread.topics = [*thread.topics, Topic(thread.numbers, {})][-_MOST_TOPICS:]
    topic = thread.topics[-1]
    topic.last = thread.messages
    for token, rare in content.items():
        topic.terms[token] = topic.terms.get(token, 0) + rare
    if len(topic.terms) > _MOST_TERMS:
        topic.terms = dict(sorted(topic.terms.items(), key=by_weight)[:_MOST_TERMS])
    return returned


def _covers(topic: Topic, content: dict[str, int]) -> int:
    """The share of the content, per mille of its weight, that the topic has spoken of."""
    whole = sum(content.values())
    return sum(rare for token, rare in content.items() if token in topic.terms) * 1000 // whole if whole else 0
