"""Where a conversation stands: at its start, in its middle, at its end."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from contextengine.schemas.session import Session

PhaseName: TypeAlias = Literal["start", "middle", "end"]

START_MESSAGES: Final = 4
END_MESSAGES: Final = 2
"""Who has said goodbye, and goes on to say more than this, has not gone."""


def phase_of(session: Session) -> PhaseName:
    """The phase; a goodbye is noticed where a rule attends to it, and the session's own end everywhere."""
    if session.ended_ms is not None:
        return "end"
    if session.closing_at and session.messages - session.closing_at <= END_MESSAGES:
        return "end"
    return "start" if session.messages <= START_MESSAGES else "middle"
