"""The generated encoders beside fastavro, which writes the same bytes for the same records."""

from __future__ import annotations

import io
from enum import StrEnum

import msgspec
import pytest
from any_record import any_record, examples
from fastavro import parse_schema, schemaless_writer
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from contextengine.schemas.avro import schema_of
from contextengine.schemas.codec import HEADER_BYTES, RECORDS, encode
from contextengine.schemas.decoder import decoder_of
from contextengine.schemas.encoder import encoder_of


class Colour(StrEnum):
    """An enum beside other types."""

    RED = "red"
    GREEN = "grün"


class Inner(Struct):
    """A record in a record."""

    inner: int | Colour
    data: bytes


class Other(Struct):
    """Another, which a union tells from the first."""

    other: list[Inner | None]


class Forms(Struct):
    """Every type of a field, also where no shipped record has it."""

    either: Other | Inner
    number: int | float | bool | str | None
    blocks: dict[str, list[list[int]] | Inner | dict[str, bool]]
    coloured: dict[str, Colour]


class Plain(Struct):
    """What has a length, and a number."""

    number: int = 0
    text: str = ""
    numbers: list[int] = []


KINDS = [*RECORDS, Forms]
SCHEMAS = {kind: parse_schema(schema_of(kind)) for kind in [*KINDS, Plain]}
ENCODERS = {kind: encoder_of(kind) for kind in [*KINDS, Plain]}
each_record = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
WRONG = [None, 1.5, 2**63, -(2**64), 10**400, "text", "\ud800", b"bytes", [None], ["a"], {"a": None}, {1: "b"}]


def fastavros(record: Struct) -> bytes | None:
    """The bytes that fastavro writes, or None when it refuses."""
    out = io.BytesIO()
    try:
        schemaless_writer(out, SCHEMAS[type(record)], msgspec.to_builtins(record, builtin_types=(bytes,)))
    except Exception:  # noqa: BLE001 - it raises many types for wrong values
        return None
    return out.getvalue()


def is_of_its_type(record: Struct) -> bool:
    """Whether msgspec finds the same values when it reads the record's fields by their types."""
    try:
        return msgspec.convert(msgspec.to_builtins(record, builtin_types=(bytes,)), type(record)) == record
    except (TypeError, ValueError):
        return False


@each_record
@examples(30)
@given(data=st.data())
def test_a_record_is_written_as_fastavro_writes_it(kind, data):
    record = data.draw(any_record(kind))
    payload = ENCODERS[kind](record)
    assert payload == fastavros(record)
    assert decoder_of(kind)(payload, 0) == (record, len(payload))


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
@examples(60)
@given(data=st.data())
def test_a_wrong_value_is_refused_where_fastavro_refuses_it_and_where_it_would_bend_it_into_the_type(kind, data):
    """It takes 1.5 for 1, "1.5" for a float, and anything for a bool."""
    record = data.draw(any_record(kind))
    field = data.draw(st.sampled_from(record.__struct_fields__))
    value = getattr(record, field)
    wrong = data.draw(st.sampled_from(WRONG))
    if isinstance(value, Struct):
        inner = data.draw(st.sampled_from(value.__struct_fields__))
        wrong = data.draw(st.sampled_from([wrong, msgspec.structs.replace(value, **{inner: wrong})]))
    changed = msgspec.structs.replace(record, **{field: wrong})
    theirs = fastavros(changed)
    try:
        ours = encode(changed)
    except (TypeError, ValueError):
        assert theirs is None or not is_of_its_type(changed)
    else:
        assert ours[HEADER_BYTES:] == theirs
        assert is_of_its_type(changed)


@pytest.mark.parametrize("bits", [6, 7, 13, 14, 20, 21, 41, 55, 62, 63])
@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_around_a_change_of_their_size_are_written_as_fastavro_writes_them(bits, sign):
    for number in range(sign * 2**bits - 2, sign * 2**bits + 3):
        record = Plain(number=number)
        if -(2**63) <= number < 2**63:
            assert ENCODERS[Plain](record) == fastavros(record)
        else:
            with pytest.raises(ValueError, match="more than 64 bits"):
                ENCODERS[Plain](record)


@pytest.mark.parametrize("length", [0, 63, 64, 8191, 8192, 100_000])
def test_texts_and_lists_of_every_length_are_written_as_fastavro_writes_them(length):
    record = Plain(text="é" * (length // 2) + "e" * (length % 2), numbers=[7] * length)
    assert ENCODERS[Plain](record) == fastavros(record)
