"""Why something was or was not injected: the records of the decisions topic."""

from __future__ import annotations

from msgspec import Struct


class Firing(Struct, frozen=True, kw_only=True):
    """A rule fired, and on what evidence."""

    rule: str
    evidence: dict[str, str]


class Suppression(Struct, frozen=True, kw_only=True):
    """A fired rule's context was held back: by which filter, and why."""

    rule: str
    filter: str
    reason: str


class Acceptance(Struct, frozen=True, kw_only=True):
    """A fired rule's context became an injection; `placement` is the moment it waits for."""

    rule: str
    injection_id: str
    placement: str
    text: str


class DecisionMade(Struct, frozen=True, kw_only=True):
    """What was decided because of one event, and the digest of all decisions about its session up to here."""

    session_id: str
    position: str
    event: str
    now_ms: int
    elapsed_ms: int
    rules_hash: str
    digest: str
    fired: list[Firing] = []
    accepted: list[Acceptance] = []
    suppressed: list[Suppression] = []
    released: list[str] = []
