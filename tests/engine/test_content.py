"""What contexts say: templates over the session, and what becomes of one that goes wrong."""

from __future__ import annotations

import pytest

from contextengine.engine.builders import Text
from contextengine.engine.rules import Rule, RuleSet
from contextengine.engine.strategies.temporal import Every, EveryMessages
from contextengine.schemas.context import Trust
from contextengine.schemas.events import ASSISTANT, EmotionShifted, MessageCompleted, Tick
from contextengine.schemas.injection import Outcome
from contextengine.schemas.session import dump_state, load_state
from contextengine.testing import Call


def call_saying(text, **start):
    """A call that injects `text` with every message."""
    rule = Rule(name="r", when=EveryMessages(1), build=Text(information={"told": text}), cooldown_ms=0)
    return Call(RuleSet((rule,)), **start)


def told(call):
    """What was injected."""
    return [injection.context.information["told"] for injection in call.injections()]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("as it stands: { } %", "as it stands: { } %"),
        ("{{ session.id }} {{ session.user }} {{ session.modality }}", "call ada voice"),
        ("{{ session.minutes }} {{ session.messages }} {{ session.turns }}", "5 2 1"),
        ("{{ facts.goal }}", "a table"),
        ("{{ facts['goal'] | upper }}", "A TABLE"),
        ("{{ facts.other | default('nothing') }}", "nothing"),
        ("{{ evidence.messages }}", "2"),
        ("{{ said }}", "and two"),
        ("{% for line in history %}{{ line.speaker }}:{{ line.text }};{% endfor %}", "user:one;assistant:and two;"),
    ],
)
def test_a_template_sees_the_session_its_facts_the_evidence_and_what_was_said(text, said):
    call = call_saying(text, user_id="ada", facts={"goal": "a table"})
    call.says("one")
    call.advance_ms(5 * 60_000 - 1_000)
    call.send(MessageCompleted, speaker=ASSISTANT, text="and two")
    assert told(call)[-1] == said


def test_a_template_sees_the_emotion_that_a_detector_heard_last():
    call = call_saying("{{ session.emotion }}")
    call.says("hello")
    call.send(EmotionShifted, speaker="user", emotion="joy")
    call.says("hello")
    assert told(call) == ["neutral", "joy"]


def test_the_texts_of_a_list_are_rendered_one_by_one():
    build = Text(attention={"focus": ["{{ facts.goal }}", "the clock"]})
    call = Call(RuleSet((Rule(name="r", when=EveryMessages(1), build=build),)), facts={"goal": "a table"})
    call.says("hello")
    assert call.injections()[0].context.attention == {"focus": ["a table", "the clock"]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ facts.missing }}", "UndefinedError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ history[7].text }}", "UndefinedError"),
        ("{{ facts.__class__.__mro__ }}", "SecurityError"),
        ("{{ history.append(1) }}", "SecurityError"),
        ("{{ '\\ud800' }}", "UnicodeEncodeError"),
    ],
)
def test_a_template_that_goes_wrong_is_an_explained_suppression_and_the_conversation_goes_on(text, reason):
    call = call_saying(text)
    call.says("hello")
    [suppression] = call.suppressed()
    assert suppression.filter == "template"
    assert reason in suppression.reason
    assert repr(text) in suppression.reason
    assert call.injections() == []


def test_a_strategy_that_raises_is_an_explained_suppression_and_the_other_rules_are_asked():
    class Broken(EveryMessages):
        def evidence(self, moment, memory):  # noqa: ARG002
            raise KeyError("intensity")

    class Odd(EveryMessages):
        def evidence(self, moment, memory):  # noqa: ARG002
            return {"score": 0.7}

    builds = Text(information={"told": "{{ evidence }}"})
    rules = [
        Rule(name="broken", when=Broken(1), build=builds),
        Rule(name="odd", when=Odd(1), build=builds),
        Rule(name="sound", when=EveryMessages(1), build=builds),
    ]
    call = Call(RuleSet(tuple(rules)))
    call.says("hello")
    [suppression] = call.suppressed()
    assert (suppression.rule, suppression.filter, suppression.reason) == ("broken", "rule", "KeyError: 'intensity'")
    assert told(call) == ["{'score': '0.7'}", "{'messages': '1'}"], "evidence is text, whatever a strategy makes of it"


