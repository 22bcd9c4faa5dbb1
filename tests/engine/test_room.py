"""A session takes on no more than its state can hold, which must fit into one record: else its worker stops."""

from __future__ import annotations

import pytest
from an_attempt import an_attempt
from any_record import examples
from hypothesis import given
from hypothesis import strategies as st

from contextengine.engine.builders import Text
from contextengine.engine.filters import BUFFERED
from contextengine.engine.rules import Rule, RuleSet
from contextengine.engine.session import FACT_CHARACTERS, FACTS, HISTORY_LINES, PRODUCERS
from contextengine.engine.strategies.temporal import EveryMessages
from contextengine.schemas.context import INJECTION_BYTES, Context, ContextMetadata, Criticality
from contextengine.schemas.events import AttemptReported, InjectionRedriven, MessageCompleted
from contextengine.schemas.injection import AttemptVerdict, FailurePolicy, FailureStrategy, Outcome, Verdict
from contextengine.schemas.session import STATE_HEADER, Stage, dump_state
from contextengine.tables.live import MAX_STATE_BYTES
from contextengine.testing import Call
from contextengine.topics.intake import IDENTITY_CHARACTERS

NUL = "\x00"
"""What grows most when it is written: one byte becomes six."""
RETRY = FailurePolicy(FailureStrategy.RETRY_ASYNC, max_attempts=10_000, delay_ms=900)
RULES = RuleSet(
    tuple(
        Rule(
            name=f"rule-{number}",
            when=EveryMessages(1),
            build=Text(information={"n": "{{ said }}"}),
            criticality=Criticality.CRITICAL if number % 2 else Criticality.HELPFUL,
            policy=RETRY,
        )
        for number in range(8)
    )
)


def redrive(call, number, text, criticality=Criticality.CRITICAL):
    """Another dead injection of this text comes back, in a slot of its own."""
    about = ContextMetadata("r", f"slot-{number}", 1, 86_400_000, criticality)
    dead = an_attempt(call.session_id, f"i{number}", policy=RETRY, context=Context(about, {"a": text})).injection
    return call.append(InjectionRedriven(session_id=call.session_id, injection=dead, number=1))


def fail_all(call):
    """Every attempt in flight is said to have failed, by somebody who has much to say."""
    for held in list(call.state.held.values()):
        if held.stage is Stage.IN_FLIGHT:
            verdict = AttemptVerdict(
                session_id=call.session_id,
                injection_id=held.injection.injection_id,
                attempt=held.attempt,
                verdict=Verdict.FAILED,
                provider="p",
                transient=True,
                error_class=NUL * 100_000,
            )
            call.append(AttemptReported(session_id=call.session_id, verdict=verdict))


def talk(call):
    """The longest that is remembered of what was said, by as many as are remembered."""
    for number in range(max(HISTORY_LINES, PRODUCERS)):
        who = f"{number}".rjust(IDENTITY_CHARACTERS, NUL)
        call.send(MessageCompleted, producer=who, speaker=who, text=NUL * 200_000)


def state_bytes(call):
    return STATE_HEADER.size + len(dump_state(call.state))


def full_call(**start):
    """A call in which nobody answers."""
    call = Call(RULES, **start)
    call.provider.is_gone()
    return call


letters = st.sampled_from(["x", '"', NUL, "é", "🙂"])
texts = st.builds(lambda letter, count: letter * count, letters, st.integers(1, 8_000))
steps = st.one_of(
    st.tuples(st.just("redriven"), texts, st.sampled_from(Criticality), st.integers(1, 30)),
    st.tuples(st.just("says"), texts),
    st.sampled_from([("fails",), ("talks",), ("passes", 1_000)]),
)
facts = st.sampled_from([{}, {f"{n}": NUL * FACT_CHARACTERS for n in range(FACTS)}])


@examples(60)
@given(steps=st.lists(steps, max_size=25), facts=facts)
def test_whatever_is_injected_the_state_fits_into_a_record(steps, facts):
    call = full_call(facts=facts)
    redrives = 0
    for does, *told in steps:
        match does:
            case "redriven":
                text, criticality, times = told
                for _ in range(times):
                    redrives += 1
                    redrive(call, redrives, text, criticality)
            case "says":
                call.send(MessageCompleted, speaker="user", text=told[0])
            case "fails":
                fail_all(call)
            case "talks":
                talk(call)
            case "passes":
                call.advance_ms(told[0])
        assert state_bytes(call) <= MAX_STATE_BYTES


@pytest.mark.parametrize("length", [1, 1_000, 5_000, INJECTION_BYTES - len("[Information]\n- a: ")])
@pytest.mark.parametrize("facts", [0, FACTS // 3, FACTS])
def test_the_worst_that_can_be_said_and_fail_beside_a_full_buffer_fits_too(length, facts):
    """And the buffer is full: the next injection finds no room."""
    call = full_call(facts={f"{n}".rjust(FACT_CHARACTERS, NUL): NUL * FACT_CHARACTERS for n in range(facts)})
    for number in range(700):
        redrive(call, number, NUL * length)
    assert call.outcomes()[-1] is Outcome.SKIPPED
    fail_all(call)
    talk(call)
    assert state_bytes(call) <= MAX_STATE_BYTES


def test_redriven_letters_that_find_no_room_are_skipped_and_can_come_back_when_there_is():
    call = Call(RULES)
    for number in range(40):
        redrive(call, number, "x" * 30_000)
    taken, skipped = len(call.injections()), call.results()
    assert taken + len(skipped) == 40
    assert {result.outcome for result in skipped} == {Outcome.SKIPPED}
    assert skipped[0].reason.startswith("no room, so it may be sent back once more, later: with it the state's facts")
    call.advance_ms(1_000)  # what was taken on is delivered
    last = an_attempt(call.session_id, "i39").injection
    call.append(InjectionRedriven(session_id=call.session_id, injection=last, number=2))
    call.advance_ms(1_000)
    assert call.outcomes()[40:] == [Outcome.DELIVERED]


def test_redriven_letters_may_be_as_many_as_other_injections_unless_they_are_critical():
    call = full_call()
    for number in range(BUFFERED + 1):
        redrive(call, number, "x", Criticality.IMPORTANT)
    assert call.results()[0].reason.endswith("64 injections of this session have not ended, at most 64 may wait")
    redrive(call, BUFFERED + 1, "x", Criticality.CRITICAL)
    assert len(call.injections()) == BUFFERED + 1
