"""Never past what is unfinished: after a crash at any moment, every unfinished record comes again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from contextengine.delivery.offsets import UnfinishedOffsets


def test_the_first_unfinished_record_is_where_reading_goes_on():
    offsets = UnfinishedOffsets()
    assert offsets.uncommitted is None
    for offset in (5, 6, 9):
        offsets.take(offset, 100 + offset)
    offsets.finish(6)
    assert offsets.uncommitted == 5
    offsets.finish(5)
    assert offsets.uncommitted == 9
    offsets.finish(9)
    assert offsets.uncommitted == 10


def test_what_is_committed_is_not_committed_again():
    offsets = UnfinishedOffsets()
    offsets.take(5, 100)
    assert offsets.uncommitted == 5
    offsets.commit(5)
    assert offsets.uncommitted is None
    offsets.finish(5)
    assert offsets.uncommitted == 6


def test_a_record_ages_until_its_offset_is_committed():
    offsets = UnfinishedOffsets()
    offsets.take(5, 100)
    offsets.take(6, 200)
    offsets.finish(5)
    assert (offsets.oldest_unfinished_ms, offsets.oldest_uncommitted_ms) == (200, 100)
    offsets.commit(6)
    assert (offsets.oldest_unfinished_ms, offsets.oldest_uncommitted_ms) == (200, 200)
    offsets.finish(6)
    assert (offsets.oldest_unfinished_ms, offsets.oldest_uncommitted_ms) == (None, 200)
    offsets.commit(7)
    assert offsets.oldest_uncommitted_ms is None


@given(st.lists(st.integers(1, 3), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_in_whatever_order_records_finish_nothing_unfinished_is_passed(gaps, random):
    offsets, taken, unfinished = UnfinishedOffsets(), [], set()
    offset = 0
    for gap in gaps:
        offset += gap
        offsets.take(offset, offset)
        taken.append(offset)
        unfinished.add(offset)
        for finished in [one for one in sorted(unfinished) if random.random() < 0.4]:
            offsets.finish(finished)
            unfinished.discard(finished)
        if random.random() < 0.5 and (due := offsets.uncommitted) is not None:
            assert due == min(unfinished, default=taken[-1] + 1)
            offsets.commit(due)
            assert offsets.uncommitted is None
        assert len(offsets) == len(unfinished)
        assert offsets.oldest_unfinished_ms == min(unfinished, default=None)
