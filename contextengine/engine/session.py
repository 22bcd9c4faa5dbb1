"""How a session's state follows its events.

A producer counts its records. A record at a new highest `seq` is NEW; one that fills a gap among the last 64 is a
STRAGGLER: what was said, a start and an end are remembered, and nothing fires; one seen before, or too old for the
window, is a DUPLICATE and changes nothing. `_apply` says what each kind of event changes.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from contextengine.engine.clock import happened_ms
from contextengine.engine.triggers.pause import follow_quiet
from contextengine.schemas.events import (
    ASSISTANT,
    AudioChunkReceived,
    ConversationEvent,
    EmotionShifted,
    ErrorOccurred,
    GenerationStarted,
    MessageCompleted,
    PlaybackEnded,
    PlaybackStarted,
    ResponseCompleted,
    ResponseInterrupted,
    ResponseStarted,
    SessionEnded,
    SessionStarted,
    StreamStateChanged,
    ToolCallEnded,
    ToolCallStarted,
    TurnEnded,
    TurnStarted,
    UserMuted,
    UserUnmuted,
)
from contextengine.schemas.session import Line, SeqWindow, Session

WINDOW: Final = 64
HISTORY_LINES: Final = 20
LINE_CHARACTERS: Final = 1_000
FACTS: Final = 50
FACT_CHARACTERS: Final = 1_000
PRODUCERS: Final = 8
SLOWEST: Final = 0.01
FASTEST: Final = 100.0
"""How fast a rehearsal may run: a faster one would only make timers, and numbers that no record can hold."""
_WINDOW_MASK: Final = (1 << WINDOW) - 1


class Arrival(Enum):
    """What a record is beside those of its producer that came before."""

    NEW = "new"
    STRAGGLER = "straggler"
    DUPLICATE = "duplicate"


def advance(session: Session, event: ConversationEvent, now_ms: int) -> Arrival:
    """Take `event`, appended at `now_ms`, into the session's state, in place."""
    arrival = _arrival(session, event)
    if arrival is Arrival.DUPLICATE:
        session.duplicates += 1
        return arrival
    session.last_event_ms = now_ms
    if arrival is Arrival.STRAGGLER:
        session.stragglers += 1
        if isinstance(event, SessionStarted | MessageCompleted | SessionEnded):
            _apply(session, event, now_ms)
        return arrival
    _apply(session, event, now_ms)
    follow_quiet(session, event, now_ms)
    return arrival


def _arrival(session: Session, event: ConversationEvent) -> Arrival:
    name = f"{event.producer}/{event.incarnation}"
    window = session.windows.pop(name, None)
    if window is None:
        if len(session.windows) >= PRODUCERS:
            del session.windows[next(iter(session.windows))]
        session.windows[name] = SeqWindow(highest=event.seq)
        return Arrival.NEW
    session.windows[name] = window  # at the end: the first one is that which has been silent for longest
    ahead = event.seq - window.highest
    if ahead > 0:
        window.seen = (window.seen << min(ahead, WINDOW) | 1) & _WINDOW_MASK
        window.highest = event.seq
        session.missing += ahead - 1
        return Arrival.NEW
    if -ahead >= WINDOW or window.seen & 1 << -ahead:
        return Arrival.DUPLICATE
    window.seen |= 1 << -ahead
    session.missing = max(0, session.missing - 1)
    return Arrival.STRAGGLER


def _apply(session: Session, event: ConversationEvent, now_ms: int) -> None:  # noqa: C901, PLR0912 - one line a kind
    match event:
        case AudioChunkReceived():
            pass
        case MessageCompleted(speaker=speaker, text=text):
            session.messages += 1
            session.history.append(Line(speaker, text[:LINE_CHARACTERS], happened_ms(session, event, now_ms)))
            del session.history[:-HISTORY_LINES]
        case TurnStarted():
            session.speaking = event.speaker
        case TurnEnded():
            session.turns += 1
            if session.speaking == event.speaker:
                session.speaking = None
            if event.speaker == ASSISTANT:
                session.generating = session.playing = False
        case GenerationStarted() | ResponseStarted():
            session.generating = True
        case ResponseCompleted():
            session.generating = False
        case ResponseInterrupted():
            session.generating = session.playing = False
        case PlaybackStarted():
            session.playing = True
        case PlaybackEnded():
            session.playing = False
        case ToolCallStarted():
            session.tools += 1
        case ToolCallEnded(failed=failed):
            session.tools = max(0, session.tools - 1)
            session.trouble_ms = now_ms if failed else session.trouble_ms
        case ErrorOccurred():
            session.trouble_ms = now_ms
        case StreamStateChanged(latency_ms=latency_ms, buffer_ms=buffer_ms):
            session.latency_ms = session.latency_ms if latency_ms is None else latency_ms
            session.buffer_ms = session.buffer_ms if buffer_ms is None else buffer_ms
        case UserMuted():
            session.muted = True
        case UserUnmuted():
            session.muted = False
        case EmotionShifted():
            session.emotion, session.emotion_told = event.emotion, True
        case SessionStarted() if session.started_ms is None:
            _start(session, event, now_ms)
        case SessionEnded():
            session.ended_ms = now_ms


def _start(session: Session, event: SessionStarted, now_ms: int) -> None:
    session.started_ms = now_ms
    session.clock_offset_ms = now_ms - event.at_ms
    session.time_scale = min(max(event.time_scale, SLOWEST), FASTEST) if event.time_scale > 0 else 1.0
    session.user_id = event.user_id
    session.provider, session.model = event.provider, event.model
    session.route, session.call_id = event.route, event.call_id
    session.modality = event.modality
    session.facts = {name[:FACT_CHARACTERS]: told[:FACT_CHARACTERS] for name, told in list(event.facts.items())[:FACTS]}
