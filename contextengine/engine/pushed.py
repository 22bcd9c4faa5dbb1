"""Contexts that another service pushes into a session, handled as if a rule had fired."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from contextengine.engine.builders import Content
from contextengine.engine.moment import Moment
from contextengine.engine.rules import Rule
from contextengine.engine.strategies.strategy import Evidence
from contextengine.schemas.events import ContextPushed
from contextengine.schemas.session import Memory

PUSHED: Final = "pushed:"
"""What the names of such rules and their slots begin with: they never supersede a rule's own context."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """Fires on the context that was pushed, and says what it says: text as it is, never a template."""

    content: Content

    listens: ClassVar[frozenset[type]] = frozenset({ContextPushed})
    quotes_people: ClassVar[bool] = True

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:  # noqa: ARG002
        """Who has pushed it."""
        return {"pushed by": moment.event.producer} if isinstance(moment.event, ContextPushed) else None

    def build(self, moment: Moment, evidence: Evidence) -> Content:  # noqa: ARG002
        """What was pushed."""
        return self.content


def pushed_rule(event: ContextPushed) -> Rule:
    """The rule that stands for what was pushed. ValueError when it asks for what no rule may."""
    if not (event.information or event.strategy or event.attention):
        raise ValueError("at least one of information, strategy and attention must say something")
    pushed = Pushed(Content(event.information, event.strategy, event.attention))
    return Rule(
        name=name_of(event),
        when=pushed,
        build=pushed,
        criticality=event.criticality,
        priority=event.priority,
        ttl_ms=event.ttl_ms,
        key=PUSHED + event.key if event.key else "",
        place=event.place,
        fallback_ms=event.fallback_ms,
        cooldown_ms=0,
        respond=event.respond,
        trust=event.trust,
    )


def name_of(event: ContextPushed) -> str:
    """Under which name it is explained and can be switched off."""
    return PUSHED + (event.name or event.producer)
