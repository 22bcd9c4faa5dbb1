"""The Avro schema of a record, derived from its type: the type is the one definition, the shipped file follows it.

`python -m contextengine.schemas.avro` writes `avsc/`; a test fails while the two differ. Mapping (Avro 1.12): str
and its enums -> string, int -> long, float -> double, bool -> boolean, `X | None` -> union with null first, list ->
array, dict -> map, a Struct -> record. Enums are strings on the wire, so that a new member breaks no reader.
"""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct

NAMESPACE: Final = "contextengine"
AVSC: Final = Path(__file__).parent / "avsc"

_PRIMITIVES: Final = {str: "string", int: "long", float: "double", bool: "boolean", bytes: "bytes", NoneType: "null"}


def schema_of(record: type[Struct]) -> dict[str, Any]:
    """The Avro record schema of `record`, with the first line of its docstring as `doc`."""
    return _record(record, set())


def _record(record: type[Struct], named: set[str]) -> dict[str, Any]:
    named.add(record.__name__)
    hints = get_type_hints(record)
    fields = []
    for field in msgspec.structs.fields(record):
        avro: dict[str, Any] = {"name": field.name, "type": _type(hints[field.name], named)}
        if field.default is not msgspec.NODEFAULT:
            avro["default"] = field.default.value if isinstance(field.default, Enum) else field.default
        elif field.default_factory is not msgspec.NODEFAULT:
            avro["default"] = msgspec.to_builtins(field.default_factory())
        fields.append(avro)
    doc = (record.__doc__ or "").strip().splitlines()[0]
    return {"type": "record", "name": record.__name__, "namespace": NAMESPACE, "doc": doc, "fields": fields}


def _type(hint: Any, named: set[str]) -> Any:
    if hint in _PRIMITIVES:
        return _PRIMITIVES[hint]
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        members = sorted(get_args(hint), key=lambda member: member is not NoneType)
        return [_type(member, named) for member in members]
    if origin is list:
        return {"type": "array", "items": _type(get_args(hint)[0], named)}
    if origin is dict:
        return {"type": "map", "values": _type(get_args(hint)[1], named)}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "string"
    if isinstance(hint, type) and issubclass(hint, Struct):
        return f"{NAMESPACE}.{hint.__name__}" if hint.__name__ in named else _record(hint, named)
    raise TypeError(f"{hint!r} has no Avro type here")


def avsc_text(record: type[Struct]) -> str:
    """The content of the shipped file for `record`."""
    return json.dumps(schema_of(record), indent=2) + "\n"


if __name__ == "__main__":
    from contextengine.schemas.codec import RECORDS

    for shipped in RECORDS:
        (AVSC / f"{shipped.__name__}.avsc").write_text(avsc_text(shipped))
