"""State-based: how long a conversation has lasted, how long it has been quiet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from contextengine.engine import clock
from contextengine.engine.moment import Moment
from contextengine.engine.strategies.strategy import Evidence
from contextengine.schemas.events import Tick
from contextengine.schemas.session import RuleMemory, Session


@dataclass(frozen=True, slots=True)
class ConversationReaches:
    """Fires once, when the conversation has lasted `after_ms` in its own time."""

    after_ms: int

    listens: ClassVar[frozenset[type]] = frozenset({Tick})

    def due_ms(self, session: Session, memory: RuleMemory) -> int | None:
        """That time, until it has fired."""
        return None if memory.counter else clock.due_ms(session, self.after_ms)

    def evidence(self, moment: Moment, memory: RuleMemory) -> Evidence | None:
        """How long the conversation has lasted."""
        if memory.counter or moment.elapsed_ms < self.after_ms:
            return None
        memory.counter = 1
        return {"elapsed": f"{moment.elapsed_ms / 60_000:.1f} min"}


@dataclass(frozen=True, slots=True)
class Silence:
    """Fires once in each silence, when it has lasted `lasts_ms` in the session's own time."""

    lasts_ms: int

    listens: ClassVar[frozenset[type]] = frozenset({Tick})

    def due_ms(self, session: Session, memory: RuleMemory) -> int | None:
        """The time at which this silence will have lasted long enough; None while it is not quiet."""
        since = session.quiet_since_ms
        if since is None or since == memory.counter:
            return None
        return since + clock.broker_span_ms(session, self.lasts_ms)

    def evidence(self, moment: Moment, memory: RuleMemory) -> Evidence | None:
        """How long it has been quiet."""
        due = self.due_ms(moment.session, memory)
        if due is None or moment.now_ms < due:
            return None
        since = memory.counter = moment.session.quiet_since_ms or 0
        return {"quiet": f"{(moment.now_ms - since) * moment.session.time_scale / 1_000:.1f} s"}
