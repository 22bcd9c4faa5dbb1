"""Why a rule fired on an event, and why it did not: every rule and every event has an answer, and it is the truth."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import msgspec
import pytest
from recorded import call_under, recorded

from contextengine.engine.explain import why_not
from contextengine.engine.rules import NO_RULES, Rule, RuleSet
from contextengine.engine.strategies.semantic import Keyword
from contextengine.errors import ConfigurationError
from contextengine.replay.exact import accepted
from contextengine.replay.recording import files_in, read, sessions_of
from contextengine.replay.why import Kind, why
from contextengine.rulefile import parse_rules
from contextengine.schemas.decision import DecisionMade
from contextengine.schemas.events import (
    ContextPushed,
    InjectionRedriven,
    MessageCompleted,
    ProviderReconnected,
    Tick,
    TurnEnded,
)
from contextengine.schemas.session import Memory, Session

RULES = dedent("""\
    rules:
      - name: greet
        when: {keyword: hello}
        inject: {information: {name: Ada}}
      - name: later
        when: {keyword: bye}
        inject: {information: {said: bye}}
        place: silence
        quiet: 2 s
      - name: pause
        when: {silence: 5 s}
        inject: {strategy: {pause: wait}}
      - name: third
        when: {every_messages: 3}
        inject: {information: {so far: "{{ session.messages }}"}}
