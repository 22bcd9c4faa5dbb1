"""The test kit that users have: it runs the same engine, and its own promises hold."""

from __future__ import annotations

import inspect
import time

import pytest

from contextengine.engine.decide import decide
from contextengine.rulefile import parse_rules
from contextengine.schemas.events import (
    ASSISTANT,
    AttemptReported,
    ConversationEvent,
    MessageCompleted,
    RulesChanged,
    SessionStarted,
    Tick,
)
from contextengine.schemas.injection import Outcome
from contextengine.testing import Call, Provider, call

RULES = parse_rules(
    """
rules:
  - {name: greeting, when: {keyword: hello}, inject: {information: {n: "{{ session.messages }}"}}, place: turn_boundary}
  - name: urgent
    when: {keyword: help}
    inject: {information: {n: "{{ session.messages }}"}}
    on_failure: {strategy: retry_async, max_attempts: 3, delay: 1 s}
  - {name: minute, when: {conversation_reaches: 1 min}, inject: {information: {a: b}}}
""",
    "rules.yaml",
)
CHANGED = parse_rules(
    "rules: [{name: other, when: {every_messages: 1}, inject: {information: {a: b}}, shadow: true}]", "changed.yaml"
)


def kinds(call):
    return [type(record).__name__ for record, _ in call.log]


def test_a_turn_of_the_person_is_its_start_its_message_and_its_end():
    call = Call(RULES)
    call.says("hello", lasts_ms=700)
    assert kinds(call) == ["SessionStarted", "TurnStarted", "MessageCompleted", "TurnEnded"]
    assert [now_ms - call.log[0][1] for _, now_ms in call.log] == [0, 0, 700, 700]


def test_a_turn_of_the_assistant_is_generated_played_and_then_said():
    call = Call(RULES)
    call.says("hello", speaker=ASSISTANT)
    assert kinds(call)[1:] == [
        "GenerationStarted",
        "ResponseStarted",
        "PlaybackStarted",
        "MessageCompleted",
        "ResponseCompleted",
        "PlaybackEnded",
    ]


def test_in_a_chat_a_message_is_just_there():
    call = Call(RULES, modality="text")
    call.says("hello")
    assert kinds(call) == ["SessionStarted", "MessageCompleted"]


def test_fields_that_are_not_given_are_as_if_it_happened_now_in_order():
    call = Call(RULES)
    call.advance_ms(500)
    call.send(MessageCompleted, speaker="user", text="one")
    call.send(MessageCompleted, speaker="user", text="two", seq=9)
    call.send(MessageCompleted, speaker="user", text="three")
    call.send(MessageCompleted, speaker="user", text="four", producer="other")
    told = [record for record, _ in call.log if isinstance(record, MessageCompleted)]
    assert [(record.seq, record.at_ms) for record in told] == [(seq, call.now_ms) for seq in (1, 9, 10, 0)]


def test_a_call_that_has_not_started_begins_when_its_start_is_sent():
    call = Call(RULES, started=False)
    assert call.log == []
    call.send(SessionStarted, provider="simulated", model="m")
    call.says("hello")
    assert len(call.injections()) == 1


@pytest.mark.parametrize(
    ("told", "outcomes", "attempts"),
    [
        (lambda provider: None, [Outcome.DELIVERED], 1),  # noqa: ARG005
        (lambda provider: provider.fails(times=2), [Outcome.DELIVERED], 3),
        (lambda provider: provider.fails(), [Outcome.DEAD], 3),
        (lambda provider: provider.fails(transient=False), [Outcome.DEAD], 1),
        (lambda provider: provider.refuses(), [Outcome.REFUSED], 1),
        (lambda provider: provider.is_silent(times=1), [Outcome.DELIVERED], 2),
        (lambda provider: provider.is_gone(), [], 1),
    ],
    ids=["delivers", "fails twice", "fails", "fails for good", "refuses", "is silent once", "is gone"],
)
def test_the_provider_does_what_it_was_told_also_for_attempts_that_are_under_way(told, outcomes, attempts):
    call = Call(RULES)
    call.says("help")
    told(call.provider)
    call.advance_ms(20_000)
    assert call.outcomes() == outcomes
    assert len(call.attempts()) == attempts


def test_a_provider_that_was_told_something_else_forgets_what_it_was_told_before():
    call = Call(RULES)
    call.provider.fails()
    call.provider.delivers()
    call.says("help")
    call.advance_ms(50)
    assert call.outcomes() == [Outcome.DELIVERED]


def test_a_slow_provider_answers_late():
    call = Call(RULES)
    call.provider = Provider(latency_ms=900)
    call.says("help")
    call.advance_ms(899)
    assert call.outcomes() == []
    call.advance_ms(1)
    assert call.outcomes() == [Outcome.DELIVERED]


