"""Whatever comes in, under every strategy there is: the engine stays total, deterministic and bounded."""

from __future__ import annotations

import time
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import permutations

import msgspec
import pytest
from any_record import LONG, any_record, examples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from test_decide_properties import accepted_by, outcomes_of

from contextengine import plugins
from contextengine.engine.builders import Text
from contextengine.engine.decide import ABANDONED_AFTER_MS, decide
from contextengine.engine.rules import Rule, RuleSet
from contextengine.engine.strategies.compose import After, All, AnyOf, AtMost, CoolDown, Hysteresis, Not, Within
from contextengine.engine.strategies.event_driven import Corrective, OnDemand, Predictive, PredictiveTopic, Reactive
from contextengine.engine.strategies.semantic import ContextShift, Emotion, EmotionShift, Keyword, Topic
from contextengine.engine.strategies.state_based import ConversationReaches, Phase, Silence, SystemState, UserState
from contextengine.engine.strategies.strategy import parts_of
from contextengine.engine.strategies.temporal import Decay, Every, EveryMessages, Scheduled
from contextengine.errors import UndecodableRecord
from contextengine.schemas.codec import decode, encode
from contextengine.schemas.context import Criticality, Trust
from contextengine.schemas.events import (
    ASSISTANT,
    CONVERSATION_EVENTS,
    AudioChunkReceived,
    ContextRequested,
    ErrorOccurred,
    MessageCompleted,
    SessionStarted,
    SilenceDetected,
    StreamStateChanged,
    Tick,
    ToolCallEnded,
    TopicChanged,
    TurnEnded,
    TurnStarted,
)
from contextengine.schemas.session import Partition, Place, Session, dump_state, load_state
from contextengine.testing import Call

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
STATE_BYTES = 60_000
"""What a session of RULES may grow to beside what waits, which has bounds of its own."""
HELP, BILL, BYE = Keyword(("help",)), Keyword(("bill", "my bill")), Keyword(("bye",), None)

LEAVES = {
    "keyword": HELP,
    "emotion": Emotion(("joy", "anger"), None),
    "implied": Emotion(("joy", "anger"), implied=0.2),
    "emotion_shift": EmotionShift(),
    "topic": Topic(("train", "hotel")),
    "context_shift": ContextShift(profile="task"),
    "conversation_reaches": ConversationReaches(5 * MINUTE_MS),
    "silence": Silence(3_000),
    "phase": Phase("middle"),
    "active": UserState("active"),
    "idle": UserState("idle"),
    "confused": UserState("confused"),
    "normal": SystemState("normal"),
    "error": SystemState("error"),
    "high_load": SystemState("high_load"),
    "every_messages": EveryMessages(2),
    "every": Every(10 * MINUTE_MS),
    "decay": Decay(MINUTE_MS, 20 * MINUTE_MS),
    "scheduled": Scheduled(cron="*/20 * * * *"),
    "on_demand": OnDemand(),
    "reactive": Reactive("tool_call_ended"),
    "corrective": Corrective(("error", "failed_response", "refused_response", "user_correction")),
    "predictive": Predictive(("help",), ("bill",), 0.5),
    "predictive_topic": PredictiveTopic(("train",), seen=1, at_least=0.3),
}


def joined(one, other):
    """Every strategy that is made of these two; what cannot be meant is left out."""
    making = {
        "all": lambda: All((one, other)),
        "all but": lambda: All((one, Not(other))),
        "any": lambda: AnyOf((one, other)),
        "within": lambda: Within(one, other, MINUTE_MS),
        "after": lambda: After(one, 5 * MINUTE_MS, unless=other),
        "hysteresis": lambda: Hysteresis(one, other),
        "at_most": lambda: AtMost(AnyOf((one, other)), 1, 30 * MINUTE_MS),
        "cool_down": lambda: CoolDown(AnyOf((one, other)), 5 * MINUTE_MS),
        "late": lambda: After(AnyOf((one, other)), 20 * MINUTE_MS),
    }
    made = {}
    for name, make in making.items():
        try:
            made[name] = make()
        except ValueError as error:
            assert "never do" in str(error) or "counts or waits" in str(error)  # noqa: PT017 - the others are defects
    return made


def rules_of(strategies, **fields):
    """One rule for each strategy, by its name."""
    fields = {"build": Text(information={"a": "b"})} | fields
    return RuleSet(tuple(Rule(name=name, when=when, **fields) for name, when in strategies.items()), "bad-input")


