"""Strategies that fire on the conversation's own events: a request, any event by its name, what went wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contextengine.engine.builders import Text
from contextengine.engine.rules import Rule, RuleSet
from contextengine.engine.strategies.compose import All
from contextengine.engine.strategies.event_driven import (
    EVENT_NAMES,
    Corrective,
    OnDemand,
    Predictive,
    PredictiveTopic,
    Reactive,
)
from contextengine.engine.strategies.semantic import Keyword
from contextengine.errors import RulesInvalid
from contextengine.schemas.events import (
    ASSISTANT,
    CONVERSATION_EVENTS,
    AgentHandover,
    AttemptReported,
    AudioChunkReceived,
    ContextRequested,
    EmotionShifted,
    ErrorOccurred,
    InjectionRedriven,
    MessageCompleted,
    ResponseInterrupted,
    RetryDue,
    StreamStateChanged,
    Tick,
    ToolCallEnded,
    TopicChanged,
    UserMuted,
)
from contextengine.schemas.session import Memory, Session
from contextengine.testing import Call
from tests.any_record import any_record, examples

EVERYTHING_WRONG = ("error", "failed_response", "refused_response", "user_correction")


def rules_of(*strategies):
    """One rule for each strategy, named after their order."""
    return RuleSet(
        tuple(
            Rule(name=f"rule-{at}", when=strategy, build=Text(information={"n": str(at)}), cooldown_ms=0)
            for at, strategy in enumerate(strategies)
        )
    )


def fired(call):
    """What each firing was based on, in order."""
    return [firing.evidence for made in call.explanations() for firing in made.fired]


# On demand


@pytest.mark.parametrize(
    ("phrases", "query", "fires"),
    [
        ((), "", True),
        ((), "anything", True),
        (("refund", "money back"), "How do I get my MONEY back?", True),
        (("refund", "money back"), "refunds", False),
        (("refund",), "", False),
    ],
)
def test_context_is_given_on_demand_when_the_request_asks_for_it(phrases, query, fires):
    call = Call(rules_of(OnDemand(phrases)))
    call.says("a refund, and my money back")
    call.send(ContextRequested, request_id="r1", query=query)
    assert fired(call) == ([{"request_id": "r1", "query": query}] if fires else [])
    assert len(call.injections()) == fires


def test_a_request_that_no_rule_answers_is_answered_by_its_explanation():
    call = Call(rules_of(OnDemand(("refund",))))
    decision = call.send(ContextRequested, request_id="r1", query="the weather")
    assert decision.explanation is not None
    assert decision.explanation.position == "voice/0/1"
    assert (decision.explanation.fired, decision.explanation.accepted, decision.explanation.suppressed) == ([], [], [])


# Reactive


def test_every_event_of_a_conversation_but_audio_can_be_reacted_to_by_its_name():
    assert set(EVENT_NAMES.values()) == set(CONVERSATION_EVENTS) - {AudioChunkReceived}
    assert EVENT_NAMES["tool_call_ended"] is ToolCallEnded
    assert all(Reactive(name).listens == {kind} for name, kind in EVENT_NAMES.items())


@pytest.mark.parametrize(
    ("strategy", "evidence"),
    [
        (Reactive("agent_handover"), [{"event": "agent_handover", "agent": "billing"}]),
        (Reactive("user_muted"), [{"event": "user_muted"}]),
        (Reactive("user_muted", {"channel": "video"}), []),
        (
            Reactive("stream_state_changed"),
            [{"event": "stream_state_changed", "state": "resumed", "latency_ms": "20"}],
        ),
        (
            Reactive("tool_call_ended"),
            [
                {"event": "tool_call_ended", "tool": "book_table", "tool_call_id": "1", "failed": "true"},
                {"event": "tool_call_ended", "tool": "book_table", "tool_call_id": "2", "failed": "false"},
                {"event": "tool_call_ended", "tool": "weather", "tool_call_id": "3", "failed": "true"},
            ],
        ),
        (
            Reactive("tool_call_ended", {"failed": "true", "tool": "book_table"}),
            [{"event": "tool_call_ended", "tool": "book_table", "tool_call_id": "1", "failed": "true"}],
        ),
        (
            Reactive("emotion_shifted", {"intensity": "0.50"}),
            [{"event": "emotion_shifted", "speaker": "user", "emotion": "joy", "intensity": "0.5"}],
        ),
        (
            Reactive("response_interrupted", {"played_ms": "300"}),
            [{"event": "response_interrupted", "response_id": "r", "played_ms": "300"}],
        ),
    ],
)
def test_a_rule_reacts_to_events_by_name_and_by_the_values_of_their_fields(strategy, evidence):
    call = Call(rules_of(strategy))
    call.send(AgentHandover, agent="billing")
    call.send(UserMuted)
    call.send(StreamStateChanged, state="resumed", latency_ms=20)
    call.send(ToolCallEnded, tool="book_table", tool_call_id="1", failed=True)
    call.send(ToolCallEnded, tool="book_table", tool_call_id="2")
    call.send(ToolCallEnded, tool="weather", tool_call_id="3", failed=True)
    call.send(EmotionShifted, speaker="user", emotion="joy", intensity=0.5)
    call.send(ResponseInterrupted, response_id="r", heard="I was about to", played_ms=300)
    call.send(AudioChunkReceived, speaker="user", duration_ms=20)
    assert fired(call) == evidence


@pytest.mark.parametrize(
    ("on", "where", "told"),
    [
        ("tool_call_endet", {}, "tool_call_endet is no event; did you mean tool_call_ended?"),
        ("ToolCallEnded", {}, "ToolCallEnded is no event; did you mean"),
        ("zzz", {}, "known: session_started, session_ended"),
        ("audio_chunk_received", {}, "too often to react to"),
        ("tick", {}, "no event"),
        ("tool_call_ended", {"faild": "true"}, "faild is no field of tool_call_ended; did you mean failed?"),
        ("tool_call_ended", {"zzz": "true"}, "known: session_id, producer"),
        ("tool_call_ended", {"failed": "perhaps"}, "failed is never 'perhaps'"),
        ("response_interrupted", {"played_ms": "long"}, "played_ms is never 'long'"),
        ("session_started", {"facts": "none"}, "facts is never 'none'"),
    ],
)
def test_an_event_or_a_field_that_does_not_exist_is_refused_with_what_is_meant(on, where, told):
    with pytest.raises(ValueError, match=told.replace("?", r"\?")):
        Reactive(on, where)


# Corrective


@pytest.mark.parametrize(
    ("event", "of", "evidence"),
    [
        (
            (ErrorOccurred, {"stage": "tts", "code": "timeout", "message": "db7 is away"}),
            EVERYTHING_WRONG,
            {"after": "error", "stage": "tts", "code": "timeout"},
        ),
        (
            (ErrorOccurred, {"stage": "Response", "code": "timeout"}),
            EVERYTHING_WRONG,
            {"after": "failed_response", "stage": "Response", "code": "timeout"},
        ),
        (
            (ErrorOccurred, {"stage": "response", "code": "timeout"}),
            ("error",),
            {"after": "error", "stage": "response", "code": "timeout"},
        ),
        (
            (ErrorOccurred, {"stage": "response", "code": "CONTENT_FILTER"}),
            EVERYTHING_WRONG,
            {"after": "refused_response", "stage": "response", "code": "CONTENT_FILTER"},
        ),
        ((ErrorOccurred, {"stage": "response", "code": "content_filter"}), ("failed_response",), None),
        ((ErrorOccurred, {"stage": "tts", "code": "timeout"}), ("failed_response", "refused_response"), None),
        ((ErrorOccurred, {"stage": "tts", "code": "timeout"}), ("user_correction",), None),
        (
            (ToolCallEnded, {"tool": "book_table", "tool_call_id": "1", "failed": True}),
            EVERYTHING_WRONG,
            {"after": "error", "tool": "book_table"},
        ),
        ((ToolCallEnded, {"tool": "book_table", "tool_call_id": "1"}), EVERYTHING_WRONG, None),
        ((ResponseInterrupted, {"response_id": "r", "heard": "I can't help with"}), EVERYTHING_WRONG, None),
    ],
)
def test_what_goes_wrong_is_told_apart(event, of, evidence):
    call = Call(rules_of(Corrective(of)))
    kind, fields = event
    call.send(kind, **fields)
    assert fired(call) == ([evidence] if evidence else [])


@pytest.mark.parametrize("of", [("refused_response",), EVERYTHING_WRONG])
@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("I'm sorry, but I can't help with that.", "i can't help with"),
        ("I can\u2019t help you with that one", "i can't help you with"),
        ("Unfortunately, I'm not able to discuss this.", "i'm not able to discuss"),
        ("Sorry! I cannot share other customers' details", "i cannot share"),
        ("I am afraid I must decline", "i must decline"),
        ("I can't wait to see you there!", None),
        ("I can't help but admire it", None),
        ("I'm sorry, I can't find any hotels that meet your criteria.", None),
        ("I was unable to book a table; can I try something else?", None),
        ("Sure. And if they say I can't help with that, call us.", None),
        ("I can help with that", None),
        ("I'm sorry to hear that", None),
        ("", None),
    ],
)
def test_a_refusal_is_a_message_of_the_assistant_that_begins_with_one(of, text, phrase):
    call = Call(rules_of(Corrective(of)))
    call.says(text, speaker=ASSISTANT)
    call.says(text)
    assert fired(call) == ([{"after": "refused_response", "phrase": phrase}] if phrase else [])


@pytest.mark.parametrize("of", [("user_correction",), EVERYTHING_WRONG])
@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("I meant a cheap guesthouse with free wifi.", "i meant"),
        ("Oh, I\u2019m so sorry! I meant the centre.", "i meant"),
        ("No, I said Tuesday", "no i said"),
        ("what? That's not what I wanted.", "that's not what i wanted"),
        ("Actually, it's for four", "actually it's"),
        ("My mistake, no booking needed.", "my mistake"),
        ("That is wrong I am leaving from stevenage", "that is wrong"),
        ("NO! I'm sorry. I need to arrive by 15:45, not 5:58.", "sorry i need"),
        ("I said thank you", None),
        ("Actually, I don't need a room right now", None),
        ("That's what I meant, thanks", None),
        ("I meant to ask about parking", None),
        ("I didn't mean to wake you", None),
        ("it is not what I wanted to hear, but fine", None),
        ("Thanks. I told him that's not what I meant", None),
        ("No, that's all I need.", None),
        ("", None),
    ],
)
def test_a_correction_is_a_message_of_the_user_that_begins_with_one(of, text, phrase):
    call = Call(rules_of(Corrective(of)))
    call.says(text)
    call.says(text, speaker=ASSISTANT)
    assert fired(call) == ([{"after": "user_correction", "phrase": phrase}] if phrase else [])


def test_only_the_beginning_of_a_message_is_looked_at_however_long_it_is():
    call = Call(rules_of(Corrective(EVERYTHING_WRONG)))
    call.says("sorry " * 20_000 + "I meant the centre")
    call.says("no " * 23 + "I meant the centre")
    call.says("no " * 22 + "I meant the centre")
    assert len(fired(call)) == 1


def test_a_correction_is_joined_with_other_strategies():
    call = Call(rules_of(All((Corrective(("user_correction",)), Keyword(("tuesday",))))))
    call.says("on Tuesday")
    call.says("I meant Monday")
    call.says("I meant Tuesday")
    assert fired(call) == [{"after": "user_correction", "phrase": "i meant", "keywords": "tuesday"}]


# Predictive


def test_what_usually_follows_is_given_before_anybody_says_it():
    call = Call(rules_of(Predictive(given=("hotel", "place to stay"), then=("taxi", "cab"), chance=0.6)))
    call.says("a train, please")
    call.says("and a hotel")
    call.says("This hotel is a fine place to stay.", speaker=ASSISTANT)
    call.says("a taxi to the hotel")
    call.says("which hotel?")
    assert fired(call) == [
        {"given": "hotel", "expected": "taxi, cab", "chance": "0.60"},
        {"given": "hotel, place to stay", "expected": "taxi, cab", "chance": "0.60"},
    ]


def test_nothing_is_expected_that_the_end_of_a_long_message_says_itself():
    """The history keeps only its beginning."""
    call = Call(rules_of(Predictive(given=("hotel",), then=("taxi",), chance=0.6)))
    call.says("a hotel " + "and " * 500 + "a taxi")
    assert fired(call) == []


def test_what_has_been_said_long_ago_is_expected_again():
    call = Call(rules_of(Predictive(given=("hotel",), then=("taxi",), chance=1.0)), modality="text")
    call.says("a taxi")
    for _ in range(18):
        call.says("well")
    call.says("a hotel")
    assert fired(call) == []
    call.says("a hotel")
    assert len(fired(call)) == 1


def talk_about(call, *topics):
    """The VoiceEngine's detector names one topic after the other."""
    for topic in topics:
        call.send(TopicChanged, topic=topic)


