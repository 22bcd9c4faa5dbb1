"""What a strategy is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from contextengine.engine.moment import Moment
    from contextengine.schemas.session import RuleMemory, Session

Evidence: TypeAlias = dict[str, str]
"""What speaks for firing now: names to what was seen; it is shown to people and open to templates."""


class Strategy(Protocol):
    """Says whether now is the moment. A frozen dataclass: its fields are its parameters in a rules file.

    A strategy keeps what it must remember about a session in the RuleMemory it is given (`counter` is its own) and
    changes nothing else.
    """

    @property
    def listens(self) -> frozenset[type]:
        """The events that can make it fire."""

    def evidence(self, moment: Moment, memory: RuleMemory) -> Evidence | None:
        """What speaks for firing because of this event, or None."""


@runtime_checkable
class Timed(Protocol):
    """A strategy that fires when no event comes: it names the time at which it wants to be asked again."""

    def due_ms(self, session: Session, memory: RuleMemory) -> int | None:
        """The broker time at which to ask, or None when there is no such time as things stand."""


@runtime_checkable
class Worded(Protocol):
    """A strategy that can fire only on a message that contains one of its phrases; none: on any message."""

    @property
    def phrases(self) -> frozenset[str]:
        """Words and phrases as `engine.triggers.keywords` defines them."""
