"""What an audit found, and what it counted."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

MISSING: Final = "missing"
DIFFERS: Final = "differs"
UNEXPECTED: Final = "unexpected"
OUT_OF_ORDER: Final = "out of order"


class Finding(Struct, frozen=True, kw_only=True):
    """Something that is not as it must be: what about what, in which session, because of the event at which offset.

    Of two that differ, `field` is the first such field, `expected` what the replay says there, `found` what is there.
    """

    problem: str
    what: str
    partition: int
    offset: int | None = None
    session_id: str = ""
    name: str = ""
    field: str = ""
    expected: str = ""
    found: str = ""

    def __str__(self) -> str:
        """The finding as a line for people."""
        place = f"partition {self.partition}" + (f" offset {self.offset}" if self.offset is not None else "")
        of = f" of session {self.session_id}" if self.session_id else ""
        field = f" in {self.field}" if self.field else ""
        words = f": expected {self.expected or 'nothing'}, found {self.found}" if self.expected or self.found else ""
        return f"{self.problem}: {self.what}{' ' if self.name else ''}{self.name}{of} ({place}){field}{words}"


class Report(Struct):
    """What an audit counted and found.

    `events` are those read again, `sessions` those of which some were judged again, `unjudged` the events that no
    worker has durably judged yet. `outcomes` and `attempts` are distinct ones; `copies` are what redeliveries have
    written again, of anything. `unknown` says of sessions why they could not be judged again; `notes` what limits the
    audit.
    """

    events: int = 0
    sessions: int = 0
    decisions: int = 0
    injections: int = 0
    attempts: int = 0
    outcomes: int = 0
    open: int = 0
    verdicts: int = 0
    states: int = 0
    undecodable: int = 0
    dead_letters: int = 0
    copies: int = 0
    unjudged: int = 0
    findings: list[Finding] = []
    unknown: dict[str, str] = {}
    notes: list[str] = []

    @property
    def has_judged(self) -> bool:
        """Whether anything was held against what was written."""
        return bool(self.sessions or self.undecodable)

    @property
    def is_clean(self) -> bool:
        """Whether something was judged, and nothing was found."""
        return self.has_judged and not self.findings
