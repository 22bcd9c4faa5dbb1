"""A context that a rule proposes: not yet an injection, and perhaps never one."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Final
from uuid import UUID, uuid5

import msgspec

from contextengine.engine import clock
from contextengine.engine.builders import Content
from contextengine.engine.rules import Rule
from contextengine.schemas.context import Context, ContextMetadata
from contextengine.schemas.injection import Injection
from contextengine.schemas.session import HeldInjection, Place, Placement, Session

_IDS: Final = UUID("6f2d3c0e-9f0b-5c43-8d55-5f3a2c1c7f10")


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a rule wants to inject. `trigger_ms` is when its trigger happened, `position` where in the log's terms."""

    rule: Rule
    context: Context
    position: str
    trigger_ms: int
    deadline_ms: int

    @property
    def slot(self) -> str:
        """The key under which a session has one live context."""
        return self.context.metadata.key

    def hold(self, session: Session, now_ms: int) -> HeldInjection:
        """The injection that this becomes when nothing refuses it."""
        rule = self.rule
        injection = Injection(
            injection_id=injection_id(session.session_id, rule.name, self.position, self.slot),
            session_id=session.session_id,
            rule=rule.name,
            position=self.position,
            trigger_ms=self.trigger_ms,
            deadline_ms=self.deadline_ms,
            timeout_ms=rule.timeout_ms,
            context=self.context,
            policy=rule.failure_policy,
        )
        fallback = rule.fallback_ms
        return HeldInjection(
            injection,
            Placement(
                rule.place,
                quiet_ms=clock.broker_span_ms(session, rule.quiet_ms) if rule.place is Place.SILENCE else 0,
                fallback_ms=None if fallback is None else now_ms + clock.broker_span_ms(session, fallback),
            ),
            reassert=rule.is_reasserted,
        )


def propose(rule: Rule, content: Content, session: Session, position: str, trigger_ms: int, now_ms: int) -> Candidate:
    """The candidate that `rule` makes of `content`; its life counts from the trigger's own time."""
    ttl_ms = clock.broker_span_ms(session, rule.ttl_ms)
    metadata = ContextMetadata(
        source=f"rule:{rule.name}",
        key=rule.slot,
        created_ms=now_ms,
        ttl_ms=ttl_ms,
        criticality=rule.criticality,
        priority=rule.priority,
        trust=rule.trust,
        respond=rule.respond,
    )
    context = Context(metadata, content.information, content.strategy, content.attention)
    return Candidate(rule, context, position, trigger_ms, trigger_ms + ttl_ms)


def injection_id(session_id: str, rule: str, position: str, slot: str) -> str:
    """32 hexadecimal characters, the same for the same trigger whoever works it out, and short enough for OpenAI."""
    return uuid5(_IDS, f"{session_id}\x1f{rule}\x1f{position}\x1f{slot}").hex


def redriven_id(injection_id: str, number: int) -> str:
    """The id under which a dead injection comes back for the `number`th time."""
    return uuid5(_IDS, f"{injection_id}\x1fredrive\x1f{number}").hex


def reasserted_id(injection_id: str, position: str) -> str:
    """The id under which a context goes in again that the model has lost because of the event at this position."""
    return uuid5(_IDS, f"{injection_id}\x1freassert\x1f{position}").hex


def content_hash(context: Context) -> str:
    """A digest of what a context says, whoever says it when."""
    said = msgspec.json.encode((context.information, context.strategy, context.attention))
    return blake2b(said, digest_size=12).hexdigest()
