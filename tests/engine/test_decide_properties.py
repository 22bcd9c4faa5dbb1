"""What holds for every conversation, whatever happens in it and however its records arrive."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from textwrap import dedent

import pytest
from any_record import any_record, examples
from hypothesis import given
from hypothesis import strategies as st

from contextengine.engine.decide import ABANDONED_AFTER_MS, FORGET_AFTER_MS
from contextengine.rulefile import parse_rules
from contextengine.schemas.codec import decode, encode
from contextengine.schemas.events import (
    ASSISTANT,
    CONVERSATION_EVENTS,
    HAND_OFF,
    AttemptReported,
    ConversationEvent,
    EmotionShifted,
    MessageCompleted,
    RetryDue,
    SessionEnded,
    SessionStarted,
    SilenceDetected,
    Tick,
    ToolCallEnded,
    ToolCallStarted,
    TurnStarted,
    UserMuted,
    UserUnmuted,
)
from contextengine.schemas.session import dump_state, load_state
from contextengine.testing import Call

RULES = parse_rules(
    dedent("""
    rules:
      - {name: two, when: {every_messages: 2}, inject: {information: {n: "{{ session.messages }}"}}, place: silence}
      - {name: pulse, when: {every: 7 s}, inject: {information: {t: "{{ evidence.elapsed }}"}}, key: slot}
      - {name: minute, when: {conversation_reaches: 1 min}, inject: {information: {a: minute}}, place: turn_boundary}
      - {name: idle, when: {silence: 2 s}, inject: {strategy: {silence: wait}}, key: slot, cooldown: 0 s}
      - name: stress
        when: {all: [{emotion: [stress, fear]}, {keyword: [startup, exam]}]}
        inject: {attention: {focus: ["{{ said }}"]}, information: {goal: "{{ facts.goal }}"}}
        trust: untrusted
        priority: 5
        place: turn_boundary
        fallback: 3 s
      - name: urgent
        when: {keyword: {any_of: [help], speaker: null}}
        inject: {information: {n: "{{ session.messages }}"}}
        criticality: critical
        ttl: 8 s
        on_failure: {strategy: retry_async, max_attempts: 4, delay: 1700 ms}
      - {name: trial, when: {keyword: help}, inject: {information: {a: b}}, shadow: true}
    """),
    "rules.yaml",
)
TEXTS = ["help", "I'm so stressed about my startup", "well", "help, I'm afraid of the exam", ""]

says = st.tuples(st.just("says"), st.sampled_from(TEXTS), st.sampled_from(["user", ASSISTANT]))
passes = st.tuples(st.just("passes"), st.sampled_from([1, 50, 400, 2_000, 9_000, 70_000]))
is_told = st.tuples(
    st.just("is told"),
    st.sampled_from(["delivers", "fails", "refuses", "is_silent", "is_gone"]),
    st.sampled_from([1, 2, None]),
)
happens = st.tuples(
    st.just("happens"),
    st.sampled_from([
        (MessageCompleted, {"speaker": "user", "text": "help"}),
        (TurnStarted, {"speaker": "user"}),
        (EmotionShifted, {"speaker": "user", "emotion": "stress"}),
        (SilenceDetected, {}),
        (ToolCallStarted, {"tool": "t", "tool_call_id": "t"}),
        (ToolCallEnded, {"tool": "t", "tool_call_id": "t"}),
        (UserMuted, {}),
        (UserUnmuted, {}),
    ]),
    st.sampled_from([0, 0, 0, 1, 5]),
)  # fmt: skip
copies = st.tuples(st.just("is copied"), st.integers(1, 40))
ends = st.tuples(st.just("ends"))
conversations = st.lists(st.one_of(says, passes, is_told, happens, happens, copies, ends), max_size=30)
starts = st.fixed_dictionaries({
    "facts": st.sampled_from([{}, {"goal": "a table"}]),
    "route": st.sampled_from(["attach", HAND_OFF]),
    "time_scale": st.sampled_from([1.0, 10.0, 0.5]),
    "modality": st.sampled_from(["voice", "text"]),
})  # fmt: skip


def play(call, steps):
    """The conversation, told step by step."""
    for does, *told in steps:
        match does:
            case "says":
                call.says(told[0], speaker=told[1])
            case "passes":
                call.advance_ms(told[0])
            case "is told":
                how = getattr(call.provider, told[0])
                how() if told[0] == "delivers" else how(times=told[1])
            case "happens":
                (kind, fields), gap = told
                call.send(kind, **fields, **({"seq": call.state.windows["voice/0"].highest + 1 + gap} if gap else {}))
            case "is copied":
                call.append(call.log[-min(told[0], len(call.log))][0])
            case "ends":
                call.ends()
    return call


def outcomes_of(call):
    """How often each injection has ended."""
    return Counter(result.injection_id for result in call.results())


def accepted_by(call):
    """Every injection that the engine took on."""
    return [accepted.injection_id for made in call.explanations() for accepted in made.accepted]


@examples(150)
@given(steps=conversations, start=starts)
def test_every_injection_has_at_most_one_outcome_and_exactly_one_when_its_session_is_forgotten(steps, start):
    call = play(Call(RULES, **start), steps)
    accepted = accepted_by(call)
    assert len(set(accepted)) == len(accepted)
    open_now = set(accepted) - outcomes_of(call).keys()
    assert set(call.state.held) == open_now
    call.ends()
    call.advance_ms(FORGET_AFTER_MS)
    assert call.forgotten
    assert outcomes_of(call) == Counter(accepted)
    assert call.state.held == {}


@examples(50)
@given(steps=conversations.filter(lambda steps: ("ends",) not in steps), start=starts)
def test_a_session_that_nobody_ends_is_forgotten_all_the_same_and_leaves_nothing_open(steps, start):
    call = play(Call(RULES.__class__(RULES.rules[3:], "untimed"), **start), steps)
    call.advance_ms(ABANDONED_AFTER_MS)
    assert call.forgotten
    assert outcomes_of(call) == Counter(accepted_by(call))


@examples(100)
@given(steps=conversations, start=starts)
def test_the_same_log_gives_the_same_decisions_byte_for_byte(steps, start):
    call = play(Call(RULES, **start), steps)
    again = Call.replayed(call.log, RULES)
    assert again.decisions == call.decisions
    assert dump_state(again.state) == dump_state(call.state)
    assert again.digest == call.digest


@examples(100)
@given(steps=conversations, start=starts)
def test_a_crash_after_every_record_changes_nothing(steps, start):
    call = play(Call(RULES, **start), steps)
    crashing = play(Call(RULES, crash_after_every_record=True, **start), steps)
    assert crashing.decisions == call.decisions
    assert dump_state(crashing.state) == dump_state(call.state)


@examples(100)
@given(steps=conversations, start=starts, copied=st.integers(1, 30))
def test_feedback_that_was_applied_changes_nothing_when_it_comes_again(steps, start, copied):
    """First wins. A retry that still rests may be sent down the delay line once more, and that is all."""
    call = play(Call(RULES, **start), steps)
    feedback = [record for record, _ in call.log if isinstance(record, Tick | AttemptReported | RetryDue)]
    digest, before = call.digest, dump_state(call.state)
    for record in feedback[-copied:]:
        decision = call.append(record)
        assert decision.attempts == decision.results == decision.cancellations == decision.fired == []
    call.state.digest = digest
    assert dump_state(call.state) == before


@examples(100)
@given(steps=conversations, start=starts, order=st.randoms(use_true_random=False), copies=st.integers(0, 20))
def test_records_in_any_order_and_any_number_of_copies_are_judged_and_nothing_ends_twice(steps, start, order, copies):
    records = [record for record, _ in play(Call(RULES, **start), steps).log]
    records += [order.choice(records) for _ in range(copies)]
    order.shuffle(records)
    call = Call(RULES, started=False)
    for record in records:
        call.now_ms += order.choice([0, 1, 700, 5_000])
        call.append(record)
    assert all(times == 1 for times in outcomes_of(call).values())
    assert load_state(dump_state(call.state)) == call.state


any_conversation_event = st.one_of(
    [
        any_record(
            kind,
            session_id=st.just("call"),
            producer=st.sampled_from(["voice", "camera"]),
            incarnation=st.integers(0, 1),
        )
        for kind in CONVERSATION_EVENTS
    ]
)


any_start = any_record(SessionStarted, session_id=st.just("call"), producer=st.just("start"), incarnation=st.just(0))


@examples(100)
@given(
    start=any_start, events=st.lists(st.tuples(any_conversation_event, st.sampled_from([0, 700, 3_000])), max_size=8)
)
def test_whatever_an_event_says_it_is_judged_and_what_follows_can_be_written(start, events):
    """A record that no decision can be made on would stop its partition."""
    call = Call(RULES, started=False)
    for record, span_ms in [(start, 0), *events]:
        call.append(record)
        call.advance_ms(span_ms)
        assert load_state(dump_state(call.state)) == call.state
    for decision in call.decisions:
        written = [*decision.attempts, *decision.cancellations, *decision.retries, *decision.results]
        written += [dead.attempt for dead in decision.dead]
        written += [decision.explanation] if decision.explanation else []
        written += [Tick(session_id="call", timer=timer, due_ms=due_ms) for timer, due_ms in decision.timers]
        for record in written:
            assert decode(encode(record)) == record


def test_the_digest_chains_every_decision_that_came_to_something():
    """Two conversations that once were decided differently never have the same digest again."""
    call = Call(RULES)
    assert call.digest == ""
    digests = []
    for _ in range(3):
        call.says("help")
        digests.append(call.digest)
    assert len(set(digests)) == 3
    assert digests == [made.digest for made in call.explanations() if made.event == "MessageCompleted"]
    other = Call(RULES, session_id="other")
    other.says("help")
    assert len(other.explanations()) == 1
    assert other.digest != digests[0]


@pytest.mark.parametrize("seed", ["0", "1"])
def test_another_process_with_another_hash_seed_comes_to_the_same_digest(seed):
    """Sets and dicts have their own order in every process; no decision may depend on it."""
    program = "import test_decide_properties as here; print(here.play(here.Call(here.RULES), here.TOLD).digest)"
    path = os.pathsep.join(sys.path)
    environ = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": seed}
    told = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == play(Call(RULES), TOLD).digest


TOLD = [("says", text, "user") for text in TEXTS * 3] + [("passes", 70_000)]


def test_the_conversations_here_reach_every_outcome_and_every_rule():
    """The properties would hold of an engine that does nothing; this one does something."""
    seen = Counter()
    rules = set()
    for mood in ("delivers", "fails", "refuses", "is_silent", "is_gone"):
        call = Call(RULES, facts={"goal": "a table"})
        getattr(call.provider, mood)()
        play(call, TOLD)
        call.says("help")
        call.ends()
        call.advance_ms(FORGET_AFTER_MS)
        seen.update(call.outcomes())
        rules |= {firing.rule for made in call.explanations() for firing in made.fired}
    assert set(seen) == {"delivered", "skipped", "expired", "superseded", "cancelled", "refused", "dead"}
    assert rules == {rule.name for rule in RULES.rules}


def test_the_engine_knows_every_event_that_a_conversation_can_publish(call_with):
    call = call_with("- {name: r, when: {keyword: hello}, inject: {information: {a: b}}}")
    for kind in CONVERSATION_EVENTS:
        if kind in (SessionStarted, SessionEnded):
            continue
        own = [name for name in kind.__struct_fields__ if name not in ConversationEvent.__struct_fields__]
        call.send(kind, **{name: 0 if name.endswith("_ms") else "x" for name in own})
    assert {told.rule for told in call.suppressed()} == {"pushed:x"}  # which has no time to live
