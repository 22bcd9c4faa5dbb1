"""Time-based: every so many messages, every so many seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from contextengine.engine import clock
from contextengine.engine.moment import Moment
from contextengine.engine.strategies.strategy import Evidence
from contextengine.schemas.events import MessageCompleted, Tick
from contextengine.schemas.session import RuleMemory, Session


@dataclass(frozen=True, slots=True)
class EveryMessages:
    """Fires with every `count`th message of the session, whoever says it."""

    count: int

    listens: ClassVar[frozenset[type]] = frozenset({MessageCompleted})

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError("count must be at least 1")

    def evidence(self, moment: Moment, memory: RuleMemory) -> Evidence | None:
        """The number of messages, once for each multiple of `count`, also when stragglers jumped over it."""
        reached = moment.session.messages // self.count
        if reached <= memory.counter:
            return None
        memory.counter = reached
        return {"messages": str(moment.session.messages)}


@dataclass(frozen=True, slots=True)
class Every:
    """Fires each time the conversation has lasted another `period_ms`, in its own time."""

    period_ms: int

    listens: ClassVar[frozenset[type]] = frozenset({Tick})

    def __post_init__(self) -> None:
        if self.period_ms < 1_000:
            raise ValueError("period must be at least 1 s")

    def due_ms(self, session: Session, memory: RuleMemory) -> int | None:
        """The end of the next period."""
        return clock.due_ms(session, (memory.counter + 1) * self.period_ms)

    def evidence(self, moment: Moment, memory: RuleMemory) -> Evidence | None:
        """How long the conversation has lasted; periods that went by unseen are not made up for."""
        periods = moment.elapsed_ms // self.period_ms
        if periods <= memory.counter:
            return None
        memory.counter = periods
        return {"elapsed": f"{moment.elapsed_ms // 1_000} s", "period": f"{self.period_ms // 1_000} s"}
