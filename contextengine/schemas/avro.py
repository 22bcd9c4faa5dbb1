"""The Avro schema of a record, derived from its type: the type is the one definition, the shipped file follows it.

`python -m contextengine.schemas.avro` writes `avsc/NAME.avsc`; a test fails while the two differ. Where the record
itself has changed, and not only its words, what was there before stays as `avsc/NAME.1.avsc`, `NAME.2.avsc`: every
version that was ever written is shipped. A field is only ever added, with a default.

Mapping (Avro 1.12): str and its enums -> string, int -> long, float -> double, bool -> boolean, `X | None` -> union
with null first, list -> array, dict -> map, a Struct -> record. Enums are strings on the wire, so that a new member
breaks no reader.
"""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

import msgspec
from fastavro.schema import fingerprint, to_parsing_canonical_form
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
        return [_type(member, named) for member in union_members(hint)]
    if origin is list:
        return {"type": "array", "items": _type(get_args(hint)[0], named)}
    if origin is dict:
        return {"type": "map", "values": _type(get_args(hint)[1], named)}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "string"
    if isinstance(hint, type) and issubclass(hint, Struct):
        return f"{NAMESPACE}.{hint.__name__}" if hint.__name__ in named else _record(hint, named)
    raise TypeError(f"{hint!r} has no Avro type here")


def fingerprint_of(schema: dict[str, Any]) -> bytes:
    """The CRC-64-AVRO fingerprint of a schema, 8 bytes as they stand in a record."""
    return bytes.fromhex(fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO"))


def former(record: type[Struct]) -> list[dict[str, Any]]:
    """The schemas that `record` had before, the oldest first."""
    files = sorted(AVSC.glob(f"{record.__name__}.*.avsc"), key=lambda file: int(file.suffixes[0][1:]))
    return [json.loads(file.read_text()) for file in files]


def union_members(hint: Any) -> list[Any]:
    """The types of a union in the order of their branches: null comes first."""
    return sorted(get_args(hint), key=lambda member: member is not NoneType)


def avsc_text(record: type[Struct]) -> str:
    """The content of the shipped file for `record`."""
    return json.dumps(schema_of(record), indent=2) + "\n"


def ship(record: type[Struct]) -> None:
    """Write the file of `record`; one that says something else is kept as a former version."""
    file = AVSC / f"{record.__name__}.avsc"
    shipped = file.read_text() if file.exists() else None
    if shipped is not None and fingerprint_of(json.loads(shipped)) != fingerprint_of(schema_of(record)):
        file.rename(AVSC / f"{record.__name__}.{len(former(record)) + 1}.avsc")
    file.write_text(avsc_text(record))


if __name__ == "__main__":
    from contextengine.schemas.codec import RECORDS

    for each in RECORDS:
        ship(each)
