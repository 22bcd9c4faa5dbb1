"""Records to bytes and back: a header that names the schema, then the Avro binary payload.

As a rule the header is that of Avro's single-object encoding (Avro 1.12): the marker C3 01 and the CRC-64-AVRO
fingerprint of the schema (8 bytes, little endian); no service is needed to read it. With a schema registry it is the
registry's: a zero byte and the schema's id there (4 bytes, big endian). Either names the type and its version, so a
topic may hold many types. Records are written in the newest version of their schema; every version shipped is read.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec
from fastavro import parse_schema, schemaless_reader
from msgspec import Struct

from contextengine.errors import UndecodableRecord
from contextengine.schemas.avro import NAMESPACE, fingerprint_of, former, schema_of
from contextengine.schemas.dead_letter import DeadLetterRedriven
from contextengine.schemas.decision import DecisionMade
from contextengine.schemas.decoder import Decoder, decoder_of
from contextengine.schemas.encoder import encoder_of
from contextengine.schemas.events import (
    CONVERSATION_EVENTS,
    AttemptReported,
    InjectionRedriven,
    PartitionAssigned,
    RetryDue,
    RulesChanged,
    SwitchesChanged,
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
REGISTRY_MARKER: Final = b"\x00"
REGISTRY_HEADER_BYTES: Final = 5

EVENTS: Final[tuple[type[Struct], ...]] = (
    *CONVERSATION_EVENTS,
    Tick,
    AttemptReported,
    RetryDue,
    InjectionRedriven,
    PartitionAssigned,
    RulesChanged,
    SwitchesChanged,
)
RECORDS: Final[tuple[type[Struct], ...]] = (
    *EVENTS,
    InjectionAttempt,
    InjectionCancelled,
    AttemptVerdict,
    RetryRequested,
    InjectionResult,
    DecisionMade,
    DeadLetterRedriven,
)


class _Form:
    """One version of a record's schema, and how what was written in it is read."""

    __slots__ = ("_decode", "fingerprint", "record")

    def __init__(self, record: type[Struct], schema: dict[str, Any], decode: Decoder[Struct]) -> None:
        self.record = record
        self.fingerprint = fingerprint_of(schema)
        self._decode = decode

    def read(self, data: bytes, start: int) -> Struct:
        """The record whose payload begins at `start`; UndecodableRecord says what is wrong with it."""
        try:
            record, end = self._decode(data, start)
        except Exception as error:  # broken bytes raise many types, and all of them mean this
            raise UndecodableRecord(f"{self.record.__name__}: {type(error).__name__}: {error}") from error
        if end != len(data):
            told = f"{len(data) - end} bytes left over" if end < len(data) else "cut off"
            raise UndecodableRecord(f"{self.record.__name__}: {told}")
        return record


def _former_decoder(record: type[Struct], schema: dict[str, Any]) -> Decoder[Struct]:
    """The decoder of an older version of a record, which becomes one of the newest."""
    written, newest = parse_schema(schema), parse_schema(schema_of(record))

    def decode(data: bytes, start: int) -> tuple[Struct, int]:
        stream = io.BytesIO(data)
        stream.seek(start)
        return msgspec.convert(schemaless_reader(stream, written, newest), record), stream.tell()

    return decode


_NEWEST: Final = {record: _Form(record, schema_of(record), decoder_of(record)) for record in RECORDS}
_FORMER: Final = [
    _Form(record, schema, _former_decoder(record, schema)) for record in RECORDS for schema in former(record)
]
_FORMS: Final = [*_NEWEST.values(), *_FORMER]
_SINGLE_OBJECT: Final = {MARKER + form.fingerprint: form for form in _FORMS}
_ENCODERS: Final = {record: encoder_of(record) for record in RECORDS}
_R = TypeVar("_R", bound=Struct)