NESTED = {
    "deep": Hysteresis(
        All((CoolDown(AnyOf((Silence(5_000), HELP)), MINUTE_MS), Not(Phase("start")))),
        After(Within(HELP, BILL, MINUTE_MS), 10_000, unless=BYE),
    ),
    "deeper": AtMost(
        AnyOf((All((EveryMessages(2), Not(All((HELP, Phase("middle")))))), After(Every(10 * MINUTE_MS), 90_000))),
        3,
        HOUR_MS,
    ),
}  # fmt: skip
_PLACES = (
    {"place": Place.SILENCE},
    {"place": Place.TURN_BOUNDARY, "fallback_ms": 3_000, "criticality": Criticality.IMPORTANT},
    {"criticality": Criticality.CRITICAL, "ttl_ms": 8_000},
    {"key": "slot", "cooldown_ms": 0},
)
_OF_STATES = {f"{name} states": made for name, made in joined(Phase("middle"), UserState("active")).items()}
_STRATEGIES = LEAVES | NESTED | joined(HELP, Silence(4_000)) | _OF_STATES
RULES = RuleSet(
    tuple(
        Rule(
            name=name,
            when=when,
            build=Text(information={"n": "{{ session.messages }} {{ said[:40] }}"}),
            trust=Trust.UNTRUSTED,
            **_PLACES[at % len(_PLACES)],
        )
        for at, (name, when) in enumerate(_STRATEGIES.items())
    ),
    "bad-input",
)


def test_the_rules_here_hold_every_strategy_that_there_is():
    held = {type(part) for rule in RULES.rules for part in parts_of(rule.when)}
    assert {plugins.load("strategies", name) for name in plugins.names("strategies")} <= held


# Whatever happens

TEXTS = (
    "help", "my bill", "bye", "help with my bill", "I'm so happy, haha", "this is terrible and I hate it", "",
    "No, I said a train to London", "I'm sorry, but I can't help with that", "goodbye, that is all",
    "\0\x07\x1b[31m\u202e\u200b", "\U0001f600" * 50, "مرحبا שלום नमस्ते สวัสดี 你好 こんにちは 안녕",
    "book a hotel room", "e\u0301\u0323" * 60, "\ufdfa" * 90,
)  # fmt: skip
ABSURD_MS = (-(2**63), -1, 0, 1, 2**53, 2**63 - 1)
short_names = st.sampled_from(["user", ASSISTANT, "third", ""])
anything = st.one_of(
    [any_record(kind, session_id=st.just("call"), producer=st.sampled_from(["voice", "camera"]),
                incarnation=st.integers(0, 2)) for kind in CONVERSATION_EVENTS]
)  # fmt: skip


def bytes_of(state):
    """How much is remembered, beside the injections that wait."""
    return len(dump_state(msgspec.structs.replace(state, held={})))


