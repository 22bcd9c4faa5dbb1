"""What is remembered is read back as it was, and what is no state of ours is refused."""

from __future__ import annotations

import msgspec
import pytest
from any_record import any_record, examples
from hypothesis import given
from hypothesis import strategies as st

from contextengine.errors import UndecodableRecord
from contextengine.schemas.session import STATE_VERSION, Partition, Session, dump_state, load_state


@examples(100)
@given(
    state=st.one_of(
        any_record(Session, version=st.just(STATE_VERSION), time_scale=st.floats(1e-3, 1e3)),
        any_record(Partition, version=st.just(1)),
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