@pytest.mark.parametrize("crash_after_every_record", [False, True])
def test_a_topic_is_expected_when_it_has_followed_the_present_one_often_enough(crash_after_every_record):
    rules = rules_of(PredictiveTopic(("payment", "taxi"), at_least=0.6, seen=3))
    call = Call(rules, crash_after_every_record=crash_after_every_record)
    talk_about(call, "hotel", "TAXI", "Hotel", "hotel", "payment", "hotel", "weather")
    assert fired(call) == []
    talk_about(call, "hotel")
    assert fired(call) == [{"topic": "hotel", "expected": "payment, taxi", "chance": "0.60", "seen": "3"}]
    talk_about(call, "weather", "hotel")
    assert len(fired(call)) == 1, "two of four is not usual"


def test_of_many_topics_those_talked_about_last_are_remembered():
    call = Call(rules_of(PredictiveTopic(("taxi",), seen=1)))
    talk_about(call, "hotel", "taxi", *(f"topic {number} " + "x" * 1_000 for number in range(100)))
    parts = call.state.rules["rule-0"].parts
    assert len(parts) == 64
    assert max(map(len, parts)) == 60
    talk_about(call, "hotel")
    assert fired(call) == []


# All of them

STRATEGIES = [
    OnDemand(),
    OnDemand(("help",)),
    *(Reactive(name) for name in EVENT_NAMES),
    Corrective(EVERYTHING_WRONG),
    Corrective(("user_correction",)),
    Predictive(("yes",), ("no",), 0.5),
    PredictiveTopic(("taxi",), at_least=0.1, seen=1),
]
EVENTS = st.one_of(
    [any_record(kind) for kind in (*CONVERSATION_EVENTS, Tick, AttemptReported, RetryDue, InjectionRedriven)]
)
TEXTS = st.lists(st.sampled_from(["no", "I", "meant", "can't", "help", "with", "yes", "\u2019", "\0"])).map(" ".join)
MESSAGES = any_record(MessageCompleted, text=TEXTS, speaker=st.sampled_from(["user", ASSISTANT, ""]))


