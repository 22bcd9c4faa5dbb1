"""What a context is: three equal dimensions, and what the engine must know to handle it."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, TypeAlias

from msgspec import Struct

INJECTION_BYTES: Final = 32 * 1024
"""How much text a context may have."""

Facts: TypeAlias = dict[str, str | list[str]]
"""One dimension: names to a sentence, or to a list of them; the order is the order in which a model reads it."""


class Criticality(StrEnum):
    """How much it matters that a context arrives; the default failure policy follows from it."""

    CRITICAL = "critical"
    IMPORTANT = "important"
    HELPFUL = "helpful"
    OPTIONAL = "optional"


class Trust(StrEnum):
    """Whether a text may speak to a model with authority: untrusted text never gets a system or developer role."""

    TRUSTED = "trusted"
    UNTRUSTED = "untrusted"


class Respond(StrEnum):
    """Whether the model is asked to speak once the context is in: a fact must not, an idle prompt must."""

    NEVER = "never"
    AFTER_TURN = "after_turn"
    NOW = "now"


class ContextMetadata(Struct, frozen=True):
    """What the engine must know about a context to handle it.

    `key` is the context's slot: a session has one live context for each key, and a newer one supersedes it.
    `ttl_ms` counts from `created_ms` (broker time); `priority` decides who goes first (greater is sooner).
    """

    source: str
    key: str
    created_ms: int
    ttl_ms: int
    criticality: Criticality = Criticality.HELPFUL
    priority: int = 0
    trust: Trust = Trust.TRUSTED
    respond: Respond = Respond.NEVER


class Context(Struct, frozen=True):
    """What to put in front of a model: what it should know, how it should behave, what it should focus on."""

    metadata: ContextMetadata
    information: Facts = {}
    strategy: Facts = {}
    attention: Facts = {}

    def render(self) -> str:
        """The text that a model reads; the same context always renders to the same text.

        Dimensions come in a fixed order, facts in their own; an attention's `focus` and `avoid` become two lists.
        """
        sections = [
            _section("Information", self.information),
            _section("Strategy", self.strategy),
            _section("Attention", {_ATTENTION.get(name, name): told for name, told in self.attention.items()}),
        ]
        return "\n\n".join(section for section in sections if section)

    def oversize(self) -> str | None:
        """Why its text is too long to be injected, or None."""
        size = len(self.render().encode())
        return f"{size} bytes of text, at most {INJECTION_BYTES} are allowed" if size > INJECTION_BYTES else None


_ATTENTION = {"focus": "Focus on", "avoid": "Avoid"}


def _section(title: str, facts: Facts) -> str:
    lines = [f"- {name}: {told if isinstance(told, str) else '; '.join(told)}" for name, told in facts.items()]
    return "\n".join([f"[{title}]", *lines]) if lines else ""
