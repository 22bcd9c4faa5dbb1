"""A dead letter says where it comes from and why, within bounds."""

from __future__ import annotations

import pytest
from an_attempt import an_attempt

from contextengine.delivery.dead_letter import MESSAGE_BYTES, Failures, Origin, headers
from contextengine.schemas.dead_letter import Stage
from contextengine.schemas.injection import FailurePolicy, FailureStrategy

ORIGIN = Origin("contextengine.injections", 3, 42, 1_700_000_000_000, "contextengine-deliver", "host-1")


def test_it_names_its_origin_and_its_error():
    told = dict(headers(Stage.DECODE, "UndecodableRecord", "no Avro", ORIGIN))
    assert told == {
        "cx-stage": b"decode",
        "cx-class": b"UndecodableRecord",
        "cx-message": b"no Avro",
        "cx-topic": b"contextengine.injections",
        "cx-partition": b"3",
        "cx-offset": b"42",
        "cx-timestamp-ms": b"1700000000000",
        "cx-group": b"contextengine-deliver",
        "cx-worker": b"host-1",
        "cx-redrives": b"0",
    }


def test_of_an_injection_it_tells_the_attempts_and_the_policy():
    policy = FailurePolicy(FailureStrategy.RETRY_ASYNC, max_attempts=3)
    injection = an_attempt(position="voice/1/7", deadline_ms=2_000, policy=policy).injection
    failures = Failures(injection, attempt=3, first_failure_ms=10, last_failure_ms=20)
    told = dict(headers(Stage.DELIVER, "Busy", "later", ORIGIN, failures=failures, redrives=2))
    assert (told["cx-injection-id"], told["cx-position"], told["cx-redrives"]) == (b"i1", b"voice/1/7", b"2")
    assert (told["cx-attempt"], told["cx-max-attempts"], told["cx-strategy"]) == (b"3", b"3", b"retry_async")
    assert (told["cx-first-failure-ms"], told["cx-last-failure-ms"]) == (b"10", b"20")
    assert (told["cx-criticality"], told["cx-deadline-ms"]) == (b"helpful", b"2000")


def test_a_long_message_is_cut_between_characters():
    told = dict(headers(Stage.DECIDE, "E", "ä" * MESSAGE_BYTES + "x", ORIGIN))
    assert told["cx-message"].decode() == "ä" * (MESSAGE_BYTES // 2)


def test_what_comes_back_from_the_dead_letters_says_how_often_and_from_which():
    carried = [("cx-redrives", b"2"), ("cx-letter", b"3:42"), ("cx-stage", b"fake")]
    told = dict(headers(Stage.DECODE, "E", "m", ORIGIN, carried=carried))
    assert (told["cx-redrives"], told["cx-letter"], told["cx-stage"]) == (b"2", b"3:42", b"decode")


@pytest.mark.parametrize("nonsense", [b"many", b"-1", b"9" * 5_000, b"", None])
def test_a_count_that_somebody_made_up_counts_nothing(nonsense):
    told = dict(headers(Stage.DECODE, "E", "m", ORIGIN, carried=[("cx-redrives", nonsense)]))
    assert told["cx-redrives"] == b"0"


def test_the_records_own_headers_go_along_but_cannot_pose_as_ours():
    carried = [("traceparent", b"00-1"), ("cx-stage", b"fake"), ("huge", b"x" * 100_000), ("small", b"y")]
    told = headers(Stage.DECODE, "E", "m", ORIGIN, carried=carried)
    assert [value for name, value in told if name == "cx-stage"] == [b"decode"]
    assert ("traceparent", b"00-1") in told
    assert "huge" not in dict(told)