@given(st.lists(EVENTS | MESSAGES, max_size=5))
@examples(200)
def test_no_event_is_too_much_for_a_strategy_and_all_evidence_is_text(events):
    """And only an event that the strategy listens to makes it fire."""
    rules = rules_of(*STRATEGIES)
    for strategy in STRATEGIES:
        session, memory = Session("call"), Memory()
        for event in events:
            evidence = strategy.evidence(rules.moment(session, event, 0), memory)
            assert evidence is None or type(event) in strategy.listens
            assert all(isinstance(seen, str) for seen in (evidence or {}).values())


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: OnDemand(("?!",)), "contains no word"),
        (lambda: Corrective(()), "at least one thing"),
        (lambda: Predictive((), ("taxi",), 0.5), "at least one word"),
        (lambda: Predictive(("hotel",), (), 0.5), "at least one word"),
        (lambda: Predictive(("hotel",), ("!",), 0.5), "contains no word"),
        (lambda: Predictive(("hotel",), ("taxi",), 0.0), "above 0"),
        (lambda: Predictive(("hotel",), ("taxi",), 60.0), "at most 1"),
        (lambda: PredictiveTopic(()), "at least one topic"),
        (lambda: PredictiveTopic(("?",)), "contains no word"),
        (lambda: PredictiveTopic(("taxi",), at_least=1.0), "below 1"),
        (lambda: PredictiveTopic(("taxi",), seen=0), "at least 1"),
    ],
)
def test_a_strategy_that_cannot_be_meant_is_refused_when_it_is_made(make, told):
    with pytest.raises(ValueError, match=told):
        make()


