"""When a waiting context goes in.

    now             at once
    turn_boundary   when nobody has the turn: a turn has ended, and the model's next one has not been asked for
    silence         when it has been quiet for long enough

A context that waits has a last moment: its fallback, at which it goes in anyway, or the end of its life.
"""

from __future__ import annotations

from collections.abc import Iterator

from contextengine.schemas.session import HeldInjection, Place, Session, Stage


def has_come(held: HeldInjection, session: Session, now_ms: int) -> bool:
    """Whether the moment that `held` waits for is now."""
    placement = held.placement
    if placement.fallback_ms is not None and now_ms >= placement.fallback_ms:
        return True
    match placement.place:
        case Place.NOW:
            return True
        case Place.TURN_BOUNDARY:
            return session.speaking is None and not session.generating
        case Place.SILENCE:
            since = session.quiet_since_ms
            return since is not None and now_ms >= since + placement.quiet_ms


def next_look_ms(held: HeldInjection, session: Session) -> int:
    """The broker time at which `held` must be looked at though no event comes."""
    placement = held.placement
    times = [held.injection.deadline_ms]
    if placement.fallback_ms is not None:
        times.append(placement.fallback_ms)
    if placement.place is Place.SILENCE and session.quiet_since_ms is not None:
        times.append(session.quiet_since_ms + placement.quiet_ms)
    return min(times)


def ready(session: Session, now_ms: int) -> Iterator[HeldInjection]:
    """The waiting injections whose moment is now, highest priority first, then the oldest."""
    waiting = [held for held in session.held.values() if held.stage is Stage.WAITING]
    waiting.sort(key=lambda held: -held.injection.context.metadata.priority)
    return (held for held in waiting if has_come(held, session, now_ms))
