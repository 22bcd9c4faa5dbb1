"""The whole table: what follows from each verdict, under each policy, at each point of an injection's life."""

from __future__ import annotations

from itertools import product

import pytest

from contextengine.delivery.next_step import End, Rest, next_step
from contextengine.schemas.context import Context, ContextMetadata
from contextengine.schemas.injection import (
    AttemptVerdict,
    FailurePolicy,
    FailureStrategy,
    Injection,
    Outcome,
    Verdict,
)

NOW_MS = 10_000
DELAY_MS = 500
SKIP, RETRY = FailureStrategy.SKIP, FailureStrategy.RETRY_ASYNC


def injection(strategy, *, deadline_ms=60_000):
    metadata = ContextMetadata(source="rule:r", key="r", created_ms=0, ttl_ms=deadline_ms)
    return Injection(
        injection_id="i",
        session_id="s",
        rule="r",
        position="p",
        trigger_ms=0,
        deadline_ms=deadline_ms,
        timeout_ms=1_000,
        context=Context(metadata, {"a": "b"}),
        policy=FailurePolicy(strategy, max_attempts=3, delay_ms=DELAY_MS),
    )


def verdict(which, *, transient=False, attempt=1):
    return AttemptVerdict(
        session_id="s",
        injection_id="i",
        attempt=attempt,
        verdict=which,
        provider="p",
        transient=transient,
        error_class="Timeout",
        message="no answer",
    )


REST = Rest(NOW_MS + DELAY_MS)
#   verdict             transient  strategy  attempt  life left   what follows
TABLE = [
    (Verdict.DELIVERED, False,     SKIP,     1,       "long",     Outcome.DELIVERED),
    (Verdict.DELIVERED, False,     RETRY,    3,       "over",     Outcome.DELIVERED),
    (Verdict.REFUSED,   False,     SKIP,     1,       "long",     Outcome.REFUSED),
    (Verdict.REFUSED,   True,      RETRY,    1,       "long",     Outcome.REFUSED),
    (Verdict.EXPIRED,   False,     SKIP,     1,       "over",     Outcome.EXPIRED),
    (Verdict.EXPIRED,   True,      RETRY,    1,       "long",     Outcome.EXPIRED),
    (Verdict.CANCELLED, False,     SKIP,     1,       "long",     Outcome.CANCELLED),
    (Verdict.CANCELLED, True,      RETRY,    1,       "long",     Outcome.CANCELLED),
    (Verdict.FAILED,    False,     SKIP,     1,       "long",     Outcome.DEAD),
    (Verdict.FAILED,    False,     RETRY,    1,       "long",     Outcome.DEAD),
    (Verdict.FAILED,    True,      SKIP,     1,       "long",     Outcome.SKIPPED),
    (Verdict.FAILED,    True,      SKIP,     3,       "over",     Outcome.SKIPPED),
    (Verdict.FAILED,    True,      RETRY,    1,       "long",     REST),
    (Verdict.FAILED,    True,      RETRY,    2,       "long",     REST),
    (Verdict.FAILED,    True,      RETRY,    3,       "long",     Outcome.DEAD),
    (Verdict.FAILED,    True,      RETRY,    4,       "long",     Outcome.DEAD),
    (Verdict.FAILED,    True,      RETRY,    1,       "short",    Outcome.EXPIRED),
    (Verdict.FAILED,    True,      RETRY,    1,       "over",     Outcome.EXPIRED),
    (Verdict.FAILED,    True,      RETRY,    3,       "over",     Outcome.DEAD),
    (Verdict.UNKNOWN,   False,     SKIP,     1,       "long",     Outcome.SKIPPED),
    (Verdict.UNKNOWN,   False,     RETRY,    1,       "long",     REST),
    (Verdict.UNKNOWN,   False,     RETRY,    3,       "long",     Outcome.DEAD),
    (Verdict.UNKNOWN,   False,     RETRY,    1,       "short",    Outcome.EXPIRED),
]  # fmt: skip
LIFE_MS = {"long": NOW_MS + DELAY_MS + 1, "short": NOW_MS + DELAY_MS, "over": NOW_MS}


@pytest.mark.parametrize(("which", "transient", "strategy", "attempt", "life", "follows"), TABLE)
def test_every_line_of_the_table(which, transient, strategy, attempt, life, follows):
    step = next_step(
        verdict(which, transient=transient, attempt=attempt),
        injection(strategy, deadline_ms=LIFE_MS[life]),
        NOW_MS,
    )
    assert (step if isinstance(step, Rest) else step.outcome) == follows


def test_every_verdict_has_a_next_step_under_every_policy_whenever_it_comes():
    for which, transient, strategy, attempt in product(Verdict, (True, False), FailureStrategy, (0, 1, 3, 99)):
        for deadline_ms in LIFE_MS.values():
            told = verdict(which, transient=transient, attempt=attempt)
            step = next_step(told, injection(strategy, deadline_ms=deadline_ms), NOW_MS)
            assert isinstance(step, End | Rest)
            assert not isinstance(step, Rest) or NOW_MS < step.due_ms < deadline_ms


def test_the_table_above_has_a_line_for_every_verdict_and_policy():
    assert {(line[0], line[2]) for line in TABLE} == set(product(Verdict, FailureStrategy))


def test_the_reason_says_what_the_provider_said():
    refused = next_step(verdict(Verdict.REFUSED), injection(SKIP), NOW_MS)
    spent = next_step(verdict(Verdict.UNKNOWN, attempt=3), injection(RETRY), NOW_MS)
    assert refused == End(Outcome.REFUSED, "no answer")
    assert spent == End(Outcome.DEAD, "3 attempts, the last: Timeout: no answer")