class Codec:
    """How the records of an installation are written and read.

    `headers` has the header of every schema by its fingerprint, all of one length.
    """

    def __init__(self, headers: Mapping[bytes, bytes]) -> None:
        self._writers = {record: (headers[form.fingerprint], _ENCODERS[record]) for record, form in _NEWEST.items()}
        self._forms = {headers[form.fingerprint]: form for form in _FORMS}
        self._header_bytes = len(next(iter(self._forms)))

    def encode(self, record: Struct) -> bytes:
        """The bytes of `record`. TypeError or ValueError when a field holds what its type does not allow."""
        header, payload_of = self._writers[type(record)]
        try:
            return header + payload_of(record)
        except UnicodeEncodeError:
            raise
        except Exception as error:  # a wrong value raises many types
            raise _refusal(record, error) from error

    def decode(self, data: bytes) -> Struct:
        """The record in `data`; UndecodableRecord says what is wrong with the bytes.

        A record in single-object encoding is always read: an installation may come to have a schema registry.
        """
        form = self._forms.get(data[: self._header_bytes])
        if form is not None:
            return form.read(data, self._header_bytes)
        form = _SINGLE_OBJECT.get(data[:HEADER_BYTES])
        if form is None:
            raise UndecodableRecord(_unknown_header(data))
        return form.read(data, HEADER_BYTES)

    def decode_as(self, record: type[_R], data: bytes) -> _R:
        """The record in `data`, which must be a `record`; UndecodableRecord when it is another."""
        found = self.decode(data)
        if not isinstance(found, record):
            raise UndecodableRecord(f"a {type(found).__name__}, expected a {record.__name__}")
        return found


SINGLE_OBJECT: Final = Codec({form.fingerprint: header for header, form in _SINGLE_OBJECT.items()})
encode: Final = SINGLE_OBJECT.encode
decode: Final = SINGLE_OBJECT.decode
decode_as: Final = SINGLE_OBJECT.decode_as


def registry_codec(ids: Mapping[bytes, int]) -> Codec:
    """The codec of a schema registry that has each schema, by its fingerprint, under such an id."""
    return Codec({name: REGISTRY_MARKER + number.to_bytes(4, "big") for name, number in ids.items()})


def shipped_schemas() -> list[tuple[str, bytes, str]]:
    """Every schema of every record, the oldest version first: the record's full name, fingerprint, JSON text.

    Without the words that describe it: a registry would take a schema with other words for another schema.
    """
    schemas = ((record, schema) for record in RECORDS for schema in [*former(record), schema_of(record)])
    return [
        (f"{NAMESPACE}.{record.__name__}", fingerprint_of(schema), json.dumps(_without_doc(schema)))
        for record, schema in schemas
    ]


def _without_doc(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_doc(part) for part in schema]
    if isinstance(schema, dict):
        kept = {name: part for name, part in schema.items() if name != "doc"}
        return {name: part if name == "default" else _without_doc(part) for name, part in kept.items()}
    return schema


def _refusal(record: Struct, error: Exception) -> TypeError | ValueError:
    """What is wrong with a record that `error` kept from being written: msgspec names the field of another type."""
    try:
        msgspec.convert(msgspec.to_builtins(record, builtin_types=(bytes,)), type(record))
    except (TypeError, ValueError) as mismatch:
        return TypeError(f"{type(record).__name__}: {mismatch}")
    return ValueError(f"{type(record).__name__}: {error}")


def _unknown_header(data: bytes) -> str:
    if data.startswith(REGISTRY_MARKER) and len(data) >= REGISTRY_HEADER_BYTES:
        number = int.from_bytes(data[1:REGISTRY_HEADER_BYTES], "big")
        return f"a schema registry's record, of schema id {number}, which is none of ours"
    if not data.startswith(MARKER):
        return f"no single-object Avro: starts with {data[:2].hex() or 'nothing'}, expected {MARKER.hex()}"
    if len(data) < HEADER_BYTES:
        return f"cut off after {len(data)} bytes, before the end of the schema fingerprint"
    return f"unknown schema fingerprint {data[2:HEADER_BYTES].hex()}"