def test_a_strategy_that_raises_when_it_is_asked_for_its_time_is_explained_and_the_others_keep_their_timers():
    class Broken(Every):
        def due_ms(self, session, memory):  # noqa: ARG002
            raise ZeroDivisionError("period")

    build = Text(information={"told": "{{ evidence.elapsed }}"})
    rules = (Rule(name="broken", when=Broken(1_000), build=build), Rule(name="sound", when=Every(60_000), build=build))
    call = Call(RuleSet(rules))
    assert {(held.rule, held.filter, held.reason) for held in call.suppressed()} == {
        ("broken", "rule", "ZeroDivisionError: period")
    }
    call.advance_ms(60_000)
    assert told(call) == ["60 s"]


def test_a_strategy_that_names_a_time_or_counts_what_no_state_can_hold_is_explained_and_the_state_stays_readable():
    class Odd(Every):
        def due_ms(self, session, memory):  # noqa: ARG002
            return 1e12

    class Counting(EveryMessages):
        def evidence(self, moment, memory):
            memory.counter = float("inf")
            return super().evidence(moment, memory)

    build = Text(information={"told": "x"})
    rules = (Rule(name="odd", when=Odd(1_000), build=build), Rule(name="counting", when=Counting(1), build=build))
    call = Call(RuleSet(rules))
    call.says("hello")
    reasons = {(held.rule, held.reason) for held in call.suppressed()}
    assert reasons == {
        ("odd", "TypeError: its due_ms is 1000000000000.0"),
        ("counting", "TypeError: its counter is inf"),
    }
    assert load_state(dump_state(call.state)) == call.state


def test_a_strategy_that_fails_on_its_own_tick_is_asked_again_a_second_later_and_does_not_fill_the_log():
    class Broken(Every):
        def evidence(self, moment, memory):  # noqa: ARG002
            raise KeyError("period")

    call = Call(RuleSet((Rule(name="broken", when=Broken(1_000), build=Text(information={"told": "x"})),)))
    call.advance_ms(60_000)
    ticks = [record for record, _ in call.log if isinstance(record, Tick) and record.timer == "rule:broken"]
    assert 50 <= len(ticks) <= 60


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{{ session", "unexpected end of template"),
        ("{% if %}", "Expected an expression"),
        ("{{ sesion.id }} {{ other }}", "no template knows other, sesion; known: evidence, facts, history, said, ses"),
        ("{{ 'x' | shout }}", "No filter named 'shout'"),
    ],
)
def test_a_template_that_can_never_work_is_refused_when_it_is_made(text, problem):
    with pytest.raises(ValueError, match=problem):
        Text(information={"told": text})


def test_a_context_that_says_nothing_is_refused_when_it_is_made():
    with pytest.raises(ValueError, match="at least one of information, strategy and attention"):
        Text()


def test_a_text_that_quotes_people_knows_it_wherever_it_does():
    assert Text(strategy={"a": ["{{ said }}"]}).quotes_people
    assert Text(attention={"focus": "{% for line in history %}{% endfor %}"}).quotes_people
    assert not Text(information={"a": "said history {{ session.id }}"}).quotes_people


def test_trust_and_the_rest_of_a_rule_reach_the_injection(call_with):
    call = call_with("""
      - name: quote
        when: {keyword: hello}
        inject: {information: {said: "{{ said }}"}}
        trust: untrusted
        criticality: critical
        priority: 7
        ttl: 9 s
        key: slot
        respond: now
        timeout: 800 ms
    """)
    call.says("hello")
    [injection] = call.injections()
    metadata = injection.context.metadata
    assert (metadata.source, metadata.key, metadata.trust) == ("rule:quote", "slot", Trust.UNTRUSTED)
    assert (metadata.criticality, metadata.priority, metadata.ttl_ms, metadata.respond) == ("critical", 7, 9_000, "now")
    assert (injection.timeout_ms, injection.deadline_ms - injection.trigger_ms) == (800, 9_000)
    call.advance_ms(50)
    [result] = call.results()
    assert (result.outcome, result.criticality, result.confirmation) == (Outcome.DELIVERED, "critical", "in_context")


def test_a_sessions_memory_of_what_was_said_has_limits():
    call = call_saying(
        "{{ history | length }} {{ history[0].text | length }}", facts={str(at): "x" * 5_000 for at in range(99)}
    )
    for _ in range(30):
        call.send(MessageCompleted, speaker="user", text="y" * 10_000)
    assert told(call)[-1] == "20 1000"
    assert (len(call.state.facts), max(map(len, call.state.facts.values()))) == (50, 1_000)
