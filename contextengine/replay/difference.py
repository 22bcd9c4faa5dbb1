"""The first field in which two records differ."""

from __future__ import annotations

from itertools import takewhile
from typing import Any, Final, NamedTuple

import msgspec

ABSENT: Final = "nothing"
SHOWN_CHARACTERS: Final = 200
SHOWN_BEFORE: Final = 40
"""How much is shown of what two texts have in common, before they part."""


class Difference(NamedTuple):
    """A field, by its path (`injection.context.ttl_ms`), and what the two say there, as short text."""

    field: str
    before: str
    after: str


def first_difference(before: object, after: object) -> Difference | None:
    """Where two records, states or lists of them differ first, in the order of their fields; None when nowhere."""
    if type(before) is not type(after) and before is not None and after is not None:
        return Difference("type", type(before).__name__, type(after).__name__)
    return _first("", msgspec.to_builtins(before), msgspec.to_builtins(after))


def _first(path: str, before: Any, after: Any) -> Difference | None:
    if before == after:
        return None
    if isinstance(before, dict) and isinstance(after, dict):
        for name in [*before, *(name for name in after if name not in before)]:
            found = _first(f"{path}.{name}" if path else str(name), before.get(name), after.get(name))
            if found is not None:
                return found
    if isinstance(before, list) and isinstance(after, list):
        for at, (old, new) in enumerate(zip(before, after, strict=False)):
            found = _first(f"{path}[{at}]", old, new)
            if found is not None:
                return found
        at = min(len(before), len(after))
        return Difference(f"{path}[{at}]", _shown(before[at:]), _shown(after[at:]))
    start = 0
    if isinstance(before, str) and isinstance(after, str):
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False)))
        start = max(0, same - SHOWN_BEFORE)
    return Difference(path, _shown(before, start), _shown(after, start))


def _shown(value: Any, start: int = 0) -> str:
    """A value on one line; of a long text the part from `start` on."""
    if value is None or value == []:
        return ABSENT
    text = value[start:] if isinstance(value, str) else msgspec.json.encode(value).decode()
    if len(text) > SHOWN_CHARACTERS:
        text = f"{text[: SHOWN_CHARACTERS - 1]}…"
    return ("…" if start else "") + text.replace("\n", "\\n")
