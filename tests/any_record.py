"""Hypothesis strategies for records, made from their types: whatever a record may hold, it holds sooner or later."""

from __future__ import annotations

from enum import Enum
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from msgspec import Struct

LONG = st.integers(-(2**63), 2**63 - 1)
_PLAIN = {
    str: st.text(max_size=20),
    int: LONG,
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    bytes: st.binary(max_size=20),
    NoneType: st.none(),
}


def examples(count: int) -> settings:
    """So many examples of a property; none has a time limit, because the machine may have more to do."""
    return settings(max_examples=count, deadline=None)


def any_value(hint: Any) -> st.SearchStrategy[Any]:
    """Values that a field of this type may hold."""
    if hint in _PLAIN:
        return _PLAIN[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return st.one_of([any_value(member) for member in arguments])
    if origin is list:
        return st.lists(any_value(arguments[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(any_value(arguments[0]), any_value(arguments[1]), max_size=3)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(hint)
    return any_record(hint)


def any_record(kind: type[Struct], **fixed: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Records of this kind, none in one of its own kind; `fixed` says more about some of the fields."""
    hints = get_type_hints(kind)
    named = [field.name for field in msgspec.structs.fields(kind)]
    fields = {name: any_value(hints[name]) for name in named if kind not in get_args(hints[name])}
    return st.builds(kind, **(fields | fixed))