""")
SESSIONS = files_in([Path(__file__).parents[1] / "sessions"])


@pytest.fixture
def call():
    """A call that has just begun."""
    return call_under(RULES)


def asked(call, *texts, **about):
    """The answers about a call."""
    return why(recorded(call, *(texts or [RULES])), "call", **about).answers


def answer(call, rule, event, *texts):
    """The one answer about a rule and an event."""
    [one] = asked(call, *texts, rule=rule, event=event)
    return one


def last(call, kind=MessageCompleted):
    """The position of the last event of this kind."""
    found = [
        decision.position for (event, _), decision in zip(call.log, call.decisions, strict=True) if type(event) is kind
    ]
    return found[-1]


def test_a_rule_that_fired_is_told_with_its_evidence_and_what_became_of_its_injection(call):
    call.says("hello there")
    call.advance_ms(1_000)
    [greeted] = asked(call)
    [injection] = call.injections()
    assert (greeted.rule, greeted.kind, greeted.on.said) == ("greet", Kind.INJECTED, "hello there")
    assert greeted.evidence == {"keywords": "hello"}
    assert greeted.injection.injection_id == injection.injection_id
    assert str(greeted) == (
        f"fired on keywords hello; injected {injection.injection_id} at now,"
        " sent at 00:01.0 on MessageCompleted, delivered"
    )


def test_an_injection_that_waits_is_open_and_then_told_with_the_event_that_released_it(call):
    call.says("bye")
    [waits] = asked(call)
    assert str(waits).endswith("at silence, not sent, open")
    call.advance_ms(4_000)
    [sent] = asked(call)
    assert (sent.injection.sent_ms, sent.injection.sent_on, sent.injection.outcome) == (3_000, "Tick", "delivered")


def test_an_injection_that_was_tried_again_or_never_sent_says_so(call):
    call.provider.fails(times=1)
    call.says("bye")
    call.ends()
    assert str(asked(call)[0]).endswith("not sent, cancelled (the session has ended)")
    text = RULES.replace("{name: Ada}}", "{name: Ada}}\n    criticality: critical")
    again = call_under(text)
    again.provider.fails(times=1)
    again.says("hello")
    again.advance_ms(10_000)
    assert "sent at 00:01.0 on MessageCompleted, delivered after 2 attempts" in str(asked(again, text)[0])


def test_what_a_filter_held_back_is_told_with_the_filter_and_its_figures(call):
    call.says("hello")
    call.advance_ms(4_000)
    call.says("hello")
    held_back = answer(call, "greet", last(call))
    assert held_back.kind is Kind.HELD_BACK
    assert held_back.suppression == call.suppressed("greet")[0]
    assert str(held_back).startswith(
        "fired on keywords hello; held back by duplicate: the same content went in 5 s ago"
    )


def test_a_rule_that_is_on_trial_or_stopped_by_its_session_is_held_back(call):
    silent = call_under(RULES, started=False)
    silent.says("hello")
    assert "held back by route: the session has not started" in str(asked(silent)[0])
    call.ends()
    call.says("hello")
    assert "held back by route: the session has ended" in str(asked(call)[0])
    text = RULES.replace("{name: Ada}}", "{name: Ada}}\n    shadow: true")
    trial = call_under(text)
    trial.says("hello")
    assert "held back by shadow: on trial: would have injected" in str(asked(trial, text)[0])


def test_a_rule_that_failed_is_told_with_its_failure():
    text = RULES.replace("name: Ada", 'name: "{{ facts.name }}"')
    call = call_under(text)
    call.says("hello")
    assert "held back by template: template '{{ facts.name }}'" in str(asked(call, text)[0])


def test_a_worded_rule_is_not_asked_about_a_message_without_its_words(call):
    call.says("good morning")
    one = answer(call, "greet", last(call))
    assert (one.kind, one.reason) == (Kind.NOT_ASKED, "the message has none of its phrases: hello")


def test_a_rule_that_was_asked_and_said_no_says_what_is_missing(call):
    call.says("one")
    one = answer(call, "third", last(call))
    assert str(one) == "said no: message 1, next at 3"
    call.says("hello", "assistant")
    one = answer(call, "greet", last(call))
    assert str(one) == "said no: it listens to the user, this is the assistant"


def test_a_rule_does_not_listen_to_other_kinds_of_events(call):
    call.says("one")
    one = answer(call, "third", last(call, TurnEnded))
    assert (one.kind, one.reason) == (Kind.DOES_NOT_LISTEN, "it listens to MessageCompleted")
    call.advance_ms(6_000)
    assert answer(call, "third", last(call, Tick)).kind is Kind.DOES_NOT_LISTEN
    assert answer(call, "pause", last(call, Tick)).kind is Kind.INJECTED


def test_a_rule_with_a_timer_says_how_far_it_is_and_what_stopped_it(call):
    call.says("one")
    call.advance_ms(2_000)
    call.says("two")
    moved = [(one.on.event, one.reason) for one in asked(call, rule="pause") if one.kind is Kind.NOT_ASKED]
    assert moved == [
        ("TurnStarted", "this stops its timer, which was due at 00:05.0"),
        ("TurnStarted", "this stops its timer, which was due at 00:06.0"),
    ]
    one = answer(call, "pause", last(call))
    assert str(one) == "does not listen: it listens to its timer; quiet for 0.0 of 5.0 s"


def test_a_tick_that_comes_early_or_twice_asks_nobody(call):
    call.says("one")
    call.advance_ms(6_000)
    call.append(call.log[-2][0])
    assert isinstance(call.log[-1][0], Tick)
    *_, again = asked(call, rule="pause")
    assert str(again) == "not asked: the tick came early, or nobody waits for it any more"


def test_a_copy_of_an_event_and_a_straggler_fire_nothing_and_it_is_said_which_is_which(call):
    call.says("hello")
    call.append(next(event for event, _ in call.log if isinstance(event, MessageCompleted)))
    call.send(MessageCompleted, seq=50, speaker="user", text="far ahead")
    call.send(MessageCompleted, seq=40, speaker="user", text="hello")
    told = [str(one) for one in asked(call, rule="greet") if one.on.event == "MessageCompleted"]
    assert told[1] == "not asked: the event is a copy, or so late that it may be one"
    assert told[3].startswith("not asked: the event is a straggler")
    assert len(asked(call, rule="greet", event="2")) == 2


def test_a_record_of_a_session_that_is_not_there_asks_nobody():
    call = call_under(RULES, started=False)
    call.append(Tick(session_id="call", timer="rule:pause", due_ms=5))
    [one] = asked(call, rule="pause")
    assert str(one) == "not asked: the session is not there, or has taken this in before"


def test_an_injection_that_goes_in_again_is_told_with_the_reason_and_without_evidence(call):
    call.says("hello")
    call.advance_ms(1_000)
    call.append(InjectionRedriven(session_id="call", injection=call.injections()[0], number=1))
    [again] = asked(call, rule="greet", event=last(call, InjectionRedriven))
    assert (again.kind, again.evidence) == (Kind.INJECTED, {})
    assert str(again).startswith("sent back from the dead letters; injected ")
    text = RULES.replace("{name: Ada}}", "{name: Ada}}\n    criticality: critical")
    lost = call_under(text)
    lost.says("hello")
    lost.advance_ms(1_000)
    lost.send(ProviderReconnected)
    assert str(answer(lost, "greet", last(lost, ProviderReconnected), text)).startswith("lost by the model; injected ")


def test_a_context_that_was_pushed_is_told_though_no_rule_set_has_its_rule(call):
    call.send(ContextPushed, name="crm", information={"tier": "gold"})
    one = answer(call, "pushed:crm", last(call, ContextPushed))
    assert str(one).startswith("fired on pushed by voice; injected ")


def test_each_event_is_judged_by_the_rules_in_force_then(call):
    other = RULES.replace("greet", "welcome")
    call.says("hello")
    call.change_rules(parse_rules(other, "rules.yaml"))
    call.advance_ms(400_000)
    call.says("hello")
    told = {
        rule: [str(one) for one in asked(call, RULES, other, rule=rule) if one.on.event == "MessageCompleted"]
        for rule in ("greet", "welcome")
    }
    assert told["greet"][0].startswith("fired on keywords hello; injected")
    assert "have no such rule" in told["greet"][1]
    assert "have no such rule" in told["welcome"][0]
    assert told["welcome"][1].startswith("fired on keywords hello; injected")


@pytest.mark.parametrize("file", SESSIONS[::5], ids=[file.name for file in SESSIONS[::5]])
def test_of_a_recorded_session_every_rule_and_event_has_an_answer_and_the_fired_ones_are_those_recorded(file):
    recording = accepted(read(file))
    [session_id] = sessions_of(recording)
    events = [of for of in recording.records if getattr(of.event, "session_id", None) == session_id]
    made = [out for of in recording.records for out in of.outputs if isinstance(out, DecisionMade)]
    [rules] = [parse_rules(text, "rules") for text in recording.header.rules.values()]
    fired = why(recording, session_id)
    assert fired.notes == []
    assert sorted(one.injection.injection_id for one in fired.answers if one.injection) == sorted(
        one.injection_id for decision in made for one in decision.accepted
    )
    assert [one.suppression for one in fired.answers if one.suppression] == [
        one for decision in made for one in decision.suppressed
    ]
    everything = [one for rule in rules.rules for one in why(recording, session_id, rule=rule.name).answers]
    pairs = {(one.on.offset, one.rule) for one in everything}
    assert pairs == {(of.offset, rule.name) for of in events for rule in rules.rules}
    assert len(everything) == len(pairs)
    assert [one for one in everything if not str(one)] == []
    message = next(of for of in events if isinstance(of.event, MessageCompleted))
    about = why(recording, session_id, event=message.event.position).answers
    assert {one.rule for one in about} == {rule.name for rule in rules.rules}
    assert sorted(map(str, about)) == sorted(str(one) for one in everything if one.on.offset == message.offset)


def test_the_recording_is_left_as_it_was(call):
    call.says("hello")
    recording = recorded(call, RULES)
    recording.sessions["call"] = Session("call")
    before = msgspec.json.encode((recording.partitions, recording.sessions))
    why(recording, "call", rule="greet")
    assert msgspec.json.encode((recording.partitions, recording.sessions)) == before


def test_other_decisions_than_those_recorded_are_noted_once(call):
    call.says("hello")
    call.advance_ms(1_000)
    recording = accepted(recorded(call, RULES))
    assert why(recording, "call").notes == []
    for at, of in enumerate(recording.records):
        made = [
            msgspec.structs.replace(out, digest="x") if isinstance(out, DecisionMade) else out for out in of.outputs
        ]
        recording.records[at] = msgspec.structs.replace(of, outputs=tuple(made))
    [note] = why(recording, "call").notes
    assert note.startswith("from MessageCompleted voice/0/2 on, other decisions are recorded")


def test_a_session_that_goes_on_in_a_recording_says_which_events_are_gone(call):
    call.says("hello")
    recording = recorded(call, RULES)
    recording.sessions["call"] = Session("call", offset=1)
    recording.header.incomplete["somebody else"] = "is not of interest here"
    del recording.records[:2]
    assert why(accepted(recording), "call").notes == ["its events up to offset 1 are not in there"]
    with pytest.raises(ConfigurationError, match="no event 0; it has 2 to 3; its events up to offset 1 are not in"):
        why(recording, "call", event="0")


@pytest.mark.parametrize(
    ("session", "about", "told"),
    [
        ("cal", {}, "no session 'cal' is recorded; did you mean 'call'?"),
        ("somebody", {}, "no session 'somebody' is recorded; there is call"),
        ("call", {"event": "99"}, "session 'call' has no event 99; it has 0 to 3"),
        ("call", {"event": "voice/7/1"}, "session 'call' has no event voice/7/1"),
        ("call", {"rule": "great"}, "no rule 'great' was in force; did you mean 'greet'?"),
        ("call", {"rule": "emergency"}, "no rule 'emergency' was in force; there is greet, later, pause, third"),
    ],
)
def test_what_is_not_there_is_refused_with_what_may_have_been_meant(call, session, about, told):
    call.says("hello")
    with pytest.raises(ConfigurationError) as refused:
        why(recorded(call, RULES), session, **about)
    assert told in str(refused.value)


def test_a_session_whose_state_nobody_knows_is_refused_with_the_reason(call):
    recording = recorded(call, RULES)
    recording.header.incomplete["call"] = "it goes on at offset 7, and the changelog has no state of it"
    with pytest.raises(ConfigurationError, match="'call' cannot be judged again: it goes on at offset 7"):
        why(recording, "call")


# What strategies say


@pytest.mark.parametrize(
    ("when", "said", "told"),
    [
        (
            "{keyword: {any_of: [a, b, c, d, e, f, g], speaker: null}}",
            ["x"],
            "none of its phrases: a, b, c, d, e and 2 more",
        ),
        ("{emotion: [joy]}", ["the train leaves at nine"], "it waits for joy, this is neutral"),
        ("{emotion_shift: {to: joy}}", ["hm", "the train leaves at nine"], "it waits for 0.20, once"),
        ("{topic: [football]}", ["we need a table for two"], "the topic is '"),
        ("{context_shift: {}}", ["we need a table for two"], "by a chance of"),
        ("{every: 30 s}", ["x"], "its next time is 00:30.0"),
        ("{conversation_reaches: 1 min}", ["x"], "its next time is 01:00.0"),
        ("{phase: end}", ["x"], "the phase is start"),
        ("{phase: start}", ["x", "y"], "it has been so before: phase start, messages 2"),
        ("{user_state: confused}", ["x"], "user active, quiet 0.0 s"),
        ("{system_state: error}", ["x"], "system normal, late 0 ms"),
        ("{all: [{keyword: cat}, {every_messages: 3}]}", ["cat"], "Keyword says yes; EveryMessages says no: message 1"),
        ("{all: [{keyword: cat}, {not: {of: {keyword: dog}}}]}", ["cat dog"], "Not says no: Keyword says yes"),
        (
            "{all: [{keyword: cat}, {silence: 9 s}]}",
            ["cat"],
            "Keyword says yes; Silence says no: quiet for 0.0 of 9.0 s",
        ),
        ("{any: [{silence: 9 s}, {every_messages: 3}]}", ["x"], "Silence does not listen to MessageCompleted; EveryM"),
        (
            "{at_most: {of: {keyword: cat}, times: 1, window: 1 min}}",
            ["cat", "cat"],
            "it has fired 1 of 1 times since 00:01",
        ),
        ("{cool_down: {of: {keyword: cat}, pause: 1 min}}", ["cat", "cat"], "it fired at 00:01.0, and rests for 60 s"),
        (
            "{hysteresis: {on: {keyword: cat}, off: {keyword: dog}}}",
            ["cat", "cat"],
            "it has fired, and waits for its `off`",
        ),
        (
            "{within: {first: {keyword: cat}, then: {keyword: dog}, span: 9 s}}",
            ["dog"],
            "its `first` has not fired; `then`",
        ),
        ("{within: {first: {keyword: cat}, then: {keyword: dog}, span: 9 s}}", ["cat"], "Keyword says yes"),
        ("{after: {of: {keyword: cat}, delay: 9 s}}", ["cat", "x"], "its `of` fired at 00:01.0, and it waits for 9 s"),
    ],
)
def test_each_built_in_strategy_says_what_is_missing(when, said, told):
    text = f"rules: [{{name: it, when: {when}, inject: {{information: {{a: b}}}}}}]"
    call = call_under(text)
    for message in said:
        call.says(message)
    assert told in answer(call, "it", last(call), text).reason


class Explaining:
    """Somebody's own strategy."""

    listens = frozenset({MessageCompleted})

    def evidence(self, moment, memory):  # noqa: ARG002
        return None

    def why_not(self, moment, memory):
        memory.counter += 1
        return f"{memory.counter} of {moment.session.messages + 2} moons"


class Failing(Explaining):
    """One that fails to explain itself."""

    def why_not(self, moment, memory):
        raise LookupError(moment, memory)


def test_a_strategy_may_explain_itself_on_a_copy_of_its_memory():
    said = MessageCompleted(session_id="s", producer="p", incarnation=0, seq=0, at_ms=0, speaker="user", text="x")
    moment, memory = NO_RULES.moment(Session("s"), said, 0), Memory()
    assert why_not(Explaining(), moment, memory) == "1 of 2 moons"
    assert (
        why_not(
            Keyword(("x",)),
            RuleSet((Rule(name="r", when=Keyword(("x",)), build=None),)).moment(Session("s"), said, 0),
            memory,
        )
        == "its strategy says yes"
    )
    assert memory == Memory()
    assert why_not(Failing(), moment, memory).startswith("no evidence; it cannot say why: LookupError")
