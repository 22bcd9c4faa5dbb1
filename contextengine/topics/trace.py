"""The trace that a record carries, and everything that it causes (W3C Trace Context)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

TRACE: Final = "traceparent"


def trace_of(headers: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Of a record's headers those that go on to whatever the record causes."""
    return [(name, value) for name, value in headers if name == TRACE]