class AnyConversation(RuleBasedStateMachine):
    """A conversation in which anything may happen, and the same one with a crash after every record."""

    @initialize(
        start=any_record(SessionStarted, session_id=st.just("call"), producer=st.just("voice"), incarnation=st.just(0)),
        ordinary=st.booleans(),
    )
    def starts(self, start, ordinary):
        start = msgspec.structs.replace(start, seq=0)
        start = msgspec.structs.replace(start, time_scale=min(2.0, abs(start.time_scale)))
        if ordinary:
            start = msgspec.structs.replace(start, route="attach", modality="voice", time_scale=1.0, at_ms=0)
        self.calls = [Call(RULES, started=False, crash_after_every_record=crashes) for crashes in (False, True)]
        self.ended = self.compared = 0
        self.tell(lambda call: call.append(start))

    def tell(self, what):
        for call in self.calls:
            what(call)

    @rule(text=st.one_of(st.sampled_from(TEXTS), st.text(max_size=200)), speaker=short_names)
    def says(self, text, speaker):
        self.tell(lambda call: call.says(text, speaker=speaker, lasts_ms=200))

    @rule(event=anything)
    def anything_is_published(self, event):
        self.tell(lambda call: call.append(event))

    @rule(
        kind=st.sampled_from([TurnStarted, TurnEnded, SilenceDetected, MessageCompleted]),
        at_ms=st.one_of(st.sampled_from(ABSURD_MS), LONG),
    )
    def happens_at_an_absurd_time(self, kind, at_ms):
        fields = {} if kind is SilenceDetected else {"speaker": "user"}
        fields |= {"text": "help"} if kind is MessageCompleted else {}
        self.tell(lambda call: call.send(kind, at_ms=at_ms, **fields))

    @rule(back_ms=st.sampled_from([1, 5_000, HOUR_MS]))
    def happens_on_a_clock_that_runs_back(self, back_ms):
        self.tell(lambda call: call.send(MessageCompleted, speaker="user", text="help", at_ms=call.now_ms - back_ms))

    @rule(jump=st.sampled_from([2, 63, 64, 65, 10_000]), incarnation=st.integers(0, 4))
    def producer_leaves_a_gap_or_begins_anew(self, jump, incarnation):
        def leaves(call):
            seq = call.state.windows[key].highest + jump if (key := f"voice/{incarnation}") in call.state.windows else 0
            call.send(MessageCompleted, speaker="user", text="help", incarnation=incarnation, seq=seq)

        self.tell(leaves)

    @rule(back=st.integers(1, 40))
    def record_comes_again(self, back):
        self.tell(lambda call: call.append(call.log[-min(back, len(call.log))][0]))

    @rule(topic=st.sampled_from(["hotel", "train", "...", "x" * 300]))
    def voice_engine_names_a_topic(self, topic):
        self.tell(lambda call: call.send(TopicChanged, topic=topic))

    @rule(mood=st.sampled_from(["delivers", "fails", "refuses", "is_silent", "is_gone"]))
    def provider_turns(self, mood):
        self.tell(lambda call: getattr(call.provider, mood)())

    @rule(span_ms=st.sampled_from([1, 500, 4_000, 31_000, 7 * MINUTE_MS]))
    def time_passes(self, span_ms):
        before = len(self.calls[0].log)
        self.tell(lambda call: call.advance_ms(span_ms))
        minutes = 1 + span_ms * max(1.0, self.calls[0].state.time_scale) / MINUTE_MS
        assert len(self.calls[0].log) - before <= 12 * len(RULES.rules) * minutes

    @precondition(lambda self: self.ended == 0)
    @rule()
    def ends(self):
        self.ended += 1
        self.tell(lambda call: call.ends())

    @invariant()
    def decisions_are_whole_and_the_same_after_a_crash(self):
        call, crashing = self.calls
        assert [decision.defect for decision in call.decisions if decision.defect] == []
        assert len(crashing.decisions) == len(call.decisions)
        assert crashing.decisions[self.compared :] == call.decisions[self.compared :]
        self.compared = len(call.decisions)
        assert dump_state(crashing.state) == dump_state(call.state)
        assert bytes_of(call.state) < STATE_BYTES
        assert all(times == 1 for times in outcomes_of(call).values())

    def teardown(self):
        if not hasattr(self, "calls"):
            return
        call = self.calls[0]
        call.ends()
        call.advance_ms(ABANDONED_AFTER_MS)
        assert call.forgotten
        assert outcomes_of(call) == Counter(accepted_by(call))
        again = Call.replayed(call.log, RULES)
        assert again.decisions == call.decisions


test_any_conversation_is_judged_alike_after_every_crash_and_ends_each_injection_once = AnyConversation.TestCase
AnyConversation.TestCase.settings = settings(examples(40), stateful_step_count=30)


def busy(call):
    """What calls of an hour hold, in two minutes."""
    for text in TEXTS:
        call.says(text)
        call.advance_ms(500)
    call.send(StreamStateChanged, state="slow", latency_ms=9_000)
    call.send(ToolCallEnded, tool="t", tool_call_id="1", failed=True)
    call.send(ErrorOccurred, stage="model", code="refusal")
    call.send(ContextRequested, request_id="1", query="help")
    for topic in ("hotel", "train") * 4:
        call.send(TopicChanged, topic=topic)
    call.says("this is terrible, I hate it, you make me so angry", speaker="user")
    call.says("sorry, I am confused, I don't understand what you mean")
    call.advance_ms(40_000)
    call.send(StreamStateChanged, state="fast", latency_ms=20)
    for text in ("hello again", "so", "where were we", "yes"):
        call.says(text)
    call.advance_ms(MINUTE_MS)
    call.says("well")
    return call


