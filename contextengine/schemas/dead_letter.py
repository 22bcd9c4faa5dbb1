"""What tells a dead letter from other records, and what is recorded about it after it was written."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from msgspec import Struct

PREFIX: Final = "cx-"
"""What the names of our headers begin with."""


class Stage(StrEnum):
    """What could not be done with a record."""

    DECODE = "decode"
    DECIDE = "decide"
    RENDER = "render"
    DELIVER = "deliver"


class DeadLetterRedriven(Struct, frozen=True, kw_only=True):
    """A dead letter was sent back, and the broker has it: on the dead letters' topic, in the letter's own partition.

    `offset` is the letter's; `number` is how often its record has been sent back by now, this time included; `by` is
    who did it. `injection_id` is the injection that a dead one came back as, "" for bytes, which go back as they are.
    """

    offset: int
    number: int
    by: str
    injection_id: str = ""
