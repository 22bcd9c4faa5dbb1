"""Time-based rules: ever more rarely, and by the clock on the wall."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from fractions import Fraction
from itertools import pairwise
from math import ceil

import pytest
from any_record import examples
from hypothesis import assume, given
from hypothesis import strategies as st

from contextengine.engine.builders import Text
from contextengine.engine.moment import Moment
from contextengine.engine.rules import Rule, RuleSet
from contextengine.engine.strategies.temporal import Decay, Scheduled
from contextengine.schemas.events import SessionStarted, Tick
from contextengine.schemas.session import Memory, Session
from contextengine.testing import Call

MINUTE_MS = 60_000
HOUR_MS = 3_600_000
BERLIN, SYDNEY, SANTIAGO = "Europe/Berlin", "Australia/Sydney", "America/Santiago"


def call_from(start, strategy, **told):
    """A call that starts at this time in UTC, with one rule for the strategy."""
    rule = Rule(name="timed", when=strategy, build=Text(information={"n": "1"}), cooldown_ms=0)
    call = Call(RuleSet((rule,)), started=False, crash_after_every_record=True)
    call.now_ms = ms(start)
    call.send(SessionStarted, provider="simulated", model="m", **told)
    return call


def ms(utc):
    """A time in UTC in Unix milliseconds."""
    return int(datetime.fromisoformat(utc).replace(tzinfo=UTC).timestamp()) * 1_000


def goes_on(call, hours):
    """Time goes by, and somebody says something now and then: a session that is silent for a day is forgotten."""
    for _ in range(hours):
        call.advance_ms(HOUR_MS)
        call.says("well", lasts_ms=0)


def is_away(call, span_ms):
    """No worker is there for so long; then the tick that was due comes."""
    due_ms = call.state.timers["rule:timed"]
    call.now_ms += span_ms
    call.append(Tick(session_id="call", timer="rule:timed", due_ms=due_ms))


def fired(call):
    """When the rule fired, in UTC."""
    return [f"{datetime.fromtimestamp(made.now_ms / 1_000, UTC):%m-%d %H:%M}" for made in all_fired(call)]


def seen(call, name):
    """What the firings were based on."""
    return [made.fired[0].evidence[name] for made in all_fired(call)]


def all_fired(call):
    """The decisions in which the rule fired."""
    return [made for made in call.explanations() if made.fired]


def asked(strategy, session, memory, now_ms):
    """What a strategy answers at this time."""
    tick = Tick(session_id=session.session_id, timer="rule:timed", due_ms=now_ms)
    return strategy.evidence(Moment(session, tick, now_ms, RuleSet(()).phrases), memory)


# By the clock on the wall


def test_a_daily_time_fires_once_a_day_in_utc_unless_a_zone_is_said():
    call = call_from("2026-01-01 07:30", Scheduled(at="9:00"))
    goes_on(call, 50)
    assert fired(call) == ["01-01 09:00", "01-02 09:00", "01-03 09:00"]
    assert seen(call, "at") == ["2026-01-01 09:00+00:00", "2026-01-02 09:00+00:00", "2026-01-03 09:00+00:00"]


def test_a_cron_expression_fires_by_the_clock_of_its_zone_and_on_its_days_alone():
    """The second of January 2026 is a Friday."""
    call = call_from("2026-01-02 06:00", Scheduled(cron="0 9 * * mon-fri", zone=BERLIN))
    goes_on(call, 80)
    assert fired(call) == ["01-02 08:00", "01-05 08:00"]
    assert seen(call, "at") == ["2026-01-02 09:00+01:00", "2026-01-05 09:00+01:00"]
    assert seen(call, "zone") == [BERLIN, BERLIN]


@pytest.mark.parametrize(
    ("zone", "at", "start", "times"),
    [
        pytest.param(BERLIN, "02:30", "2026-03-28 12:00", ["03-29 01:00", "03-30 00:30"], id="spring in the north"),
        pytest.param(SYDNEY, "02:30", "2026-10-03 00:00", ["10-03 16:00", "10-04 15:30"], id="spring in the south"),
        pytest.param(
            SANTIAGO, "00:00", "2026-09-05 12:00", ["09-06 04:00", "09-07 03:00"], id="a day without midnight"
        ),
    ],
)
def test_a_time_that_clocks_leave_out_when_they_go_forward_fires_once_as_soon_as_they_have(zone, at, start, times):
    call = call_from(start, Scheduled(at=at, zone=zone))
    goes_on(call, 41)
    assert fired(call) == times


@pytest.mark.parametrize(
    ("zone", "start", "times"),
    [
        pytest.param(BERLIN, "2026-10-24 12:00", ["10-25 00:30", "10-26 01:30"], id="autumn in the north"),
        pytest.param(SYDNEY, "2026-04-04 00:00", ["04-04 15:30", "04-05 16:30"], id="autumn in the south"),
    ],
)
def test_a_time_that_clocks_show_twice_when_they_go_back_fires_the_first_time_alone(zone, start, times):
    call = call_from(start, Scheduled(at="02:30", zone=zone))
    goes_on(call, 42)
    assert fired(call) == times


def test_a_session_that_starts_between_the_two_has_missed_it_until_the_next_day():
    call = call_from("2026-10-25 01:10", Scheduled(at="02:30", zone=BERLIN))
    goes_on(call, 26)
    assert fired(call) == ["10-26 01:30"]


@pytest.mark.parametrize(
    ("start", "times"),
    [
        ("2026-03-28 23:50", ["03-29 00:30", "03-29 01:30", "03-29 02:30"]),
        ("2026-10-24 23:50", ["10-25 00:30", "10-25 01:30", "10-25 02:30"]),
    ],
)
def test_an_expression_for_every_hour_fires_every_hour_that_passes_whatever_clocks_do(start, times):
    call = call_from(start, Scheduled(cron="30 * * * *", zone=BERLIN))
    goes_on(call, 3)
    assert fired(call) == times


def test_a_time_before_the_start_of_the_session_does_not_fire():
    call = call_from("2026-01-01 09:00", Scheduled(at="09:00"))
    goes_on(call, 23)
    assert fired(call) == []
    goes_on(call, 1)
    assert fired(call) == ["01-02 09:00"]


def test_before_its_start_is_known_a_session_waits_for_no_time():
    scheduled, session = Scheduled(at="09:00"), Session("call")
    assert scheduled.due_ms(session, Memory()) is None
    assert asked(scheduled, session, Memory(), ms("2026-01-01 09:00")) is None


def test_times_that_went_by_unseen_fire_once_and_late():
    call = call_from("2026-01-01 07:55", Scheduled(cron="*/10 8-9 * * *"))
    is_away(call, 42 * MINUTE_MS)
    call.advance_ms(15 * MINUTE_MS)
    assert fired(call) == ["01-01 08:37", "01-01 08:40", "01-01 08:50"]
    assert seen(call, "at")[0] == "2026-01-01 08:00+00:00"


def test_a_rehearsal_at_ten_times_the_speed_does_not_turn_the_clock_on_the_wall():
    call = call_from("2026-01-01 08:00", Scheduled(at="09:00"), time_scale=10.0)
    call.advance_ms(HOUR_MS - 1)
    assert fired(call) == []
    call.advance_ms(1)
    assert fired(call) == ["01-01 09:00"]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ({}, 'write either at: "09:00" or cron: "0 9 * * mon-fri"'),
        ({"at": "09:00", "cron": "0 9 * * *"}, 'write either at: "09:00" or cron: "0 9 * * mon-fri"'),
        ({"at": "25:00"}, "at is '25:00'; write a time of day such as 09:00 or 17:30"),
        ({"at": "9"}, "at is '9'; write a time of day such as 09:00 or 17:30"),
        ({"at": "\u0661\u0662:00"}, "write a time of day such as 09:00 or 17:30"),
        ({"cron": "61 9 * * *"}, "cron is '61 9 * * *' (bad minute); write minute, hour, day of the month, month and"),
        ({"cron": "@daily"}, "cron is '@daily' (wrong number of fields); write minute, hour,"),
        ({"cron": "* * * * * *"}, "cron is '* * * * * *' (has seconds); write minute, hour,"),
        ({"cron": "0 0 30 2 *"}, "cron is '0 0 30 2 *' (bad day-of-month); write minute, hour,"),
        ({"cron": "0 0 */20 * mon#2"}, "cron is '0 0 */20 * mon#2' (never comes); write minute, hour,"),
        ({"at": "09:00", "zone": "Berlin"}, "zone 'Berlin' is no time zone; did you mean Europe/Berlin?"),
        ({"at": "09:00", "zone": "Mars"}, "zone 'Mars' is no time zone; write one such as Europe/Berlin, or UTC"),
        ({"at": "09:00", "zone": "../zones"}, "zone '../zones' is no time zone; write one such as Europe/Berlin, or"),
    ],
)
def test_a_time_that_nobody_can_keep_is_refused_with_what_to_write(written, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        Scheduled(**written)


@examples(300)
@given(st.text(), st.text(alphabet="0123456789*/,-#Lw ²monjan") | st.from_regex(r"([\d*]{1,2}[-/,#]?[\dL]? ){5}"))
def test_any_text_is_an_expression_or_refused(text, cron):
    for written in ({"at": text}, {"cron": text}, {"cron": cron}, {"at": "09:00", "zone": text}):
        try:
            strategy = Scheduled(**written)
        except ValueError:
            continue
        assert strategy.due_ms(Session("call", started_ms=ms("2026-01-01")), Memory()) > ms("2026-01-01")


minutes = st.integers(ms("2025-12-01") // MINUTE_MS, ms("2027-02-01") // MINUTE_MS)
changes = st.sampled_from(["2026-03-29 01:00", "2026-10-25 01:00", "2026-04-04 16:00", "2026-10-03 16:00"])
times = minutes.map(lambda at: at * MINUTE_MS) | st.builds(
    lambda change, off_ms: ms(change) + off_ms, changes, st.integers(-3 * HOUR_MS, 3 * HOUR_MS)
)
scheduled = st.builds(
    Scheduled,
    cron=st.sampled_from(
        ["0 9 * * *", "30 2 * * *", "*/7 * * * *", "0,30 1-3 * * *", "15 */2 * * sun", "0 0 29 2 *", "5 2 L * *"]
    ),
    zone=st.sampled_from(["UTC", BERLIN, SYDNEY, SANTIAGO, "Australia/Lord_Howe", "Asia/Kathmandu"]),
)


@examples(300)
@given(scheduled, times, st.lists(st.integers(0, 100 * HOUR_MS), min_size=1, max_size=6))
def test_a_scheduled_time_lies_ahead_of_the_last_firing_and_fires_when_due_and_once(strategy, started_ms, late):
    session, memory, last_ms = Session("call", started_ms=started_ms), Memory(), started_ms
    for late_ms in late:
        due_ms = strategy.due_ms(session, memory)
        assert due_ms > last_ms
        assert asked(strategy, session, memory, due_ms - 1) is None
        last_ms = due_ms + late_ms
        assert asked(strategy, session, memory, last_ms) is not None
        assert asked(strategy, session, memory, last_ms) is None


# Ever more rarely


def test_decay_fires_at_the_end_of_periods_that_grow_up_to_the_longest():
    call = call_from("2026-01-01", Decay(base_ms=MINUTE_MS, longest_ms=5 * MINUTE_MS))
    call.advance_ms(20 * MINUTE_MS)
    assert fired(call) == ["01-01 00:01", "01-01 00:03", "01-01 00:07", "01-01 00:12", "01-01 00:17"]
    assert seen(call, "elapsed") == ["60 s", "180 s", "420 s", "720 s", "1020 s"]
    assert seen(call, "period") == ["60 s", "120 s", "240 s", "300 s", "300 s"]


def test_decay_counts_in_the_conversations_own_time():
    call = call_from("2026-01-01", Decay(base_ms=10 * MINUTE_MS, longest_ms=HOUR_MS), time_scale=10.0)
    call.advance_ms(8 * MINUTE_MS)
    assert fired(call) == ["01-01 00:01", "01-01 00:03", "01-01 00:07"]


def test_decay_does_not_make_up_for_periods_that_went_by_unseen():
    """A worker was away for the ends at 1, 3 and 7 minutes; the one at 15 comes when it would have."""
    call = call_from("2026-01-01", Decay(base_ms=MINUTE_MS, longest_ms=HOUR_MS))
    is_away(call, 9 * MINUTE_MS)
    call.advance_ms(8 * MINUTE_MS)
    assert fired(call) == ["01-01 00:09", "01-01 00:15"]
    assert seen(call, "period") == ["240 s", "480 s"]


def test_the_ten_thousandth_period_is_as_exact_as_the_first():
    decay = Decay(base_ms=1_000, longest_ms=HOUR_MS, factor=1.2)
    growing = []
    while (period := 1_000 * Fraction(12, 10) ** len(growing)) < HOUR_MS:
        growing.append(int(period))
    session = Session("call", started_ms=0)
    ends = [decay.due_ms(session, Memory(counter=fired)) for fired in range(10_001)]
    assert [end - start for start, end in pairwise([0, *ends])] == growing + [HOUR_MS] * (10_001 - len(growing))


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ({"base_ms": 999}, "base must be at least 1 s"),
        ({"longest_ms": 59_999}, "longest must be at least as long as base"),
        ({"factor": 1.0}, "factor must be from 1.01 to 100; for periods of the same length write `every`"),
        ({"factor": 100.5}, "factor must be from 1.01 to 100; for periods of the same length write `every`"),
        ({"factor": float("nan")}, "factor must be from 1.01 to 100; for periods of the same length write `every`"),
    ],
)
def test_a_decay_that_does_not_decay_is_refused(written, told):
    with pytest.raises(ValueError, match=told):
        Decay(**({"base_ms": MINUTE_MS, "longest_ms": HOUR_MS} | written))


@examples(300)
@given(
    base_ms=st.integers(1_000, HOUR_MS),
    longest_ms=st.integers(1_000, 400 * HOUR_MS),
    factor=st.floats(1.01, 100),
    time_scale=st.sampled_from([0.1, 0.3, 1.0, 7.7, 60.0]),
    late=st.lists(st.integers(0, 10 * HOUR_MS), min_size=1, max_size=8),
)
def test_a_decay_is_due_ahead_of_its_last_firing_and_fires_when_due_and_once(
    base_ms, longest_ms, factor, time_scale, late
):
    """Before the due time it does not, to a millisecond of the conversation's own time."""
    assume(longest_ms >= base_ms)
    decay = Decay(base_ms, longest_ms, factor)
    started_ms = ms("2026-01-01")
    session, memory = Session("call", started_ms=started_ms, time_scale=time_scale), Memory()
    last_ms = started_ms
    for late_ms in late:
        due_ms = decay.due_ms(session, memory)
        assert due_ms > last_ms
        assert asked(decay, session, memory, due_ms - 1 - ceil(1 / time_scale)) is None
        last_ms = due_ms + late_ms
        assert asked(decay, session, memory, last_ms) is not None
        assert asked(decay, session, memory, last_ms) is None
