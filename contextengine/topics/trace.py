"""What a record says about where it comes from, in its headers.

The trace that a record carries goes on to everything that it causes (W3C Trace Context). What a worker writes because
of an event also says which event that was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

TRACE: Final = "traceparent"
CAUSE: Final = "cx-cause"
"""The offset of the event, in the partition of the same number; every copy of an output has the same one."""


def trace_of(headers: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Of a record's headers those that go on to whatever the record causes."""
    return [(name, value) for name, value in headers if name == TRACE]


def caused_by(offset: int) -> tuple[str, bytes]:
    """The header of what is written because of the event at `offset`."""
    return CAUSE, b"%d" % offset


def cause_of(headers: Sequence[tuple[str, bytes]]) -> int | None:
    """The offset of the event that a worker wrote this record because of; None when nobody says."""
    told = next((value for name, value in headers if name == CAUSE), b"")
    return int(told) if told.isdigit() else None
