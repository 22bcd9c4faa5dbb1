"""Meaning-based: what somebody says, how they feel about it, and what they talk about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

from contextengine.engine.moment import Moment
from contextengine.engine.strategies.strategy import Evidence
from contextengine.engine.triggers.keywords import must_have_words, words_of
from contextengine.engine.triggers.language import shipped
from contextengine.engine.triggers.notice import MOOD, topic_of
from contextengine.schemas.events import EmotionShifted, MessageCompleted, TopicChanged
from contextengine.schemas.session import Memory

Speaker: TypeAlias = Literal["user", "assistant"]
Profile: TypeAlias = Literal["drift", "chat", "task"]
"""The kind of conversation that changes of topic are told for: unknown, small talk, or getting things done."""


@dataclass(frozen=True, slots=True)
class Keyword:
    """Fires when `speaker` (or anybody) says one of these words or phrases."""

    any_of: tuple[str, ...]
    speaker: Speaker | None = "user"

    listens: ClassVar[frozenset[type]] = frozenset({MessageCompleted})
    phrases: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "phrases", _phrases("any_of", self.any_of))

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:  # noqa: ARG002
        """The phrases that were found."""
        if not _is_said_by(self.speaker, moment):
            return None
        found = self.phrases & moment.phrases
        return {"keywords": ", ".join(sorted(found))} if found else None


@dataclass(frozen=True, slots=True)
class Emotion:
    """Fires when `speaker` (or anybody) speaks of one of these emotions, or a VoiceEngine's own detector heard it.

    By default what they call it counts; with `implied` (0 to 1) also what they imply with this intensity or more, as
    the trained detector hears it, which knows Ekman's six and no `stress`.
    """

    any_of: tuple[str, ...]
    speaker: Speaker | None = "user"
    implied: float | None = None

    listens: ClassVar[frozenset[type]] = frozenset({MessageCompleted, EmotionShifted})
    attends: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.any_of:
            raise ValueError("any_of must name at least one emotion")
        if self.implied is not None and not 0 <= self.implied <= 1:
            raise ValueError("implied is from 0 to 1")
        object.__setattr__(self, "attends", frozenset() if self.implied is None else frozenset({MOOD}))

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:  # noqa: ARG002
        """The emotion, and the words that speak of it or its intensity."""
        event = moment.event
        if isinstance(event, EmotionShifted):
            heard = event.emotion in self.any_of and self.speaker in (None, event.speaker)
            return {"emotion": event.emotion, "intensity": f"{event.intensity:.2f}"} if heard else None
        if not _is_said_by(self.speaker, moment):
            return None
        if moment.feeling is not None and moment.feeling.emotion in self.any_of:
            return {"emotion": moment.feeling.emotion, "words": ", ".join(moment.feeling.words)}
        if self.implied is None or moment.noticed is None:
            return None
        felt = shipped().felt(moment.noticed.reading)
        if felt.emotion not in self.any_of or felt.intensity < self.implied * 1_000:
            return None
        return {"emotion": felt.emotion, "intensity": f"{felt.intensity / 1_000:.2f}"}


@dataclass(frozen=True, slots=True)
class EmotionShift:
    """Fires when a feeling of `speaker` has risen by `rise` (0 to 1) above what is usual for them.

    `to` is an emotion, or `negative` for anything that is no joy.
    """

    to: str = "negative"
    rise: float = 0.2
    speaker: Speaker = "user"

    listens: ClassVar[frozenset[type]] = frozenset({MessageCompleted})
    attends: ClassVar[frozenset[str]] = frozenset({MOOD})

    def __post_init__(self) -> None:
        if not 0 < self.rise <= 1:
            raise ValueError("rise is above 0, and at most 1")

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:
        """The rise, when it begins."""
        if not _is_said_by(self.speaker, moment) or moment.noticed is None or moment.noticed.mood is None:
            return None
        mood = moment.noticed.mood
        risen = mood.negative if self.to == "negative" else mood.rise if mood.emotion == self.to else 0
        before, memory.counter = memory.counter, int(risen >= self.rise * 1_000)
        return {"emotion": self.to, "rise": f"{risen / 1_000:.2f}"} if memory.counter and not before else None


@dataclass(frozen=True, slots=True)
class Topic:
    """Fires when the conversation comes to a topic that one of these words belongs to, once for each topic.

    What belongs to a topic is what has been said on it; a VoiceEngine's own detector names its topics (TopicChanged).
    """

    about: tuple[str, ...]
    profile: Profile = "drift"

    listens: ClassVar[frozenset[type]] = frozenset({MessageCompleted, TopicChanged})
    attends: frozenset[str] = field(init=False, repr=False)
    _words: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "attends", frozenset({topic_of(self.profile)}))
        object.__setattr__(
            self, "_words", frozenset(" ".join(words_of(phrase)) for phrase in _phrases("about", self.about))
        )

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:
        """The topic, and the words of it that were looked for."""
        if isinstance(moment.event, TopicChanged):
            named = " ".join(words_of(moment.event.topic))
            return {"topic": moment.event.topic, "words": named} if named in self._words else None
        change = moment.noticed and moment.noticed.topics.get(self.profile)
        if not change or change.topic.number == memory.counter:
            return None
        found = self._words & change.topic.terms.keys()
        if not found:
            return None
        memory.counter = change.topic.number
        return {"topic": change.topic.label, "words": ", ".join(sorted(found))}


@dataclass(frozen=True, slots=True)
class ContextShift:
    """Fires when the conversation changes its topic; with `returns`, only to an earlier one, or only to a new one."""

    returns: bool | None = None
    profile: Profile = "drift"

    listens: ClassVar[frozenset[type]] = frozenset({MessageCompleted, TopicChanged})
    attends: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "attends", frozenset({topic_of(self.profile)}))

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:  # noqa: ARG002
        """The new topic, and how likely it is one."""
        event = moment.event
        if isinstance(event, TopicChanged):
            return None if self.returns else {"topic": event.topic, "chance": f"{event.confidence:.2f}"}
        change = moment.noticed and moment.noticed.topics.get(self.profile)
        if not change or not change.changed or self.returns not in (None, change.returned):
            return None
        told = {"topic": change.topic.label, "chance": f"{change.chance / 1_000:.2f}"}
        return told | ({"returned": "yes"} if change.returned else {})


def _is_said_by(speaker: Speaker | None, moment: Moment) -> bool:
    return isinstance(moment.event, MessageCompleted) and speaker in (None, moment.event.speaker)


def _phrases(name: str, given: tuple[str, ...]) -> frozenset[str]:
    """The phrases, each of which has a word."""
    if not given:
        raise ValueError(f"{name} must name at least one word or phrase")
    must_have_words(given)
    return frozenset(given)
