"""Meaning-based: what somebody says, and how they feel about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

from contextengine.engine.moment import Moment
from contextengine.engine.strategies.strategy import Evidence
from contextengine.engine.triggers.keywords import words_of
from contextengine.schemas.events import EmotionShifted, MessageCompleted
from contextengine.schemas.session import RuleMemory

Speaker: TypeAlias = Literal["user", "assistant"]


@dataclass(frozen=True, slots=True)
class Keyword:
    """Fires when `speaker` (or anybody) says one of these words or phrases."""

    any_of: tuple[str, ...]
    speaker: Speaker | None = "user"

    listens: ClassVar[frozenset[type]] = frozenset({MessageCompleted})
    phrases: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.any_of:
            raise ValueError("any_of must name at least one word or phrase")
        for phrase in self.any_of:
            if not words_of(phrase):
                raise ValueError(f"{phrase!r} contains no word")
        object.__setattr__(self, "phrases", frozenset(self.any_of))

    def evidence(self, moment: Moment, memory: RuleMemory) -> Evidence | None:  # noqa: ARG002
        """The phrases that were found."""
        event = moment.event
        if not isinstance(event, MessageCompleted) or self.speaker not in (None, event.speaker):
            return None
        found = self.phrases & moment.phrases
        return {"keywords": ", ".join(sorted(found))} if found else None


@dataclass(frozen=True, slots=True)
class Emotion:
    """Fires when `speaker` (or anybody) speaks of one of these emotions, or a VoiceEngine's own detector heard it."""

    any_of: tuple[str, ...]
    speaker: Speaker | None = "user"

    listens: ClassVar[frozenset[type]] = frozenset({MessageCompleted, EmotionShifted})

    def __post_init__(self) -> None:
        if not self.any_of:
            raise ValueError("any_of must name at least one emotion")

    def evidence(self, moment: Moment, memory: RuleMemory) -> Evidence | None:  # noqa: ARG002
        """The emotion, and the words that speak of it."""
        event = moment.event
        if isinstance(event, EmotionShifted):
            heard = event.emotion in self.any_of and self.speaker in (None, event.speaker)
            return {"emotion": event.emotion, "intensity": f"{event.intensity:.2f}"} if heard else None
        if not isinstance(event, MessageCompleted) or self.speaker not in (None, event.speaker):
            return None
        feeling = moment.feeling
        if feeling is None or feeling.emotion not in self.any_of:
            return None
        return {"emotion": feeling.emotion, "words": ", ".join(feeling.words)}
