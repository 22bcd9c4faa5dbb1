"""Records to bytes and back: Avro single-object encoding.

A record's bytes are the marker C3 01, the CRC-64-AVRO fingerprint of its schema (8 bytes, little endian) and the Avro
binary payload (Avro 1.12 specification, "Single-object encoding"). The fingerprint names the type and its version, so a
topic may hold many types and no service is needed to read it.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from types import NoneType
from typing import Any, Final, TypeVar, cast, get_args, get_type_hints

import msgspec
from fastavro import parse_schema, schemaless_reader, schemaless_writer
from fastavro.schema import fingerprint, to_parsing_canonical_form
from msgspec import Struct

from contextengine.errors import UndecodableRecord
from contextengine.schemas.avro import schema_of
from contextengine.schemas.decision import DecisionMade
from contextengine.schemas.events import (
    CONVERSATION_EVENTS,
    AttemptReported,
    PartitionAssigned,
    RetryDue,
    RulesChanged,
    Tick,
)
from contextengine.schemas.injection import (
    AttemptVerdict,
    InjectionAttempt,
    InjectionCancelled,
    InjectionResult,
    RetryRequested,
)

MARKER: Final = b"\xc3\x01"
HEADER_BYTES: Final = 10

EVENTS: Final[tuple[type[Struct], ...]] = (
    *CONVERSATION_EVENTS,
    Tick,
    AttemptReported,
    RetryDue,
    PartitionAssigned,
    RulesChanged,
)
RECORDS: Final[tuple[type[Struct], ...]] = (
    *EVENTS,
    InjectionAttempt,
    InjectionCancelled,
    AttemptVerdict,
    RetryRequested,
    InjectionResult,
    DecisionMade,
)


def _is_plain(hint: Any) -> bool:
    """Whether Avro's value of this type is ours; an enum or a record must be converted."""
    parts = get_args(hint) or (hint,)
    return all(part in (str, int, float, bool, bytes, NoneType) for part in parts)


class _Form:
    """How one record type is written and read."""

    __slots__ = ("build", "header", "nested", "record", "schema")

    def __init__(self, record: type[Struct]) -> None:
        schema = schema_of(record)
        self.record = record
        self.schema = parse_schema(schema)
        self.header = MARKER + bytes.fromhex(fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO"))
        self.nested = not all(_is_plain(hint) for hint in get_type_hints(record).values())
        self.build: Callable[[dict[str, Any]], Struct] = self._convert if self.nested else self._call

    def _call(self, fields: dict[str, Any]) -> Struct:
        return self.record(**fields)

    def _convert(self, fields: dict[str, Any]) -> Struct:
        return msgspec.convert(fields, self.record)


_FORMS: Final = {record: _Form(record) for record in RECORDS}
_BY_HEADER: Final = {form.header: form for form in _FORMS.values()}


def encode(record: Struct) -> bytes:
    """The bytes of `record`. TypeError or ValueError when a field holds what its type does not allow."""
    form = _FORMS[type(record)]
    out = io.BytesIO()
    out.write(form.header)
    fields = msgspec.to_builtins(record) if form.nested else msgspec.structs.asdict(record)
    try:
        schemaless_writer(out, form.schema, fields)
    except OverflowError as error:
        raise ValueError(f"{form.record.__name__}: {error}") from error
    return out.getvalue()


def decode(data: bytes) -> Struct:
    """The record in `data`; UndecodableRecord says what is wrong with the bytes."""
    form = _BY_HEADER.get(data[:HEADER_BYTES])
    if form is None:
        raise UndecodableRecord(_unknown_header(data))
    stream = io.BytesIO(data)
    stream.seek(HEADER_BYTES)
    try:
        record = form.build(cast("dict[str, Any]", schemaless_reader(stream, form.schema, None)))
    except Exception as error:  # fastavro raises many types for broken bytes, and all of them mean this
        raise UndecodableRecord(f"{form.record.__name__}: {type(error).__name__}: {error}") from error
    if stream.tell() != len(data):
        raise UndecodableRecord(f"{form.record.__name__}: {len(data) - stream.tell()} bytes left over")
    return record


_R = TypeVar("_R", bound=Struct)


def decode_as(record: type[_R], data: bytes) -> _R:
    """The record in `data`, which must be a `record`; UndecodableRecord when it is another."""
    found = decode(data)
    if not isinstance(found, record):
        raise UndecodableRecord(f"a {type(found).__name__}, expected a {record.__name__}")
    return found


def _unknown_header(data: bytes) -> str:
    if not data.startswith(MARKER):
        return f"no single-object Avro: starts with {data[:2].hex() or 'nothing'}, expected {MARKER.hex()}"
    if len(data) < HEADER_BYTES:
        return f"cut off after {len(data)} bytes, before the end of the schema fingerprint"
    return f"unknown schema fingerprint {data[2:HEADER_BYTES].hex()}"
