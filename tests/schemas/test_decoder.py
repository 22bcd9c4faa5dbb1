"""The generated decoders beside fastavro, which takes the same bytes for the same records."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest
from any_record import any_record, examples
from fastavro import parse_schema, schemaless_reader
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from contextengine.errors import UndecodableRecord
from contextengine.schemas.avro import schema_of
from contextengine.schemas.codec import HEADER_BYTES, RECORDS, decode, encode
from contextengine.schemas.decoder import decoder_of

SCHEMAS = {kind: parse_schema(schema_of(kind)) for kind in RECORDS}
each_record = pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)


class Parts(Struct):
    """A list and a map: what is written in blocks."""

    numbers: list[int]
    names: dict[str, str]


def fastavros(kind: type[Struct], payload: bytes) -> Any:
    """The record that fastavro reads, or None when it refuses."""
    stream = io.BytesIO(payload)
    try:
        record = msgspec.convert(schemaless_reader(stream, SCHEMAS[kind], None), kind)
    except Exception:  # noqa: BLE001 - it raises many types for broken bytes
        return None
    return record if stream.tell() == len(payload) else None


@each_record
@examples(20)
@given(data=st.data())
def test_a_record_is_what_fastavro_says_it_is(kind, data):
    encoded = encode(data.draw(any_record(kind)))
    assert decode(encoded) == fastavros(kind, encoded[HEADER_BYTES:])


@each_record
@examples(60)
@given(data=st.data())
def test_changed_bytes_are_the_record_that_fastavro_reads_or_refused(kind, data):
    """Refused is also what fastavro takes for a record that nobody writes so: a number in more bytes than it needs."""
    changed = bytearray(encode(data.draw(any_record(kind))))
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(HEADER_BYTES, len(changed) - 1))] = data.draw(st.integers(0, 255))
    theirs = fastavros(kind, bytes(changed[HEADER_BYTES:]))
    try:
        ours = decode(bytes(changed))
    except UndecodableRecord:
        assert theirs is None or encode(theirs) != changed
    else:
        assert encode(ours) == encode(theirs)


@pytest.mark.parametrize(
    ("payload", "record"),
    [
        (bytes.fromhex("04 02 04 00 00"), Parts([1, 2], {})),
        (bytes.fromhex("02 02 02 04 00 00"), Parts([1, 2], {})),
        (bytes.fromhex("03 04 02 04 00 01 08 02 61 02 62 00"), Parts([1, 2], {"a": "b"})),
    ],
    ids=["one block", "two blocks", "blocks that tell their size"],
)
def test_lists_and_maps_are_read_in_all_their_forms(payload, record):
    assert decoder_of(Parts)(payload, 0) == (record, len(payload))


@pytest.mark.parametrize(
    "payload",
    [
        "feffffffffffffffff01 02",
        "ffffffffffffffffffff01",
        "02 ffffffffffffffffff7f",
        "00 02 feffffffffffffffff01 61",
        "00 02 01 61",
    ],
    ids=[
        "a list longer than the record",
        "a count of 70 bits",
        "a number above 64 bits",
        "a long string",
        "a negative one",
    ],
)
def test_what_bytes_claim_about_lengths_costs_no_more_than_the_bytes_that_are_there(payload):
    data = bytes.fromhex(payload)
    with pytest.raises((IndexError, ValueError)):
        decoder_of(Parts)(data, 0)
