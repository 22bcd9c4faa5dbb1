"""What a rule's templates and conditions may ask of a session, by its names there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from contextengine.engine.clock import elapsed_ms
from contextengine.engine.phase import phase_of
from contextengine.engine.triggers.notice import CLOSING, MOOD
from contextengine.schemas.session import Session


class Asked(NamedTuple):
    """A value of a session at a broker time: its type, where it comes from, what must be attended to for it."""

    kind: type[str | int]
    of: Callable[[Session, int], str | int]
    attends: str | None = None


OF_SESSION: Final[Mapping[str, Asked]] = {
    "id": Asked(str, lambda session, _: session.session_id),
    "minutes": Asked(int, lambda session, now_ms: elapsed_ms(session, now_ms) // 60_000),
    "messages": Asked(int, lambda session, _: session.messages),
    "turns": Asked(int, lambda session, _: session.turns),
    "emotion": Asked(str, lambda session, _: session.emotion, MOOD),
    "phase": Asked(str, lambda session, _: phase_of(session), CLOSING),
    "modality": Asked(str, lambda session, _: session.modality),
    "user": Asked(str, lambda session, _: session.user_id or ""),
    "provider": Asked(str, lambda session, _: session.provider),
    "model": Asked(str, lambda session, _: session.model),
}