def test_ticks_come_exactly_when_they_are_due_and_in_order():
    call = Call(RULES)
    call.says("help")
    call.advance_ms(300_000)
    assert [(tick.due_ms, now_ms) for tick, now_ms in call.log if isinstance(tick, Tick)] == [
        (call.log[0][1] + 60_000, call.log[0][1] + 60_000)
    ]
    assert [now_ms for _, now_ms in call.log] == sorted(now_ms for _, now_ms in call.log)


def test_what_is_asked_of_a_call_can_be_asked_of_one_rule():
    call = Call(RULES)
    call.says("hello and help")
    call.says("help")
    call.advance_ms(10_000)
    assert [injection.rule for injection in call.injections()] == ["urgent", "greeting", "urgent"]
    assert len(call.injections("greeting")) == len(call.results("greeting")) == len(call.outcomes("greeting")) == 1
    assert len(call.attempts("urgent")) == 2
    assert call.suppressed("greeting") == []


def test_a_restored_call_goes_on_as_it_would_have():
    call = Call(RULES)
    call.provider.fails(times=1)
    call.says("help")
    snapshot = call.snapshot()
    log_length = len(call.log)

    def goes_on():
        call.advance_ms(2_000)
        call.says("hello")
        call.advance_ms(60_000)
        return list(call.log), list(call.decisions), call.digest

    first = goes_on()
    call.restore(snapshot)
    assert (len(call.log), len(call.decisions)) == (log_length, log_length)
    assert call.results() == []
    assert goes_on() == first


def test_a_call_can_be_restored_across_its_own_end():
    call = Call(RULES)
    snapshot = call.snapshot()
    call.ends()
    call.advance_ms(4_000_000)
    assert call.forgotten
    call.restore(snapshot)
    call.says("hello")
    assert len(call.injections()) == 1


def test_a_log_can_be_replayed_under_the_same_and_under_other_rules():
    call = Call(RULES)
    call.says("hello")
    call.says("help")
    call.advance_ms(70_000)
    assert Call.replayed(call.log, RULES).digest == call.digest
    other = Call.replayed(call.log, CHANGED)
    assert (other.injections(), len(other.suppressed("other"))) == ([], 2)


def test_a_call_can_change_its_rules_and_is_replayed_with_both():
    call = Call(RULES)
    call.says("hello")
    call.change_rules(CHANGED)
    call.says("hello")
    assert [made.rules_hash for made in call.explanations() if made.fired] == [RULES.rules_hash, CHANGED.rules_hash]
    assert Call.replayed(call.log, RULES, CHANGED).decisions == call.decisions
    assert "RulesChanged" in kinds(call)
    call.append(RulesChanged(version=0, rules_hash="older"))
    call.says("hello")
    assert call.explanations()[-1].rules_hash == CHANGED.rules_hash


def test_the_log_holds_all_that_the_engine_saw():
    call = Call(RULES)
    call.provider.fails(times=1)
    call.says("help")
    call.advance_ms(5_000)
    assert len(call.log) == len(call.decisions)
    assert [type(record) for record, _ in call.log if not isinstance(record, ConversationEvent)] == [
        AttemptReported,
        *[type(record) for record, _ in call.log if type(record).__name__ == "RetryDue"],
        AttemptReported,
    ]


def test_two_calls_have_nothing_in_common():
    one, other = Call(RULES), Call(RULES)
    one.provider.refuses()
    one.says("help")
    assert other.log[1:] == []
    other.says("help")
    other.advance_ms(50)
    assert other.outcomes() == [Outcome.DELIVERED]


def test_it_is_the_engines_own_decide():
    assert call.decide is decide


def half_an_hour():
    talk = Call(RULES)
    while talk.now_ms < talk.log[0][1] + 30 * 60_000:
        talk.says("well, hello, could you help me with this?", lasts_ms=3_000)
        talk.advance_ms(500)
        talk.says("Of course I can.", speaker=ASSISTANT, lasts_ms=5_000)
        talk.advance_ms(1_500)
    return talk


def test_a_call_of_thirty_minutes_takes_well_under_a_tenth_of_a_second():
    spans_s = []
    for _ in range(3):
        began_s = time.process_time()
        talk = half_an_hour()
        spans_s.append(time.process_time() - began_s)
    assert len(talk.log) > 1_500
    assert min(spans_s) < 0.1


def test_it_reads_no_clock_and_opens_nothing():
    source = inspect.getsource(call) + inspect.getsource(inspect.getmodule(Provider))
    for name in ("import time", "datetime", "random", "socket", "asyncio", "threading"):
        assert name not in source
