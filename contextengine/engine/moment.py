"""What a strategy sees when it is asked whether to fire."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from contextengine.engine.clock import elapsed_ms
from contextengine.engine.triggers.emotion import Feeling, feeling_in
from contextengine.engine.triggers.keywords import PhraseIndex, words_of
from contextengine.schemas.events import MessageCompleted

if TYPE_CHECKING:
    from contextengine.engine.triggers.notice import Noticed
    from contextengine.schemas.events import AnyEvent
    from contextengine.schemas.session import Session


class Moment:
    """One event in one session: what is to be seen in it is worked out once, and only when somebody asks.

    `noticed` is what the detectors that the rules attend to have noticed, in a new message.
    """

    def __init__(
        self, session: Session, event: AnyEvent, now_ms: int, phrases: PhraseIndex, noticed: Noticed | None = None
    ) -> None:
        self.session = session
        self.event = event
        self.now_ms = now_ms
        self.noticed = noticed
        self._phrases = phrases

    @cached_property
    def elapsed_ms(self) -> int:
        """How long the conversation has lasted, in its own time."""
        return elapsed_ms(self.session, self.now_ms)

    @cached_property
    def words(self) -> list[str]:
        """The words of the message; none for any other event."""
        return words_of(self.event.text) if isinstance(self.event, MessageCompleted) else []

    @cached_property
    def phrases(self) -> frozenset[str]:
        """The phrases of any rule that occur in the message."""
        return self._phrases.found_in(self.words)

    @cached_property
    def feeling(self) -> Feeling | None:
        """The emotion that the message speaks of."""
        return feeling_in(self.words)
