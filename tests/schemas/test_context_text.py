"""The text that a model reads."""

from __future__ import annotations

import pytest
from any_record import examples
from hypothesis import given
from hypothesis import strategies as st

from contextengine.schemas.context import Context, ContextMetadata
from contextengine.schemas.events import MessageCompleted

METADATA = ContextMetadata(source="rule:r", key="r", created_ms=0, ttl_ms=1)
FACTS = st.dictionaries(
    st.text(max_size=5), st.text(max_size=5) | st.lists(st.text(max_size=5), max_size=3), max_size=3
)


def test_the_three_dimensions_are_read_in_a_fixed_order_and_attention_becomes_two_lists():
    context = Context(
        METADATA,
        attention={"focus": ["day", "time"], "avoid": ["prices"]},
        strategy={"tone": "calm"},
        information={"guests": "two", "booked before": ["May", "June"]},
    )
    assert context.render() == (
        "[Information]\n- guests: two\n- booked before: May; June\n\n"
        "[Strategy]\n- tone: calm\n\n"
        "[Attention]\n- Focus on: day; time\n- Avoid: prices"
    )


@pytest.mark.parametrize("dimension", ["information", "strategy", "attention"])
def test_a_dimension_that_says_nothing_is_not_mentioned(dimension):
    context = Context(METADATA, **{dimension: {"one": "thing"}})
    assert context.render() == f"[{dimension.capitalize()}]\n- one: thing"


@examples(50)
@given(information=FACTS, strategy=FACTS, attention=FACTS)
def test_the_same_context_always_renders_to_the_same_text(information, strategy, attention):
    context = Context(METADATA, information, strategy, attention)
    copy = Context(METADATA, dict(information), dict(strategy), dict(attention))
    assert context.render() == copy.render()


def test_a_position_names_producer_incarnation_and_count_so_that_every_copy_has_the_same():
    event = MessageCompleted(
        session_id="s", producer="voice", incarnation=2, seq=7, at_ms=0, speaker="user", text="hello"
    )
    assert event.position == "voice/2/7"
