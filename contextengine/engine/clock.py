"""A session's own time. Rules count in it; timers and deadlines are broker time.

A rehearsal at ten times the speed says so at its start (`time_scale`), and its thirtieth minute comes after three.
"""

from __future__ import annotations

from contextengine.schemas.events import ConversationEvent
from contextengine.schemas.session import Session


def elapsed_ms(session: Session, now_ms: int) -> int:
    """How long the conversation has lasted, in its own time; 0 before its start."""
    return 0 if session.started_ms is None else round((now_ms - session.started_ms) * session.time_scale)


def broker_span_ms(session: Session, span_ms: int) -> int:
    """How long `span_ms` of the session's own time takes for the broker's clock."""
    return round(span_ms / session.time_scale)


def due_ms(session: Session, at_elapsed_ms: int) -> int:
    """The broker time, rounded up, at which the session has lasted `at_elapsed_ms`."""
    return (session.started_ms or 0) - round(-at_elapsed_ms // session.time_scale)


def happened_ms(session: Session, event: ConversationEvent, now_ms: int) -> int:
    """When `event` happened, in broker time: its producer's clock shifted by the session's offset, at most `now_ms`."""
    return min(now_ms, event.at_ms + session.clock_offset_ms)
