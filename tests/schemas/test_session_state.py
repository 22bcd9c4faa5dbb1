"""What is remembered is read back as it was, and what is no state of ours is refused."""

from __future__ import annotations

import msgspec
import pytest
from any_record import any_record, examples
from hypothesis import given
from hypothesis import strategies as st

from contextengine.errors import UndecodableRecord
from contextengine.schemas.session import (
    STATE_VERSION,
    Line,
    Partition,
    RuleMemory,
    SeqWindow,
    Session,
    dump_state,
    load_state,
)
from contextengine.settings import load


@examples(100)
@given(
    state=st.one_of(
        any_record(Session, version=st.just(STATE_VERSION), time_scale=st.floats(1e-3, 1e3)),
        any_record(Partition, version=st.just(STATE_VERSION)),
    )
)
def test_every_state_comes_back_as_it_was(state):
    assert load_state(dump_state(state)) == state


def test_a_session_and_a_partition_are_told_apart_by_what_is_written():
    assert isinstance(load_state(dump_state(Session("s"))), Session)
    assert isinstance(load_state(dump_state(Partition(3))), Partition)


@pytest.mark.parametrize("state", [Session("s", version=STATE_VERSION + 1), Partition(0, version=STATE_VERSION + 1)])
def test_the_state_of_a_newer_engine_is_refused_and_both_versions_are_told(state):
    """An older worker must not read half of it and write that back."""
    with pytest.raises(
        UndecodableRecord, match=f"version {STATE_VERSION + 1}; this engine reads up to {STATE_VERSION}"
    ):
        load_state(dump_state(state))


@examples(50)
@given(state=any_record(Session, version=st.just(STATE_VERSION), time_scale=st.floats(1e-3, 1e3)))
def test_a_state_written_for_older_engines_says_so_and_loses_nothing_until_one_of_them_has_written_it(state):
    written = dump_state(state, version=STATE_VERSION - 1)
    assert msgspec.json.decode(written)["version"] == STATE_VERSION - 1
    assert load_state(written) == state


def test_a_worker_writes_the_newest_version_unless_it_is_told_otherwise():
    assert load(environ={}).state_version == STATE_VERSION


def test_the_state_that_version_1_wrote_is_read_as_of_the_newest_version():
    """These bytes were written by the engine that knew version 1 alone."""
    state = load_state(
        b'{"type":"session","session_id":"s","version":1,"offset":7,"started_ms":1,"ended_ms":null,"last_event_ms":5,'
        b'"clock_offset_ms":0,"time_scale":1.0,"user_id":null,"provider":"p","model":"m","route":"attach","call_id":null,'
        b'"modality":"voice","facts":{},"windows":{"voice/0":{"highest":3,"seen":15}},"duplicates":0,"stragglers":0,'
        b'"missing":0,"messages":2,"turns":1,"history":[{"speaker":"user","text":"hello","at_ms":2}],"speaking":null,'
        b'"generating":false,"playing":false,"tools":0,"muted":false,"quiet_since_ms":5,"emotion":"neutral","timers":{},'
        b'"held":{},"live":{},"rules":{"tenth":{"fired":1,"last_fired_ms":4,"counter":1}},"armed_for":"h/1/5",'
        b'"outcomes":{"delivered":1},"digest":"ab"}'
    )
    assert state == Session(
        "s",
        offset=7,
        started_ms=1,
        last_event_ms=5,
        provider="p",
        model="m",
        route="attach",
        modality="voice",
        windows={"voice/0": SeqWindow(3, 15)},
        messages=2,
        turns=1,
        history=[Line("user", "hello", 2)],
        quiet_since_ms=5,
        rules={"tenth": RuleMemory(fired=1, last_fired_ms=4, counter=1)},
        armed_for="h/1/5",
        outcomes={"delivered": 1},
        digest="ab",
    )


def test_a_field_that_a_reader_does_not_know_is_passed_over():
    """So a state of version 1 may have `redriven`, of which those who know only that version have not heard."""
    assert load_state(b'{"type":"session","session_id":"s","version":1,"later":[]}') == Session("s")


def test_a_state_that_was_written_before_a_field_existed_gets_the_fields_default():
    older = msgspec.json.decode(dump_state(Session("s", messages=7)))
    del older["stragglers"], older["held"]
    assert load_state(msgspec.json.encode(older)) == Session("s", messages=7)


@examples(200)
@given(
    data=st.one_of(
        st.binary(max_size=40), st.binary(max_size=20).map(lambda tail: dump_state(Session("s"))[:-9] + tail)
    )
)
def test_foreign_bytes_are_no_state_and_raise_nothing_else(data):
    with pytest.raises(UndecodableRecord):
        load_state(data)


def test_two_sessions_share_nothing_that_one_of_them_could_change():
    one, other = Session("one"), Session("other")
    one.facts["name"] = "Ada"
    one.timers["forget"] = 1
    assert other == Session("other")
