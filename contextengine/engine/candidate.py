"""A context that a rule proposes: not yet an injection, and perhaps never one."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b, sha1
from typing import Final

import msgspec

from contextengine.engine import clock
from contextengine.engine.builders import Content
from contextengine.engine.rules import Rule
from contextengine.schemas.context import Context, ContextMetadata
from contextengine.schemas.injection import Injection
from contextengine.schemas.session import HeldInjection, Place, Placement, Session

_IDS: Final = bytes.fromhex("6f2d3c0e9f0b5c438d555f3a2c1c7f10")


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a rule wants to inject: `held` is the injection that this becomes when nothing refuses it."""

    rule: Rule
    held: HeldInjection

    @property
    def injection(self) -> Injection:
        """The same, without where it waits."""
        return self.held.injection

    @property
    def context(self) -> Context:
        """What it says."""
        return self.injection.context

    @property
    def slot(self) -> str:
        """The key under which a session has one live context."""
        return self.context.metadata.key


def propose(rule: Rule, content: Content, session: Session, position: str, trigger_ms: int, now_ms: int) -> Candidate:
    """The candidate that `rule` makes of `content`; its life counts from `trigger_ms`, when its trigger happened.

    `position` is where that stands, in the log's terms.
    """
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
    injection = Injection(
        injection_id=injection_id(session.session_id, rule.name, position, rule.slot),
        session_id=session.session_id,
        rule=rule.name,
        position=position,
        trigger_ms=trigger_ms,
        deadline_ms=trigger_ms + ttl_ms,
        timeout_ms=rule.timeout_ms,
        context=context,
        policy=rule.failure_policy,
    )
    fallback = rule.fallback_ms
    placement = Placement(
        rule.place,
        quiet_ms=clock.broker_span_ms(session, rule.quiet_ms) if rule.place is Place.SILENCE else 0,
        fallback_ms=None if fallback is None else now_ms + clock.broker_span_ms(session, fallback),
    )
    held = HeldInjection(injection, placement, reassert=rule.is_reasserted)
    return Candidate(rule, held)


def injection_id(session_id: str, rule: str, position: str, slot: str) -> str:
    """32 hexadecimal characters, the same for the same trigger whoever works it out, and short enough for OpenAI."""
    return _id(f"{session_id}\x1f{rule}\x1f{position}\x1f{slot}")


def redriven_id(injection_id: str, number: int) -> str:
    """The id under which a dead injection comes back for the `number`th time."""
    return _id(f"{injection_id}\x1fredrive\x1f{number}")


def reasserted_id(injection_id: str, position: str) -> str:
    """The id under which a context goes in again that the model has lost because of the event at this position."""
    return _id(f"{injection_id}\x1freassert\x1f{position}")


def _id(name: str) -> str:
    """A version 5 UUID (RFC 9562) as `uuid.uuid5` makes it, without the object, which costs more than the hash."""
    digest = bytearray(sha1(_IDS + name.encode(), usedforsecurity=False).digest()[:16])
    digest[6], digest[8] = digest[6] & 0x0F | 0x50, digest[8] & 0x3F | 0x80
    return digest.hex()


def content_hash(context: Context) -> str:
    """A digest of what a context says, whoever says it when."""
    said = msgspec.json.encode((context.information, context.strategy, context.attention))
    return blake2b(said, digest_size=12).hexdigest()
