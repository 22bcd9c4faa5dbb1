"""What holds a fired rule's context back.

The filters are asked in this order, and the first that refuses says why:

    switch       somebody has switched off the rule, the session's provider, or everything
    route        the session has not told where contexts go in a way that we know, or has ended
    ttl          the context's life was over before it was decided
    size         more than 32 KiB of text
    slot         the same event has put a context of higher priority into the slot
    duplicate    the slot holds the same content, in the model's context (within the cool-down) or on its way
    buffer       the session's injections that have not ended are too many (critical ones excepted), or its state would
                 be too large
    share        the rule is on trial, and this session is not of its share: it would have injected
    shadow       the rule is on trial: it would have injected
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final, TypeAlias

import msgspec

from contextengine.engine import clock
from contextengine.engine.candidate import Candidate, content_hash
from contextengine.schemas.context import Criticality
from contextengine.schemas.decision import Suppression
from contextengine.schemas.events import ATTACH, EVERYTHING, HAND_OFF
from contextengine.schemas.session import HeldInjection, Session

BUFFERED: Final = 64
BUFFERED_BYTES: Final = 512 * 1024
"""What a session's facts and contexts may have of its state, as it is written, so that the whole fits into a record."""
GROWTH_BYTES: Final = 1_024
"""What an injection may add to the state once it is accepted: its timer, its failures."""

Filter: TypeAlias = "Callable[[Candidate, Session, int], str | None]"


def refuse(candidate: Candidate, session: Session, now_ms: int, off: Collection[str] = ()) -> Suppression | None:
    """Why `candidate` must not become an injection, or None; `off` is what the session's partition has switched off."""
    if switch := switched_off(off, candidate.rule.name, session.provider):
        return Suppression(rule=candidate.rule.name, filter="switch", reason=switch)
    for name, asks in FILTERS.items():
        reason = asks(candidate, session, now_ms)
        if reason is not None:
            return Suppression(rule=candidate.rule.name, filter=name, reason=reason)
    return None


def switched_off(off: Collection[str], rule: str, provider: str) -> str | None:
    """Which switch keeps the contexts of this rule from this provider, or None."""
    found = next((name for name in (EVERYTHING, f"rule:{rule}", f"provider:{provider}") if name in off), None)
    return None if found is None else f"switched off: {found}"


def no_room(held: HeldInjection, session: Session) -> str | None:
    """Why the session cannot take on another injection, or None."""
    count = len(session.held)
    if count >= BUFFERED and held.injection.context.metadata.criticality is not Criticality.CRITICAL:
        return f"{count} injections of this session have not ended, at most {BUFFERED} may wait"
    size = len(msgspec.json.encode((session.facts, session.live, session.held, held))) + GROWTH_BYTES * (count + 1)
    if size > BUFFERED_BYTES:
        return f"with it the state's facts and contexts would have {size} bytes, at most {BUFFERED_BYTES} are allowed"
    return None


def _route(candidate: Candidate, session: Session, now_ms: int) -> str | None:  # noqa: ARG001
    if session.ended_ms is not None:
        return "the session has ended"
    if session.started_ms is None:
        return "the session has not started: no SessionStarted has said where its contexts go"
    if session.route not in (ATTACH, HAND_OFF):
        return f"nobody delivers by route {session.route!r}; known: {ATTACH}, {HAND_OFF}"
    return None


def _ttl(candidate: Candidate, session: Session, now_ms: int) -> str | None:  # noqa: ARG001
    late_ms = now_ms - candidate.injection.deadline_ms
    return f"its life ended {late_ms} ms before it was decided" if late_ms >= 0 else None


def _size(candidate: Candidate, session: Session, now_ms: int) -> str | None:  # noqa: ARG001
    return candidate.context.oversize()


def _slot(candidate: Candidate, session: Session, now_ms: int) -> str | None:  # noqa: ARG001
    for held in session.held.values():
        injection = held.injection
        if injection.context.metadata.key == candidate.slot and injection.position == candidate.injection.position:
            return f"{injection.rule} fired on the same event and goes first"
    return None


def _duplicate(candidate: Candidate, session: Session, now_ms: int) -> str | None:
    content = content_hash(candidate.context)
    live = session.live.get(candidate.slot)
    if live is not None and live.content_hash == content:
        if live.injection_id == candidate.injection.injection_id:
            return "it is a copy of what went in"
        ago_ms = now_ms - live.since_ms
        if ago_ms < clock.broker_span_ms(session, candidate.rule.cooldown_ms):
            ago_s = round(ago_ms * session.time_scale / 1_000)
            return f"the same content went in {ago_s} s ago; cool-down {candidate.rule.cooldown_ms // 1_000} s"
    for held in session.held.values():
        context = held.injection.context
        if not held.called_back and context.metadata.key == candidate.slot and content_hash(context) == content:
            return f"the same content is on its way ({held.stage.value})"
    return None


def _buffer(candidate: Candidate, session: Session, now_ms: int) -> str | None:  # noqa: ARG001
    return no_room(candidate.held, session)


def _share(candidate: Candidate, session: Session, now_ms: int) -> str | None:  # noqa: ARG001
    rule = candidate.rule
    if rule.has_in_share(session.session_id):
        return None
    return f"not one of its {rule.share:.0%} of sessions: would have injected {_shown(candidate)}"


def _shadow(candidate: Candidate, session: Session, now_ms: int) -> str | None:  # noqa: ARG001
    return f"on trial: would have injected {_shown(candidate)}" if candidate.rule.shadow else None


def _shown(candidate: Candidate) -> str:
    return repr(candidate.context.render()[:500])


FILTERS: Final[Mapping[str, Filter]] = {
    "route": _route,
    "ttl": _ttl,
    "size": _size,
    "slot": _slot,
    "duplicate": _duplicate,
    "buffer": _buffer,
    "share": _share,
    "shadow": _shadow,
}
