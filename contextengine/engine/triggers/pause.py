"""When a conversation is quiet, and since when.

It is quiet when nobody speaks, no turn of the model is being made or played, no tool runs and the person is not muted.
A silence begins anew with what somebody said, the end of a turn or of its playback, and where a detector heard it begin
later; audio without words, figures and whatever else is told about the conversation do not end it.
"""

from __future__ import annotations

from typing import Final

from contextengine.engine.clock import happened_ms
from contextengine.schemas.events import (
    ConversationEvent,
    MessageCompleted,
    PlaybackEnded,
    ResponseInterrupted,
    SilenceDetected,
    TurnEnded,
)
from contextengine.schemas.session import Session

_BEGINS: Final = (MessageCompleted, PlaybackEnded, ResponseInterrupted, SilenceDetected, TurnEnded)


def is_quiet(session: Session) -> bool:
    """Whether nothing and nobody is to be heard or waited for."""
    return not (
        session.started_ms is None
        or session.ended_ms is not None
        or session.speaking is not None
        or session.generating
        or session.playing
        or session.tools
        or session.muted
    )


def follow_quiet(session: Session, event: ConversationEvent, now_ms: int) -> None:
    """Keep `quiet_since_ms` true after `event` has been applied."""
    if not is_quiet(session):
        session.quiet_since_ms = None
    elif session.quiet_since_ms is None:
        session.quiet_since_ms = happened_ms(session, event, now_ms)
    elif isinstance(event, _BEGINS):
        session.quiet_since_ms = max(session.quiet_since_ms, happened_ms(session, event, now_ms))
