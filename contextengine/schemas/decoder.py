"""A decoder for each record type, generated: the steps that Avro's binary encoding takes for it, in plain Python.

An event is decoded in two microseconds, half of what a decoder needs that interprets a schema and makes a dict first.
The steps follow the type hints, which is where the schema comes from too (avro.py); fastavro is what tests compare them
with. A record of another version of its schema is fastavro's to read.

Whatever the bytes are, a decoder ends: it never goes back, and everything that it reads or repeats takes at least a
byte that is there. It may take cut-off bytes for a record, which then ends behind them: the caller compares the end.
Kafka's own numbers are Avro's, so aiokafka's C reads those of several bytes. It looks for no end of the data: the first
byte was there, and the last of `bytes` in memory is a zero, which ends every number.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from struct import Struct as Layout
from types import NoneType, UnionType
from typing import Any, Final, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from aiokafka.record.util import decode_varint
from msgspec import Struct

from contextengine.schemas.avro import union_members
from contextengine.schemas.generated import Function

R = TypeVar("R", bound=Struct)

Decoder: TypeAlias = Callable[[bytes, int], tuple[R, int]]
"""The record whose payload begins at a place, and the place where it ends; broken bytes raise errors of all kinds."""

_SIGNED: Final = tuple(number >> 1 ^ -(number & 1) for number in range(128))
"""The numbers of one byte, zigzag undone."""
_LENGTH: Final = tuple(1 + (byte >> 1) if byte < 128 and not byte & 1 else 0 for byte in range(256))
"""How long a text is together with its length in one byte, by that byte; 0 for one that is none or has more bytes."""


class _Writer(Function):
    """Writes the decoder of a record: `steps` leave the value of a type in a variable and move `at` behind it."""

    def __init__(self) -> None:
        super().__init__(_varint=decode_varint, _signed=_SIGNED, _length=_LENGTH, _double=Layout("<d").unpack_from)

    def record(self, record: type[Struct], into: str, indent: str) -> None:
        hints, given = get_type_hints(record), []
        for field in msgspec.structs.fields(record):
            variable = self._variable()
            self.steps(hints[field.name], variable, indent)
            given.append(f"{field.name}={variable}")
        self._write(indent, f"{into} = {self._constant(record)}({', '.join(given)})")

    def steps(self, hint: Any, into: str, indent: str) -> None:
        origin = get_origin(hint)
        if hint is NoneType:
            self._write(indent, f"{into} = None")
        elif hint is int:
            self._write(
                indent,
                f"{into} = data[at]",
                f"if {into} < 128: {into} = _signed[{into}]; at += 1",
                f"else: {into}, at = _varint(data, at)",
            )
        elif hint is float:
            self._write(indent, f"{into}, = _double(data, at); at += 8")
        elif hint is bool:
            self._write(indent, f"{into} = data[at] != 0; at += 1")
        elif hint in (str, bytes):
            self._bytes(into, "" if hint is bytes else ".decode()", indent)
        elif origin in (Union, UnionType):
            self._union(hint, into, indent)
        elif origin in (list, dict):
            self._blocks(hint, into, indent)
        elif issubclass(hint, Enum):
            members = self._constant({member.value.encode(): member for member in hint})
            self._bytes(into, "", indent)
            self._write(indent, f"{into} = {members}[{into}]")
        else:
            self.record(hint, into, indent)

    def _bytes(self, into: str, read: str, indent: str) -> None:
        self._write(
            indent,
            "end = at + _length[data[at]]",
            f"if end != at: {into} = data[at + 1:end]{read}; at = end",
            "else:",
            " size, at = _varint(data, at)",
            " if size < 0: raise ValueError('a length below 0')",
            f" end = at + size; {into} = data[at:end]{read}; at = end",
        )

    def _union(self, hint: Any, into: str, indent: str) -> None:
        self._write(indent, "branch = data[at]; at += 1")
        for number, member in enumerate(union_members(hint)):
            self._write(indent, f"{'el' if number else ''}if branch == {number * 2}:")
            self.steps(member, into, indent + " ")
        self._write(indent, "else: raise ValueError('a union has no such branch')")

    def _blocks(self, hint: Any, into: str, indent: str) -> None:
        """Avro's blocks: a count and as many items, again and again until a count of 0; below 0, a size follows."""
        listed, count, key, item = get_origin(hint) is list, self._variable(), self._variable(), self._variable()
        self._write(indent, f"{into} = {'[]' if listed else '{}'}", "while True:")
        self.steps(int, count, indent + " ")
        self._write(indent, f" if not {count}: break", f" if {count} < 0:", f"  {count} = -{count}")
        self.steps(int, "size", indent + "  ")
        self._write(indent, f" for _ in range({count}):")
        if listed:
            self.steps(get_args(hint)[0], item, indent + "  ")
            self._write(indent, f"  {into}.append({item})")
        else:
            self.steps(str, key, indent + "  ")
            self.steps(get_args(hint)[1], item, indent + "  ")
            self._write(indent, f"  {into}[{key}] = {item}")


def decoder_of(record: type[R]) -> Decoder[R]:
    """The decoder of a record type, for the newest version of its schema."""
    writer = _Writer()
    writer.record(record, "found", " ")
    decode: Decoder[R] = writer.made("decode(data, at)", "found, at", f"decoder of {record.__name__}")
    return decode
