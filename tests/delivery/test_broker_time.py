"""The broker's time is never guessed ahead, whatever this machine's clock says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from contextengine.delivery.broker_time import BrokerClock

HOUR_MS = 3_600_000


def test_before_it_has_seen_anything_it_believes_the_wall_clock():
    assert BrokerClock(wall_ms=1_000_000, monotonic_ms=500).now_ms(600) == 1_000_100


def test_a_wall_clock_that_is_an_hour_fast_is_corrected_by_the_first_record():
    clock = BrokerClock(wall_ms=1_000_000 + HOUR_MS, monotonic_ms=0)
    clock.learn(append_ms=1_000_000, monotonic_ms=10)
    assert clock.now_ms(10) == 1_000_000
    assert clock.now_ms(1_010) == 1_001_000


def test_an_old_record_teaches_nothing_after_a_fresh_one():
    clock = BrokerClock(0, 0)
    clock.learn(append_ms=50_000, monotonic_ms=100)
    clock.learn(append_ms=10_000, monotonic_ms=200)
    assert 50_099 <= clock.now_ms(200) <= 50_100


@given(
    st.integers(-HOUR_MS, HOUR_MS),
    st.floats(-150e-6, 150e-6),
    st.lists(st.tuples(st.integers(0, 60_000), st.integers(0, 500)), min_size=1, max_size=30),
)
def test_it_never_runs_ahead_and_lags_by_the_shortest_way_and_the_drift(skew_ms, drift, records):
    """Records take up to half a second to arrive, the clocks run apart, and the wall clock is an hour off."""

    def broker_ms(monotonic_ms):
        return 1_000_000_000 + monotonic_ms * (1 + drift)

    clock = BrokerClock(1_000_000_000 + skew_ms, 0)
    monotonic_ms, learned = 0, []
    for pause_ms, way_ms in records:
        monotonic_ms += pause_ms + way_ms
        clock.learn(broker_ms(monotonic_ms - way_ms), monotonic_ms)
        learned.append((monotonic_ms, way_ms))
        assert clock.now_ms(monotonic_ms) <= broker_ms(monotonic_ms)
    lag_ms = broker_ms(monotonic_ms) - clock.now_ms(monotonic_ms)
    best = min(way_ms + (monotonic_ms - then_ms) * 400e-6 for then_ms, way_ms in learned)
    assert lag_ms <= best + 2
