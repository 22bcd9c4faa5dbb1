"""Strategies made of strategies."""

from __future__ import annotations

from dataclasses import dataclass, field

from contextengine.engine.moment import Moment
from contextengine.engine.strategies.strategy import Evidence, Strategy, Timed, Worded
from contextengine.schemas.session import RuleMemory


@dataclass(frozen=True, slots=True)
class All:
    """Fires when all its parts fire on the same event.

    A part that counts is asked only together with the others: it fires with them, or counts nothing as fired.
    """

    of: tuple[Strategy, ...]

    listens: frozenset[type] = field(init=False, repr=False)
    phrases: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.of) < 2:
            raise ValueError("`all` joins at least two strategies")
        timed = [type(part).__name__ for part in self.of if isinstance(part, Timed)]
        if timed:
            raise ValueError(f"{', '.join(timed)} fires on a timer; `all` joins what fires on the same message")
        object.__setattr__(self, "listens", frozenset.intersection(*(part.listens for part in self.of)))
        worded = (part.phrases for part in self.of if isinstance(part, Worded))
        object.__setattr__(self, "phrases", frozenset().union(*worded))

    def evidence(self, moment: Moment, memory: RuleMemory) -> Evidence | None:
        """The evidence of all parts together."""
        together: Evidence = {}
        counter = memory.counter
        for part in self.of:
            found = part.evidence(moment, memory)
            if found is None:
                memory.counter = counter
                return None
            together |= found
        return together
