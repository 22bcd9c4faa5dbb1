"""When a conversation is quiet, and since when.

It is quiet when nobody speaks, no turn of the model is being made or played, no tool runs and the person is not muted.
Audio without words does not end a silence; what somebody said, and the end of a playback, begin one.
"""

from __future__ import annotations

from contextengine.engine.clock import happened_ms
from contextengine.schemas.events import AudioChunkReceived, ConversationEvent, SilenceDetected
from contextengine.schemas.session import Session


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
    elif isinstance(event, SilenceDetected) or session.quiet_since_ms is None:
        session.quiet_since_ms = happened_ms(session, event, now_ms)
    elif not isinstance(event, AudioChunkReceived):
        session.quiet_since_ms = max(session.quiet_since_ms, happened_ms(session, event, now_ms))
