"""What becomes of attempts that fail: short rests are timers, long ones are spent on the delay line."""

from __future__ import annotations

import pytest

from contextengine.schemas.events import AttemptReported, RetryDue
from contextengine.schemas.injection import Confirmation, Outcome
from contextengine.testing import Call

RULE = """
- name: greeting
  when: {{keyword: hello}}
  inject: {{information: {{note: hello}}}}
  ttl: 30 s
  on_failure: {{strategy: retry_async, max_attempts: {attempts}, delay: {delay}}}
"""


@pytest.fixture
def call_retrying(call_with):
    """A call with an injection under way to a provider that fails."""

    def begin(delay, attempts=3, times=None) -> Call:
        call = call_with(RULE.format(attempts=attempts, delay=delay))
        call.provider.fails(times=times)
        call.says("hello")
        return call

    return begin


def attempted_ms(call):
    """When each attempt was made, from the first one on."""
    made = [now_ms for (_, now_ms), decision in zip(call.log, call.decisions, strict=True) for _ in decision.attempts]
    return [now_ms - made[0] for now_ms in made]


def retries_due_ms(call):
    """When each RetryDue came, from the first attempt on."""
    first_ms = next(now_ms for (_, now_ms), decision in zip(call.log, call.decisions, strict=True) if decision.attempts)
    return [now_ms - first_ms for record, now_ms in call.log if isinstance(record, RetryDue)]


def test_a_rest_of_less_than_a_second_is_a_timer(call_retrying):
    call = call_retrying("400 ms", times=2)
    call.advance_ms(5_000)
    assert attempted_ms(call) == [0, 450, 900]
    assert [retry for decision in call.decisions for retry in decision.retries] == []
    assert call.outcomes() == [Outcome.DELIVERED]


def test_a_rest_of_a_second_or_more_goes_down_the_delay_line(call_retrying):
    call = call_retrying("1 s", times=1)
    call.advance_ms(5_000)
    assert attempted_ms(call) == [0, 1_050]
    assert retries_due_ms(call) == [1_050]
    [result] = call.results()
    assert (result.outcome, result.attempts, result.confirmation) == (Outcome.DELIVERED, 2, Confirmation.IN_CONTEXT)


def test_a_long_rest_goes_down_the_line_again_until_what_remains_is_a_timer(call_retrying):
    """Never before it is due, and at most one second on the line at a time."""
    call = call_retrying("3500 ms", times=1)
    call.advance_ms(10_000)
    assert retries_due_ms(call) == [1_050, 2_050, 3_050]
    assert attempted_ms(call) == [0, 3_550]


def test_every_attempt_has_the_same_id_and_counts_up(call_retrying):
    call = call_retrying("400 ms", times=2)
    call.advance_ms(5_000)
    assert [attempt.attempt for attempt in call.attempts()] == [1, 2, 3]
    assert len({attempt.injection.injection_id for attempt in call.attempts()}) == 1


def test_when_its_attempts_are_spent_it_is_dead_with_its_failures(call_retrying):
    call = call_retrying("400 ms")
    first_ms = call.now_ms
    call.advance_ms(5_000)
    [result] = call.results()
    assert (result.outcome, result.attempts) == (Outcome.DEAD, 3)
    assert result.reason == "3 attempts, the last: Simulated: told to fail"
    [dead] = [dead for decision in call.decisions for dead in decision.dead]
    assert (dead.attempt.attempt, dead.error_class, dead.reason) == (3, "Simulated", result.reason)
    assert (dead.first_failure_ms - first_ms, dead.last_failure_ms - first_ms) == (50, 950)


def test_an_error_that_will_come_again_is_not_tried_again(call_retrying):
    call = call_retrying("400 ms")
    call.provider.fails(transient=False)
    call.advance_ms(5_000)
    assert attempted_ms(call) == [0]
    assert call.outcomes() == [Outcome.DEAD]


def test_a_rest_that_would_outlast_its_life_is_not_begun(call_retrying):
    call = call_retrying("20 s", attempts=5)
    call.advance_ms(60_000)
    assert attempted_ms(call) == [0, 20_050]
    [result] = call.results()
    assert result.outcome is Outcome.EXPIRED
    assert "before the next attempt could be made" in result.reason


def test_an_answer_that_never_came_is_tried_again_under_the_same_id(call_retrying):
    call = call_retrying("400 ms")
    call.provider.is_silent(times=1)
    call.advance_ms(5_000)
    assert attempted_ms(call) == [0, 2_400]
    assert call.outcomes() == [Outcome.DELIVERED]


def test_a_retry_that_comes_only_after_its_life_expires(call_retrying):
    """The delay line was away for a while."""
    call = call_retrying("3 s", times=1)
    call.advance_ms(500)
    [held] = call.state.held.values()
    call.now_ms = held.injection.deadline_ms
    call.append(RetryDue(session_id="call", injection_id=held.injection.injection_id, attempt=2))
    [result] = call.results()
    assert (result.outcome, result.reason) == (Outcome.EXPIRED, "its life ended before the next attempt")


def test_the_second_copy_of_a_report_or_of_a_due_retry_makes_no_second_attempt(call_retrying):
    call = call_retrying("3500 ms", times=1)
    for _ in range(80):
        call.advance_ms(50)
        for record, _ in call.log[-3:]:
            if isinstance(record, AttemptReported | RetryDue):
                call.append(record)
    assert attempted_ms(call) == [0, 3_550]
    assert call.outcomes() == [Outcome.DELIVERED]


def test_a_report_on_an_earlier_attempt_does_not_end_the_present_one(call_retrying):
    call = call_retrying("400 ms", times=1)
    call.advance_ms(450)
    assert len(call.attempts()) == 2
    [late] = [record for record, _ in call.log if isinstance(record, AttemptReported)]
    call.provider.is_gone()
    call.append(late)
    assert call.results() == []


def test_after_the_end_of_its_session_nothing_is_tried_again(call_retrying):
    """The attempt under way had been sent when it was called back: its failure is the end of it."""
    call = call_retrying("400 ms")
    call.provider.is_silent()
    call.advance_ms(100)
    call.ends()
    call.advance_ms(5_000)
    assert attempted_ms(call) == [0]
    assert call.outcomes() == [Outcome.CANCELLED]


@pytest.mark.parametrize(
    ("criticality", "attempts", "outcome"),
    [
        ("critical", [0, 550, 1_100, 1_650, 2_200], Outcome.DEAD),
        ("important", [0, 1_050, 2_100], Outcome.DEAD),
        ("helpful", [0], Outcome.SKIPPED),
        ("optional", [0], Outcome.SKIPPED),
    ],
)
def test_how_often_a_context_is_tried_follows_from_its_criticality(call_with, criticality, attempts, outcome):
    call = call_with(f"""
      - {{name: r, when: {{keyword: hello}}, inject: {{information: {{a: b}}}}, criticality: {criticality}}}
    """)
    call.provider.fails()
    call.says("hello")
    call.advance_ms(60_000)
    assert attempted_ms(call) == attempts
    assert call.outcomes() == [outcome]
