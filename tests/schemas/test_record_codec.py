"""Records and their bytes: Avro single-object encoding, as anybody's Avro reads and writes it."""

from __future__ import annotations

import io
import json
from enum import Enum
from typing import Any, get_type_hints

import avro.io
import avro.schema
import msgspec
import pytest
from any_record import any_record, examples
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from contextengine.errors import UndecodableRecord
from contextengine.schemas.avro import AVSC, avsc_text, schema_of
from contextengine.schemas.codec import HEADER_BYTES, MARKER, RECORDS, decode, decode_as, encode
from contextengine.schemas.events import AttemptReported, MessageCompleted, SessionStarted, Tick, UserMuted
from contextengine.schemas.injection import (
    AttemptVerdict,
    InjectionAttempt,
    InjectionResult,
    Verdict,
)

each_record = pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
SPOKEN = MessageCompleted(
    session_id="s", producer="voice", incarnation=0, seq=1, at_ms=2, speaker="user", text="bring the café menu"
)
VERDICT = AttemptVerdict(session_id="s", injection_id="i", attempt=1, verdict=Verdict.FAILED, provider="p")


def _same_types(left: Any, right: Any) -> bool:
    """Whether two equal values are also of the same types: a StrEnum equals a plain string."""
    if type(left) is not type(right):
        return False
    if isinstance(left, Struct):
        return all(_same_types(getattr(left, name), getattr(right, name)) for name in left.__struct_fields__)
    if isinstance(left, dict):
        return all(_same_types(left[name], right[name]) for name in left)
    return not isinstance(left, list) or all(_same_types(*pair) for pair in zip(left, right, strict=True))


@each_record
@examples(20)
@given(data=st.data())
def test_every_record_comes_back_from_its_bytes_as_it_was(kind, data):
    record = data.draw(any_record(kind))
    decoded = decode(encode(record))
    assert decoded == record
    assert _same_types(decoded, record)


@each_record
@examples(10)
@given(data=st.data())
def test_apache_avro_reads_what_we_write_and_writes_the_same_bytes(kind, data):
    record = data.draw(any_record(kind))
    encoded = encode(record)
    schema = avro.schema.parse((AVSC / f"{kind.__name__}.avsc").read_text())
    fields = msgspec.to_builtins(record)
    fingerprint = schema.fingerprint("CRC-64-AVRO")
    assert encoded[:HEADER_BYTES] == MARKER + fingerprint
    theirs = io.BytesIO()
    avro.io.DatumWriter(schema).write(fields, avro.io.BinaryEncoder(theirs))
    assert encoded[HEADER_BYTES:] == theirs.getvalue()
    payload = io.BytesIO(encoded[HEADER_BYTES:])
    assert avro.io.DatumReader(schema).read(avro.io.BinaryDecoder(payload)) == fields


@each_record
def test_the_shipped_schema_is_the_types_own(kind):
    """`python -m contextengine.schemas.avro` writes it anew."""
    assert (AVSC / f"{kind.__name__}.avsc").read_text() == avsc_text(kind)


def test_no_schema_is_shipped_that_no_record_has():
    assert {path.name.partition(".")[0] for path in AVSC.glob("*")} == {kind.__name__ for kind in RECORDS}


@each_record
def test_every_field_with_a_default_has_it_in_the_schema_so_that_a_newer_reader_reads_older_records(kind):
    optional = {field.name for field in msgspec.structs.fields(kind) if not field.required}
    assert {field["name"] for field in schema_of(kind)["fields"] if "default" in field} == optional


def test_no_two_records_have_the_same_schema_fingerprint():
    headers = {avro.schema.parse(json.dumps(schema_of(kind))).fingerprint("CRC-64-AVRO") for kind in RECORDS}
    assert len(headers) == len(RECORDS)


