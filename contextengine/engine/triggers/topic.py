"""What a conversation is about, when that changes, and when it comes back to what it was about before.

A change is judged message by message, from what has been said and nothing later: by cue words of the message and of
the one before, words that are new to the last few messages, and how much the message shares with them. A profile says
for which kind of conversation the cues were trained; `drift` uses no cue words and judges the session by its own pace.

Topics stack: a new one is put on top, a return takes the earlier one out and puts it on top again. `Thread` is the whole
memory, plain and bounded, and lives in the session's state.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from msgspec import Struct

from contextengine.engine.triggers.language import LOGIT, PROFILES, LanguageModel, Reading, chance

DRIFT: Final = "drift"
WINDOW: Final = 4
"""Messages that a word must have been missing from to be new."""
_MOST_WORDS: Final = 32
_MOST_TOPICS: Final = 6
_MOST_TERMS: Final = 12
_LABEL_TERMS: Final = 3
_MOST_SCORES: Final = 32
_CONTENT: Final = 60
"""From this rarity on a word says what a message is about."""
_SAME_TOPIC: Final = 300
"""Share of a message's content, per mille, that an earlier topic must cover for a return."""
_CALM: Final = LOGIT // 4
"""How far below the threshold the score must fall before the next change can be told."""
_USUAL_DRIFT: Final = (80, 160, 240, 320, 400, 480, 560, 640)
"""Drift in the conversations of the training data, in eighths: what a session's own is judged by at first."""
_DRIFT_SHARE: Final = 85
_DRIFT: Final = (-220, 90, -60, 0, 75, 0, 0, 0)
"""Weights of the figures of `shape_of` where no cue word is known."""
_WORD: Final = str.isalnum


class Topic(Struct, gc=False):
    """Something talked about: a number of its own, its words by weight, and the message that spoke of it last."""

    number: int
    terms: dict[str, int]
    last: int = 0

    @property
    def label(self) -> str:
        """Its heaviest words."""
        heaviest = sorted(self.terms, key=lambda term: (-self.terms[term], term))
        return " ".join(heaviest[:_LABEL_TERMS])


class Thread(Struct, gc=False):
    """What is remembered about a conversation's topics; `topics` has the current one last."""

    messages: int = 0
    window: list[list[str]] = []
    before: list[int] = []
    drifts: list[int] = []
    topics: list[Topic] = []
    numbers: int = 0
    calm: bool = True


class TopicChange(NamedTuple):
    """How likely a message changes the topic (per mille), and whether it does; `returned` when the new one is an earlier."""

    chance: int
    changed: bool
    returned: bool
    topic: Topic | None


def shape_of(thread: Thread, tokens: list[str], model: LanguageModel, *, by_user: bool) -> tuple[int, ...]:
    """Figures of a message beside the last few, before it joins them.

    What it shares with the last message and with the window, each as a share of its rarity (per mille); the rarity it
    shares and that is new; its words and those of the last message; its place in the conversation (to 20); the speaker.
    """
    rarity = {token: model.rarity(token) for token in tokens}
    last = thread.window[-1] if thread.window else ()
    seen = {token for said in thread.window for token in said}
    whole = sum(rarity.values()) or 1
    shared = sum(rare for token, rare in rarity.items() if token in seen)
    return (
        sum(rarity.get(token, 0) for token in last) * 1000 // whole,
        shared * 1000 // whole,
        min(shared, 1000),
        min(whole - shared, 2000),
        min(len(rarity), 40) * 25,
        min(len(last), 40) * 25,
        min(thread.messages, 20) * 50,
        1000 if by_user else 0,
    )


def change_score(thread: Thread, reading: Reading, model: LanguageModel, profile: str, *, by_user: bool) -> int:
    """Log-odds, in steps of `LOGIT`, that the message changes the topic; for `drift` only its order means something."""
    shape = shape_of(thread, reading.tokens, model, by_user=by_user)
    if profile == DRIFT:
        return sum(weight * figure for weight, figure in zip(_DRIFT, shape, strict=True)) // 1000
    head, at = model.topics[profile], 3 * PROFILES.index(profile)
    words = reading.cues[at] + newness_of(thread, reading, model)[at + 2]
    words += thread.before[at + 1] if thread.before else 0
    figures = sum(weight * figure for weight, figure in zip(head.shape, shape, strict=True))
    return (words * head.scale >> 16) + figures // 1000 + head.bias


def newness_of(thread: Thread, reading: Reading, model: LanguageModel) -> tuple[int, ...]:
    """The cue sums of the words of the message that the window has not heard."""
    return model.newness(set(reading.tokens).difference(*thread.window))


def follow_topic(
    thread: Thread, reading: Reading, model: LanguageModel, profile: str = DRIFT, *, by_user: bool = True
) -> TopicChange:
    """Judge a message and take it into the thread."""
    score = change_score(thread, reading, model, profile, by_user=by_user)
    threshold = _pace(thread) if profile == DRIFT else model.topics[profile].threshold
    changed = thread.messages > 0 and thread.calm and score >= threshold
    thread.calm = score < threshold - _CALM if not thread.calm else not changed
    returned = _turn_to(thread, reading.tokens, model, changed=changed)
    if thread.messages and profile == DRIFT:
        thread.drifts = [*thread.drifts, score][-_MOST_SCORES:]
    remember(thread, reading.tokens, reading.cues)
    topic = thread.topics[-1] if thread.topics else None
    return TopicChange(chance(score - (threshold if profile == DRIFT else 0)), changed, returned, topic)


def remember(thread: Thread, tokens: list[str], cues: tuple[int, ...] = ()) -> None:
    """Take a message into the window."""
    thread.window = [*thread.window, list(dict.fromkeys(tokens))[:_MOST_WORDS]][-WINDOW:]
    thread.before = list(cues)
    thread.messages += 1


def _pace(thread: Thread) -> int:
    """The drift that few messages of this session reach."""
    known = sorted((*_USUAL_DRIFT, *thread.drifts))
    return known[min(len(known) - 1, len(known) * _DRIFT_SHARE // 100)]


def _turn_to(thread: Thread, tokens: list[str], model: LanguageModel, *, changed: bool) -> bool:
    """Put the topic of the message on top and let it learn the words; whether it is an earlier one."""
    content = {token: rare for token in tokens if _WORD(token) and (rare := model.rarity(token)) >= _CONTENT}
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
    heaviest = sorted(topic.terms.items(), key=lambda term: (-term[1], term[0]))
    topic.terms = dict(heaviest[:_MOST_TERMS])
    return returned


def _covers(topic: Topic, content: dict[str, int]) -> int:
    """The share of the content, per mille of its weight, that the topic has spoken of."""
    whole = sum(content.values())
    return sum(rare for token, rare in content.items() if token in topic.terms) * 1000 // whole if whole else 0
