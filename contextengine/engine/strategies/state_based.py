"""State-based: how long a conversation has lasted and how quiet it is, where it stands, and how its people and its
machinery are doing.

Each fires when its state begins, and tells at any event whether it is so, for strategies that are made of others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal, TypeAlias

from contextengine.engine import clock
from contextengine.engine.moment import Moment
from contextengine.engine.phase import phase_of
from contextengine.engine.strategies.strategy import Evidence
from contextengine.engine.triggers.notice import CLOSING, CONFUSED
from contextengine.schemas.events import (
    ConversationEvent,
    ErrorOccurred,
    MessageCompleted,
    SessionEnded,
    SessionStarted,
    StreamStateChanged,
    Tick,
    ToolCallEnded,
)
from contextengine.schemas.session import Memory, Session

UserIs: TypeAlias = Literal["active", "idle", "confused"]
SystemIs: TypeAlias = Literal["high_load", "normal", "error"]

CONFUSED_MESSAGES: Final = 2
"""A person is confused until so many messages later."""


@dataclass(frozen=True, slots=True)
class ConversationReaches:
    """Fires once, when the conversation has lasted `after_ms` in its own time."""

    after_ms: int

    listens: ClassVar[frozenset[type]] = frozenset({Tick})

    def due_ms(self, session: Session, memory: Memory) -> int | None:
        """That time, until it has fired."""
        return None if memory.counter else clock.due_ms(session, self.after_ms)

    def holds(self, moment: Moment) -> Evidence | None:
        """How long the conversation has lasted."""
        reached = moment.elapsed_ms >= self.after_ms
        return {"elapsed": f"{moment.elapsed_ms / 60_000:.1f} min"} if reached else None

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:
        """How long the conversation has lasted, once."""
        found = None if memory.counter else self.holds(moment)
        memory.counter = memory.counter or int(found is not None)
        return found


@dataclass(frozen=True, slots=True)
class Silence:
    """Fires once in each silence, when it has lasted `lasts_ms` in the session's own time."""

    lasts_ms: int

    listens: ClassVar[frozenset[type]] = frozenset({Tick})

    def due_ms(self, session: Session, memory: Memory) -> int | None:
        """The time at which this silence will have lasted long enough; None while it is not quiet."""
        since = session.quiet_since_ms
        if since is None or since == memory.counter:
            return None
        return since + clock.broker_span_ms(session, self.lasts_ms)

    def holds(self, moment: Moment) -> Evidence | None:
        """How long it has been quiet."""
        since = moment.session.quiet_since_ms
        if since is None or moment.now_ms < since + clock.broker_span_ms(moment.session, self.lasts_ms):
            return None
        return {"quiet": f"{(moment.now_ms - since) * moment.session.time_scale / 1_000:.1f} s"}

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:
        """How long it has been quiet, once in each silence."""
        since = moment.session.quiet_since_ms
        found = self.holds(moment)
        if found is None or since is None or since == memory.counter:
            return None
        memory.counter = since
        return found


@dataclass(frozen=True, slots=True)
class Phase:
    """Fires when the conversation comes to this phase: its start, its middle, or its end (somebody says goodbye)."""

    at: Literal["start", "middle", "end"]

    listens: ClassVar[frozenset[type]] = frozenset({SessionStarted, MessageCompleted, SessionEnded})
    attends: ClassVar[frozenset[str]] = frozenset({CLOSING})

    def holds(self, moment: Moment) -> Evidence | None:
        """The phase, and the number of messages so far."""
        phase = phase_of(moment.session)
        return {"phase": phase, "messages": str(moment.session.messages)} if phase == self.at else None

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:
        """The phase, when it has just begun."""
        return _begun(self.holds(moment), memory)


@dataclass(frozen=True, slots=True)
class UserState:
    """Fires when the person becomes idle (quiet for `idle_ms`, the session's time), confused, or active again.

    Confused is who sounds like it, or says the same again, and for two messages more.
    """

    becomes: UserIs
    idle_ms: int = 30_000

    listens: ClassVar[frozenset[type]] = frozenset({MessageCompleted, Tick})
    attends: ClassVar[frozenset[str]] = frozenset({CONFUSED})

    def __post_init__(self) -> None:
        if self.idle_ms < 1_000:
            raise ValueError("idle must be at least 1 s")

    def due_ms(self, session: Session, memory: Memory) -> int | None:
        """When this silence makes the person idle, until that is known."""
        if session.quiet_since_ms is None or session.quiet_since_ms == memory.at_ms:
            return None
        return session.quiet_since_ms + clock.broker_span_ms(session, self.idle_ms)

    def holds(self, moment: Moment) -> Evidence | None:
        """The state, and what it was judged by."""
        session, since = moment.session, moment.session.quiet_since_ms
        quiet_ms = 0 if since is None else moment.now_ms - since
        if quiet_ms >= clock.broker_span_ms(session, self.idle_ms):
            found: UserIs = "idle"
        elif session.confused_at and session.messages - session.confused_at <= CONFUSED_MESSAGES:
            found = "confused"
        else:
            found = "active"
        return (
            {"user": found, "quiet": f"{quiet_ms * session.time_scale / 1_000:.1f} s"}
            if found == self.becomes
            else None
        )

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:
        """The state, when it has just begun; a conversation begins with somebody active."""
        due_ms = self.due_ms(moment.session, memory)
        if due_ms is not None and moment.now_ms >= due_ms:
            memory.at_ms = moment.session.quiet_since_ms or 0
        if self.becomes == "active" and moment.session.messages <= 1:
            memory.counter = 1
        return _begun(self.holds(moment), memory)


@dataclass(frozen=True, slots=True)
class SystemState:
    """Fires when what carries the conversation gets into trouble (`error`), under `high_load`, or back to `normal`.

    It is in trouble for `lasts_ms` (the session's time) after an error, a failed tool or an attempt to deliver that
    failed; under high load when the stream's latency, or the delay of the event itself, has reached `late_ms`.
    """

    becomes: SystemIs
    late_ms: int = 2_000
    lasts_ms: int = 30_000

    listens: ClassVar[frozenset[type]] = frozenset({ErrorOccurred, ToolCallEnded, StreamStateChanged, MessageCompleted})

    def holds(self, moment: Moment) -> Evidence | None:
        """The state, and how late things are."""
        session, event = moment.session, moment.event
        late_ms = session.latency_ms
        if isinstance(event, ConversationEvent):
            late_ms = max(late_ms, moment.now_ms - clock.happened_ms(session, event, moment.now_ms))
        trouble_ms, lasts_ms = session.trouble_ms, clock.broker_span_ms(session, self.lasts_ms)
        if trouble_ms is not None and moment.now_ms < trouble_ms + lasts_ms:
            found: SystemIs = "error"
        else:
            found = "high_load" if late_ms >= self.late_ms else "normal"
        return {"system": found, "late": f"{late_ms} ms"} if found == self.becomes else None

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:
        """The state, when it has just begun; a conversation begins in a normal one."""
        if self.becomes == "normal" and not memory.at_ms:
            memory.counter, memory.at_ms = 1, moment.now_ms
        return _begun(self.holds(moment), memory)


def _begun(found: Evidence | None, memory: Memory) -> Evidence | None:
    """The evidence when it was not so before; the memory's counter says whether it was."""
    before, memory.counter = memory.counter, int(found is not None)
    return None if before else found
