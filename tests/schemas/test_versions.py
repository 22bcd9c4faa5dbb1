"""Every version of every record that was ever shipped: it is still read, and the newest is read by whoever knew it."""

from __future__ import annotations

import io
import json

import msgspec
import pytest
from any_record import any_record, examples
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from avro.io import BinaryEncoder, DatumWriter
from avro.schema import parse
from hypothesis import given
from hypothesis import strategies as st

from contextengine.schemas.avro import former, schema_of
from contextengine.schemas.codec import MARKER, RECORDS, Codec, decode, encode, registry_codec, shipped_schemas
from contextengine.schemas.events import PartitionAssigned, Tick
from contextengine.schemas.injection import InjectionAttempt

PAIRS = [
    pytest.param(kind, reader, writer, id=f"{kind.__name__}-{r + 1}-reads-{w + 1}")
    for kind in RECORDS
    for versions in [[*former(kind), schema_of(kind)]]
    for r, reader in enumerate(versions)
    for w, writer in enumerate(versions)
]
CHANGED = [kind for kind in RECORDS if former(kind)]


@pytest.mark.parametrize(("kind", "reader", "writer"), PAIRS)
def test_every_version_of_a_record_is_read_by_every_other(kind, reader, writer):  # noqa: ARG001 - kind is its name
    """Apache Avro's own rules (specification 1.12, "Schema Resolution"), both ways: engines may be rolled back too."""
    found = ReaderWriterCompatibilityChecker().get_compatibility(parse(json.dumps(reader)), parse(json.dumps(writer)))
    assert found.compatibility is SchemaCompatibilityType.compatible, found.messages


def test_an_event_and_the_injection_have_a_second_version():
    assert {PartitionAssigned, InjectionAttempt} <= set(CHANGED)


@pytest.mark.parametrize("kind", CHANGED, ids=lambda kind: kind.__name__)
@examples(20)
@given(data=st.data())
def test_what_an_older_engine_wrote_is_read_and_what_it_did_not_know_has_its_default(kind, data):
    """The older engine is played by Apache Avro with the schema that it shipped."""
    record = data.draw(any_record(kind))
    for schema in former(kind):
        out = io.BytesIO()
        known = parse(json.dumps(schema))
        DatumWriter(known).write(_known(schema, msgspec.to_builtins(record)), BinaryEncoder(out))
        read = decode(MARKER + known.fingerprint("CRC-64-AVRO") + out.getvalue())
        assert type(read) is kind
        assert _known(schema, msgspec.to_builtins(read)) == _known(schema, msgspec.to_builtins(record))


def test_bytes_of_the_first_version_are_read():
    """They were written by the engine that knew it alone."""
    old = bytes.fromhex("c301") + FIRST_PARTITION_ASSIGNED
    assert decode(old) == PartitionAssigned(worker="host-1", generation=7, engine="")


def test_a_registrys_record_is_read_in_every_version_and_so_is_what_was_there_before_the_registry():
    ids = {fingerprint: number for number, (_, fingerprint, _) in enumerate(shipped_schemas(), start=100)}
    codec = registry_codec(ids)
    tick = Tick(session_id="s", timer="forget", due_ms=5)
    assert codec.encode(tick)[:1] == b"\x00"
    assert codec.encode(tick)[5:] == encode(tick)[10:]
    assert codec.decode(codec.encode(tick)) == codec.decode(encode(tick)) == tick


def test_a_codec_needs_a_header_for_every_version():
    with pytest.raises(KeyError):
        Codec({})


def _known(schema, fields):
    """What of a record a schema knows."""
    names = {field["name"]: field["type"] for field in schema["fields"]}
    return {
        name: _known(names[name], value) if isinstance(names[name], dict) and "fields" in names[name] else value
        for name, value in fields.items()
        if name in names
    }


FIRST_PARTITION_ASSIGNED = bytes.fromhex("d15666a29d998f9e0c686f73742d310e")
