"""Which attempt is next, and which is not to be sent at all."""

from __future__ import annotations

from delivering import attempt_for
from hypothesis import given
from hypothesis import strategies as st

from contextengine.adapters.lanes import KnownVerdicts, Lanes, Queued, timeout_ms, verdict_on, without_sending
from contextengine.schemas.injection import InjectionCancelled, Verdict


def queued(session_id, name, **more):
    return Queued(None, attempt_for(session_id, name, **more))


@given(st.lists(st.sampled_from(["add a", "add b", "work a", "work b"]), max_size=60))
def test_a_lane_has_one_worker_and_keeps_its_order(steps):
    """Whatever arrives while others are at work: one worker for each session that has attempts, and none is skipped."""
    lanes, working = Lanes(), set()
    added, made = {"a": [], "b": []}, {"a": [], "b": []}
    for step in steps:
        what, session_id = step.split()
        if what == "add":
            name = f"{session_id}{len(added[session_id])}"
            added[session_id].append(name)
            idle = lanes.add(queued(session_id, name))
            assert idle == (session_id not in working)
            working.add(session_id)
        elif session_id in working:
            head = lanes.head(session_id)
            if head is None:
                working.discard(session_id)
                assert made[session_id] == added[session_id]
            else:
                made[session_id].append(head.attempt.injection.injection_id)
                lanes.pop(session_id)
        assert made[session_id] == added[session_id][: len(made[session_id])]


def test_a_cancellation_calls_back_every_queued_attempt_of_its_injection_and_no_other():
    lanes = Lanes()
    first, second, other = queued("s1", "i1"), queued("s1", "i1", attempt=2), queued("s1", "i2")
    for one in (first, second, other):
        lanes.add(one)
    lanes.cancel(InjectionCancelled(session_id="s1", injection_id="i1", reason="superseded"))
    lanes.cancel(InjectionCancelled(session_id="s2", injection_id="i2", reason="superseded"))
    assert [one.cancelled for one in (first, second, other)] == ["superseded", "superseded", ""]


def test_what_was_called_back_is_late_or_has_no_adapter_is_not_sent():
    late = queued("s1", "i1", lives_ms=1_000)
    now = late.attempt.injection.deadline_ms
    assert without_sending(late, now - 1, {"fake"}) is None
    assert without_sending(late, now, {"fake"}).verdict is Verdict.EXPIRED
    assert without_sending(late, now, {"other"}).verdict is Verdict.REFUSED
    late.cancelled = "superseded"
    assert without_sending(late, now, {"fake"}).verdict is Verdict.CANCELLED


def test_an_attempt_may_take_its_timeout_or_what_is_left_of_its_life():
    attempt = attempt_for("s1", "i1", lives_ms=1_000, timeout_ms=300)
    deadline = attempt.injection.deadline_ms
    assert [timeout_ms(attempt, deadline - left) for left in (1_000, 200, 0)] == [300, 200, 0]


def test_the_first_verdict_on_an_attempt_stands_and_the_oldest_are_forgotten():
    known = KnownVerdicts(limit=2)
    attempts = [attempt_for("s1", "i1"), attempt_for("s1", "i1", attempt=2), attempt_for("s1", "i3")]
    known.add(verdict_on(attempts[0], Verdict.DELIVERED))
    known.add(verdict_on(attempts[0], Verdict.FAILED))
    assert known.of(attempts[0]).verdict is Verdict.DELIVERED
    assert known.of(attempts[1]) is None
    known.add(verdict_on(attempts[1], Verdict.FAILED))
    known.add(verdict_on(attempts[2], Verdict.REFUSED))
    assert known.of(attempts[0]) is None
    assert [known.of(attempt).verdict for attempt in attempts[1:]] == [Verdict.FAILED, Verdict.REFUSED]
