"""What rules know of a conversation: its phase, its topics, how its people and its machinery are doing."""

from __future__ import annotations

import msgspec
from test_strategies import MINUTE_MS, call_under, fired

from contextengine.engine.strategies.semantic import ContextShift, Emotion, EmotionShift, Keyword, Topic
from contextengine.engine.strategies.state_based import Phase, SystemState, UserState
from contextengine.schemas.events import ASSISTANT, ErrorOccurred, StreamStateChanged, ToolCallEnded, TopicChanged
from contextengine.schemas.session import dump_state

HOTEL = (
    "I need to find a hotel in the centre with free parking",
    "does the hotel have a room with two beds and breakfast",
    "please book the hotel room for three nights",
)
TRAIN = (
    "I also need a train from Cambridge to London on Friday",
    "what time does the train to London leave and arrive",
    "book tickets on that train to London for two passengers",
)


def test_a_phase_is_told_when_it_begins():
    call = call_under(Phase("start"), Phase("middle"), Phase("end"))
    for _ in range(6):
        call.says("well")
    call.says("thanks, that is all, goodbye")
    call.says("goodbye")
    assert [firing["phase"] for firing in fired(call)] == ["start", "middle", "end"]


def test_who_goes_on_after_a_goodbye_has_not_gone():
    call = call_under(Phase("end"), Phase("middle"))
    for text in ("one", "two", "three", "four", "thanks, that is all, goodbye", "wait", "one more", "thing"):
        call.says(text)
    assert [firing["phase"] for firing in fired(call)] == ["end", "middle"]


def test_a_person_is_idle_after_a_silence_and_active_with_the_next_word():
    call = call_under(UserState("idle", 20_000), UserState("active", 20_000))
    call.says("let me see")
    call.advance_ms(19_000)
    assert fired(call) == []
    call.advance_ms(2_000)
    call.says("yes")
    call.advance_ms(25_000)
    assert [firing["user"] for firing in fired(call)] == ["idle", "active", "idle"]


def test_a_person_is_confused_who_sounds_like_it_or_says_the_same_again():
    for second in ("sorry, I am confused, I don't understand what you mean", "can I bring the dog with me"):
        call = call_under(UserState("confused"))
        call.says("can I bring the dog with me")
        call.says("there is a lift", speaker=ASSISTANT)
        assert fired(call) == []
        call.says(second)
        assert [firing["user"] for firing in fired(call)] == ["confused"]


def test_the_system_is_in_trouble_after_an_error_and_normal_again_when_nothing_has_gone_wrong_for_a_while():
    call = call_under(SystemState("error"), SystemState("normal"))
    call.says("hello")
    call.send(ToolCallEnded, tool="search", tool_call_id="1", failed=True)
    call.advance_ms(5_000)
    call.send(ErrorOccurred, stage="stt", code="timeout")
    call.advance_ms(MINUTE_MS)
    call.says("are you there")
    assert [firing["system"] for firing in fired(call)] == ["error", "normal"]


def test_a_slow_stream_is_high_load():
    call = call_under(SystemState("high_load", late_ms=800))
    call.send(StreamStateChanged, state="figures", latency_ms=300)
    call.send(StreamStateChanged, state="figures", latency_ms=900)
    assert fired(call) == [{"system": "high_load", "late": "900 ms"}]
    assert call.state.latency_ms == 900


def test_a_new_topic_is_a_context_shift_and_one_that_was_left_before_a_return():
    call = call_under(ContextShift(profile="task"), ContextShift(returns=True, profile="task"))
    for text in HOTEL + TRAIN + HOTEL[:1]:
        call.says(text)
        call.says("certainly", speaker=ASSISTANT)
    told = fired(call)
    assert any("london" in firing["topic"] and "returned" not in firing for firing in told)
    assert [firing for firing in told if firing.get("returned")] != []


def test_a_topic_is_known_by_its_words_once_for_each_time_that_it_comes_up():
    call = call_under(Topic(("train", "ticket"), profile="task"))
    for text in HOTEL + TRAIN:
        call.says(text)
    assert [firing["words"] for firing in fired(call)] == ["train"]


def test_a_voice_engines_own_detector_tells_topics_too():
    call = call_under(Topic(("billing",)), ContextShift())
    call.send(TopicChanged, topic="Billing", confidence=0.8)
    assert fired(call) == [{"topic": "Billing", "words": "billing"}, {"topic": "Billing", "chance": "0.80"}]


def test_what_somebody_implies_is_heard_where_a_rule_asks_for_it():
    call = call_under(Emotion(("joy",)), Emotion(("joy",), implied=0.3))
    call.says("haha this is the best day ever, thank you so much")
    [firing] = fired(call)
    assert firing["emotion"] == "joy"
    assert float(firing["intensity"]) >= 0.3
    assert call.state.emotion == "joy"


def test_a_mood_that_turns_is_told_once():
    call = call_under(EmotionShift("negative", 0.2))
    for text in ("hello", "that sounds good", "okay"):
        call.says(text)
    for _ in range(3):
        call.says("this is terrible, I hate it, you are useless and it makes me angry")
    [firing] = fired(call)
    assert firing["emotion"] == "negative"


def test_detectors_that_no_rule_asks_for_do_not_run_and_leave_nothing_in_the_state():
    call = call_under(Keyword(("hotel",)))
    for text in HOTEL:
        call.says(text)
    state = msgspec.json.decode(dump_state(call.state))
    assert state["threads"] == {}
    assert state["moods"] == {"by_speaker": {}}


def test_a_state_of_a_long_conversation_with_all_detectors_stays_small():
    call = call_under(
        ContextShift(), ContextShift(profile="task"), EmotionShift(), Phase("end"), UserState("confused"), Topic(("x",))
    )
    for turn in range(100):
        call.says((HOTEL + TRAIN)[turn % 6] + f" and number {turn}")
    assert len(dump_state(call.state)) < 8_000