def test_enums_are_strings_on_the_wire_so_that_a_new_member_breaks_no_reader():
    for kind in RECORDS:
        assert '"enum"' not in avsc_text(kind)
    hints = get_type_hints(AttemptVerdict)
    assert issubclass(hints["verdict"], Enum)


def test_an_enum_that_is_no_member_is_an_undecodable_record():
    """A verdict that nobody knows must not pass for one: the table of next steps has no line for it."""
    encoded = encode(VERDICT).replace(b"\x0cfailed", b"\x0cwobbly")
    with pytest.raises(UndecodableRecord, match=r"AttemptVerdict.*wobbly"):
        decode(encoded)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "starts with nothing"),
        (b'{"session_id": "s"}', "no single-object Avro: starts with 7b22, expected c301"),
        (MARKER, "cut off after 2 bytes"),
        (MARKER + b"1234567", "cut off after 9 bytes"),
        (MARKER + b"12345678", "unknown schema fingerprint 3132333435363738"),
        (encode(SPOKEN) + b"x", "MessageCompleted: 1 bytes left over"),
    ],
)
def test_bytes_that_are_no_record_are_refused_and_the_reason_is_told(data, told):
    with pytest.raises(UndecodableRecord, match=told):
        decode(data)


def test_a_record_that_was_cut_off_anywhere_is_refused():
    encoded = encode(SPOKEN)
    for length in range(len(encoded)):
        with pytest.raises(UndecodableRecord):
            decode(encoded[:length])


@examples(200)
@given(header=st.sampled_from([encode(kind)[:HEADER_BYTES] for kind in (SPOKEN, VERDICT)]), data=st.binary(max_size=60))
def test_foreign_bytes_under_our_header_are_a_record_or_refused(header, data):
    """No other error than UndecodableRecord, whatever the bytes claim about lengths and counts."""
    try:
        decoded = decode(header + data)
    except UndecodableRecord:
        return
    assert decode(encode(decoded)) == decoded


@examples(100)
@given(data=st.data())
def test_a_record_with_some_bytes_changed_is_a_record_or_refused(data):
    kind = data.draw(st.sampled_from([SessionStarted, AttemptReported, InjectionAttempt, InjectionResult]))
    encoded = bytearray(encode(data.draw(any_record(kind))))
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(encoded))
    except UndecodableRecord as refusal:
        assert str(refusal)  # noqa: PT017 - a mended record is no error


def test_a_reader_that_expects_one_type_refuses_another():
    assert decode_as(MessageCompleted, encode(SPOKEN)) == SPOKEN
    with pytest.raises(UndecodableRecord, match="a MessageCompleted, expected a Tick"):
        decode_as(Tick, encode(SPOKEN))


@pytest.mark.parametrize(
    "wrong",
    [
        UserMuted(session_id=1, producer="voice", incarnation=0, seq=0, at_ms=0),
        UserMuted(session_id="s", producer="voice", incarnation=0, seq="first", at_ms=0),
        UserMuted(session_id="s", producer="voice", incarnation=0, seq=0, at_ms=None),
        UserMuted(session_id="s", producer="voice", incarnation=0, seq=2**63, at_ms=0),
        UserMuted(session_id="\ud800", producer="voice", incarnation=0, seq=0, at_ms=0),
        InjectionAttempt(session_id="s", attempt=1, destination=None, injection=None),
    ],
    ids=["number for text", "text for number", "nothing for number", "too large", "half a character", "no record"],
)
def test_a_field_with_the_wrong_content_is_refused_when_it_is_written(wrong):
    with pytest.raises((TypeError, ValueError)):
        encode(wrong)


def test_the_refusal_of_a_wrong_type_names_the_record_and_the_field():
    verdict = msgspec.structs.replace(VERDICT, tries=1.5)
    with pytest.raises(TypeError, match=r"AttemptReported: Expected `int`, got `float` - at `\$\.verdict\.tries`"):
        encode(AttemptReported(session_id="s", verdict=verdict))