def test_a_session_that_is_silent_for_a_day_is_forgotten_and_has_left_nothing_open():
    """Rules that go by the clock go on in it, and do not keep it."""
    call = busy(Call(RULES))
    records = len(call.log)
    call.advance_ms(ABANDONED_AFTER_MS - 1)
    assert not call.forgotten
    assert len(call.log) - records < 6_000
    call.advance_ms(1)
    assert call.forgotten
    assert outcomes_of(call) == Counter(accepted_by(call))
    last = len(call.log)
    call.advance_ms(ABANDONED_AFTER_MS)
    assert all(isinstance(event, Tick) for event, _ in call.log[last:])
    assert [made for made in call.decisions[last:] if made.timers or made.explanation] == []


def test_the_busy_conversation_here_makes_every_kind_of_rule_fire():
    """What is shown of rules that never fire would be little."""
    call = busy(Call(RULES))
    call.advance_ms(HOUR_MS)
    fired = {firing.rule for made in call.explanations() for firing in made.fired}
    assert LEAVES.keys() - fired == set()


# Bounds


@pytest.mark.parametrize("kind", ["leaves", "pairs", "nested"])
def test_no_rule_asks_for_more_than_a_few_ticks_a_minute_when_nothing_happens(kind):
    """One that named a time gone by would be asked again every second for as long as the session lives."""
    made = {
        "leaves": lambda: LEAVES,
        "nested": lambda: NESTED,
        "pairs": lambda: {
            f"{name} {one} {other}": strategy
            for one, other in permutations(LEAVES, 2)
            for name, strategy in joined(LEAVES[one], LEAVES[other]).items()
            if strategy.listens
        },
    }[kind]()
    restless = {}
    for name, strategy in made.items():
        call = Call(rules_of({"r": strategy}, shadow=True))
        for text in ("hi", "help", "well", "my bill", "yes"):
            call.says(text)
        call.send(ToolCallEnded, tool="t", tool_call_id="1", failed=True)
        since = len(call.log)
        for _ in range(30):
            call.advance_ms(MINUTE_MS)
            if len(call.log) - since > 60:
                break
        of_rule = [at_ms // MINUTE_MS for event, at_ms in call.log[since:] if isinstance(event, Tick)]
        most = max(Counter(of_rule).values(), default=0)
        if most > 4:
            restless[name] = most
    assert restless == {}


def fired_at(strategy, *texts):
    """The numbers of the messages (from 1) at which a rule fired."""
    call = Call(rules_of({"r": strategy}, cooldown_ms=0), crash_after_every_record=True)
    numbers = []
    for number, text in enumerate(texts, 1):
        before = len(call.decisions)
        call.says(text)
        numbers += [number for decision in call.decisions[before:] for _ in decision.fired]
    return numbers


def test_what_follows_a_conversation_follows_it_inside_an_all_too():
    """It must see the events on which it does not fire, wherever it stands in the list."""
    please, in_order = Keyword(("please",)), Within(HELP, BILL, MINUTE_MS)
    told = ("help", "please bill", "help bill", "bill please")
    assert fired_at(All((in_order, please)), *told) == fired_at(All((please, in_order)), *told) == [2, 4]
    assert fired_at(All((please, Hysteresis(HELP, BYE))), *["please help"] * 2, "bye", "please help") == [1, 4]


def test_an_all_of_states_fires_once_for_each_time_that_it_becomes_so():
    call = Call(rules_of({"r": All((Phase("middle"), SystemState("error")))}, cooldown_ms=0))
    for _ in range(6):
        call.says("well")
    call.send(ErrorOccurred, stage="stt", code="timeout")
    for _ in range(3):
        call.says("well")
    assert len(call.injections()) == 1


def test_what_switches_off_counts_from_the_beginning_and_not_from_the_switching_on():
    assert fired_at(Hysteresis(HELP, EveryMessages(3)), "a", "b", "c", "help", "help", "help", "help") == [4, 7]


def test_a_hundred_thousand_events_in_one_session_cost_and_leave_no_more_at_the_end_than_at_the_beginning():
    state, partition = Session("call"), Partition(0, rules_hash=RULES.rules_hash)
    kinds = {"speaker": "user", "known_ms": 0}
    now_ms, spent, sizes = 0, [], []
    for seq in range(100_000):
        now_ms += 300
        own = {"session_id": "call", "producer": "voice", "incarnation": 0, "seq": seq, "at_ms": now_ms}
        if seq == 0:
            event = SessionStarted(**own, provider="simulated", model="m")
        elif seq % 20 == 0:
            event = MessageCompleted(**own, speaker="user", text=f"{TEXTS[seq // 20 % len(TEXTS)]} {seq}")
        elif seq % 20 in (7, 13):
            event = (TurnStarted if seq % 20 == 7 else TurnEnded)(**own, **kinds)
        else:
            event = AudioChunkReceived(**own, speaker="user", duration_ms=300)
        if seq % 10_000 == 0:
            spent.append(-time.process_time())
        decision = decide(state, partition, event, now_ms, RULES)
        assert decision.defect == ""
        for timer, due_ms in list(state.timers.items()):
            if due_ms <= now_ms:
                assert (
                    decide(state, partition, Tick(session_id="call", timer=timer, due_ms=due_ms), now_ms, RULES).defect
                    == ""
                )
        if seq % 10_000 == 9_999:
            spent[-1] += time.process_time()
            sizes.append(bytes_of(state))
    assert max(sizes) < STATE_BYTES
    assert max(sizes[5:]) < max(sizes[:5]) * 1.2
    assert min(spent[5:]) < 3 * min(spent[:5])


MESSAGE = 256 * 1024


@pytest.mark.parametrize(
    "text",
    [
        text * (MESSAGE // len(text.encode()))
        for text in (
            "a", "a ", "a'", "help my bill ", "no sorry i'm so i said ", "\0", "\n", ". ", "?!", "\u0301",
            "\u1100\u1161", "\ufdfa", "\u0390", "\U0001f469\u200d", "\u202e\u200b", "你好", "İ",
        )
    ],
    ids=lambda text: ascii(text[:6]),
)  # fmt: skip
def test_a_message_of_256_kib_is_judged_in_half_a_second_whatever_it_holds(text):
    call = Call(RULES, modality="text")
    for _ in range(6):
        call.says("well")
    began = time.process_time()
    call.says(text)
    call.says(text, speaker=ASSISTANT)
    assert time.process_time() - began < 1
    assert [decision.defect for decision in call.decisions if decision.defect] == []
    assert bytes_of(call.state) < STATE_BYTES + 12_000  # of what was said, two lines of a thousand characters are kept


def words_of_every_script():
    """A word of three letters in each script, as the names of its letters tell scripts apart."""
    letters = defaultdict(list)
    for char in map(chr, range(0x110000)):
        if unicodedata.category(char) in ("Ll", "Lo") and char == unicodedata.normalize("NFC", char.casefold()):
            letters[unicodedata.name(char, "?").split()[0]].append(char)
    return {script: "".join(told[:3]) for script, told in letters.items() if len(told) >= 6}


def test_a_word_of_every_script_is_found_where_it_stands_alone_and_not_inside_another():
    words = words_of_every_script()
    assert len(words) > 120
    rules = rules_of({script: Keyword((word,)) for script, word in words.items()}, shadow=True)
    call = Call(rules, modality="text")
    for script, word in words.items():
        before = len(call.decisions)
        call.says(f"«{word}», {word}{word}!")
        call.says(f"{word}{word}")
        found = [firing.rule for decision in call.decisions[before:] for firing in decision.fired]
        assert found == [script]


def test_half_a_character_comes_through_no_record():
    said = MessageCompleted(
        session_id="call", producer="voice", incarnation=0, seq=1, at_ms=0, speaker="user", text="@@@"
    )
    with pytest.raises(UnicodeEncodeError):
        encode(msgspec.structs.replace(said, text="\ud83d"))
    with pytest.raises(UndecodableRecord):
        decode(encode(said).replace(b"@@@", b"\xed\xa0\xbd"))


# States that other engines wrote

OF_VERSION_2 = b"""
{"type":"session","session_id":"call","version":2,"offset":9,"started_ms":1767225600000,"ended_ms":null,
"last_event_ms":1767225601000,"clock_offset_ms":0,"time_scale":1.0,"user_id":null,"provider":"simulated",
"model":"simulated","route":"attach","call_id":null,"modality":"voice","facts":{},"windows":{"voice/0":{"highest":4,
"seen":31}},"duplicates":0,"stragglers":0,"missing":0,"messages":1,"turns":1,"history":[{"speaker":"user","text":"help",
"at_ms":1767225601000}],"speaking":null,"generating":false,"playing":false,"tools":0,"muted":false,
"quiet_since_ms":1767225601000,"emotion":"neutral","timers":{"forget":1767312000000,"rule:silence":1767225604000},
"held":{},"live":{"keyword":{"injection_id":"0","content_hash":"0","since_ms":1767225601000}},
"rules":{"keyword":{"fired":1,"last_fired_ms":1767225601000,"counter":0,"when":"WHEN"},
"every_messages":{"fired":0,"last_fired_ms":0,"counter":7,"when":""},
"hysteresis":{"fired":1,"last_fired_ms":1767225601000,"counter":1,"when":"0"}},
"armed_for":"","outcomes":{"delivered":1},"digest":"00","redriven":[]}
"""
FIELDS_2 = msgspec.json.decode(OF_VERSION_2).keys()
MEMORY_2 = ("fired", "last_fired_ms", "counter", "when")


def as_version_2_writes(state):
    """What an engine of version 2 makes of a state: it leaves out what it does not know."""
    told = msgspec.json.decode(dump_state(state, 2))
    kept = {name: value for name, value in told.items() if name in FIELDS_2}
    kept["rules"] = {
        name: {known: memory[known] for known in MEMORY_2 if known in memory} for name, memory in told["rules"].items()
    }
    kept["live"] = {
        slot: {name: live[name] for name in ("injection_id", "content_hash", "since_ms")}
        for slot, live in told["live"].items()
    }
    return load_state(msgspec.json.encode(kept))


def test_a_state_that_version_2_wrote_is_read_and_goes_on():
    call = Call(RULES)
    call.state = load_state(OF_VERSION_2.replace(b"WHEN", RULES.rule("keyword").when_digest.encode()))
    call.now_ms = call.state.last_event_ms + 1_000
    call.send(MessageCompleted, speaker="user", text="help", seq=5)
    assert call.state.rules["keyword"].fired == 2
    assert call.state.rules["hysteresis"].fired == 1, "it was of another `when`, and began anew"
    busy(call)
    assert [decision.defect for decision in call.decisions if decision.defect] == []
    call.advance_ms(2 * ABANDONED_AFTER_MS)
    assert call.forgotten


def test_an_engine_of_version_2_may_judge_in_between_and_nothing_breaks_or_ends_twice():
    call = Call(RULES)
    for text in TEXTS * 3:
        call.says(text)
        call.advance_ms(5_000)
        call.state = as_version_2_writes(call.state)
    assert [decision.defect for decision in call.decisions if decision.defect] == []
    assert all(times == 1 for times in outcomes_of(call).values())
    call.advance_ms(2 * ABANDONED_AFTER_MS)
    assert call.forgotten
    assert outcomes_of(call) == Counter(accepted_by(call))


@dataclass(frozen=True)
class Stuck:
    """A plug-in that names a time gone by for ever."""

    number: int
    listens = frozenset({Tick})

    def due_ms(self, session, memory):  # noqa: ARG002
        return session.started_ms + 1_000

    def evidence(self, moment, memory):  # noqa: ARG002
        return None


def test_strategies_that_always_name_a_time_gone_by_are_asked_once_a_second_also_when_there_are_several():
    call = Call(rules_of({"one": Stuck(1), "two": Stuck(2), "three": Stuck(3)}))
    call.advance_ms(10_000)
    assert len(call.log) < 40


def test_ten_thousand_timers_of_one_session_are_waited_for_and_fire_in_a_few_seconds():
    strategies = {str(at): ConversationReaches(1_000 + at) for at in range(10_000)}
    call = Call(rules_of(strategies, shadow=True))
    began = time.process_time()
    call.advance_ms(MINUTE_MS)
    assert sum(len(decision.fired) for decision in call.decisions) == 10_000
    assert time.process_time() - began < 10


def test_marks_that_nobody_can_read_are_not_put_in_order():
    call = Call(RULES, modality="text")
    began = time.process_time()
    call.says("help a" + "\u0301\u0323" * (MESSAGE // 4))
    call.says("\U0001d165\U0001d16d" * (MESSAGE // 8))
    assert time.process_time() - began < 1
    assert call.state.rules["keyword"].fired == 1