@pytest.mark.parametrize(
    ("written", "strategy"),
    [
        ("on_demand: {}", OnDemand()),
        ("on_demand: [refund, money back]", OnDemand(("refund", "money back"))),
        ("reactive: context_compacted", Reactive("context_compacted")),
        (
            "reactive: {on: tool_call_ended, where: {failed: true, tool: book_table}}",
            Reactive("tool_call_ended", {"failed": "true", "tool": "book_table"}),
        ),
        ("corrective: user_correction", Corrective(("user_correction",))),
        ("corrective: [error, failed_response]", Corrective(("error", "failed_response"))),
        ("predictive: {given: hotel, then: [taxi, cab], chance: 0.6}", Predictive(("hotel",), ("taxi", "cab"), 0.6)),
        ("predictive_topic: taxi", PredictiveTopic(("taxi",))),
    ],
)
def test_a_rule_file_writes_it_down(call_with, written, strategy):
    call = call_with(f"- {{name: one, when: {{{written}}}, inject: {{information: {{a: b}}}}}}")
    assert call.rules.rules[0].when == strategy


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("reactive: tool_call_endet", r"rules.yaml:\d+:\d+: reactive: tool_call_endet is no event; did you mean"),
        ("reactive: {on: user_muted, where: {tool: x}}", "reactive: tool is no field of user_muted"),
        ("corrective: mistake", "expected one of error, failed_response, refused_response, user_correction"),
        ("predictive: hotel", "lacks `then`, `chance`"),
    ],
)
def test_a_mistake_in_a_rule_file_is_told_with_its_place(call_with, written, told):
    with pytest.raises(RulesInvalid, match=told):
        call_with(f"- {{name: one, when: {{{written}}}, inject: {{information: {{a: b}}}}}}")
