"""When rules fire: each strategy in a conversation of its own."""

from __future__ import annotations

import pytest

from contextengine.engine.builders import Text
from contextengine.engine.rules import Rule, RuleSet
from contextengine.engine.strategies.compose import All
from contextengine.engine.strategies.semantic import Emotion, Keyword
from contextengine.engine.strategies.state_based import ConversationReaches, Silence
from contextengine.engine.strategies.strategy import digest_of
from contextengine.engine.strategies.temporal import Every, EveryMessages
from contextengine.schemas.events import (
    ASSISTANT,
    EmotionShifted,
    MessageCompleted,
    PlaybackEnded,
    SilenceDetected,
    Tick,
)
from contextengine.testing import Call

MINUTE_MS = 60_000


def call_under(*strategies, **start):
    """A call with one rule for each strategy; the rules are named after their order."""
    return Call(
        RuleSet(
            tuple(
                Rule(name=f"rule-{at}", when=strategy, build=Text(information={"n": str(at)}), cooldown_ms=0)
                for at, strategy in enumerate(strategies)
            )
        ),
        **start,
    )


def fired(call):
    """What each firing was based on, in order."""
    return [firing.evidence for made in call.explanations() for firing in made.fired]


def test_every_messages_fires_with_each_multiple_whoever_speaks():
    call = call_under(EveryMessages(3))
    for said in range(7):
        call.says("well", speaker=ASSISTANT if said % 2 else "user")
    assert fired(call) == [{"messages": "3"}, {"messages": "6"}]


def test_every_messages_fires_once_for_a_multiple_that_a_straggler_jumped_over():
    """The straggler is counted and fires nothing; the next message sees that the multiple was reached."""
    call = call_under(EveryMessages(2))
    call.send(MessageCompleted, speaker="user", text="one")
    call.send(MessageCompleted, speaker="user", text="three", seq=3)
    call.send(MessageCompleted, speaker="user", text="late", seq=2)
    call.send(MessageCompleted, speaker="user", text="four")
    assert fired(call) == [{"messages": "2"}, {"messages": "4"}]


def test_every_fires_at_the_end_of_each_period_and_at_no_other_time():
    call = call_under(Every(5 * MINUTE_MS))
    call.advance_ms(14 * MINUTE_MS)
    assert fired(call) == [{"elapsed": "300 s", "period": "300 s"}, {"elapsed": "600 s", "period": "300 s"}]
    assert [made.elapsed_ms for made in call.explanations() if made.fired] == [5 * MINUTE_MS, 10 * MINUTE_MS]


def test_every_does_not_make_up_for_periods_that_went_by_unseen():
    """A worker was away; its first tick comes late."""
    call = call_under(Every(MINUTE_MS))
    [(timer, due_ms)] = [timer for timer in call.state.timers.items() if timer[0].startswith("rule:")]
    call.now_ms += 10 * MINUTE_MS + 500
    call.append(Tick(session_id="call", timer=timer, due_ms=due_ms))
    call.advance_ms(MINUTE_MS)
    assert [evidence["elapsed"] for evidence in fired(call)] == ["600 s", "660 s"]


def test_conversation_reaches_fires_once():
    call = call_under(ConversationReaches(2 * MINUTE_MS))
    call.advance_ms(2 * MINUTE_MS - 1)
    assert fired(call) == []
    call.advance_ms(10 * MINUTE_MS)
    assert fired(call) == [{"elapsed": "2.0 min"}]


@pytest.mark.parametrize("time_scale", [0.3, 1.0, 3.0, 7.7, 60.0])
def test_times_are_the_conversations_own_at_any_speed(time_scale):
    call = call_under(ConversationReaches(7 * MINUTE_MS), Every(3 * MINUTE_MS), Silence(10_000), time_scale=time_scale)
    call.send(PlaybackEnded, response_id="r")
    call.advance_ms(round(7 * MINUTE_MS / time_scale) + 1)
    at = {made.fired[0].rule: made.elapsed_ms for made in call.explanations() if made.fired}
    assert at["rule-0"] == pytest.approx(7 * MINUTE_MS, abs=time_scale + 1)
    assert at["rule-1"] == pytest.approx(6 * MINUTE_MS, abs=time_scale + 1)
    assert at["rule-2"] == pytest.approx(10_000, abs=time_scale + 1)


@pytest.mark.parametrize(
    ("told", "used"),
    [(0.0, 1.0), (-3.0, 1.0), (float("nan"), 1.0), (1e-300, 0.01), (1e300, 100.0), (float("inf"), 100.0), (10.0, 10.0)],
)
def test_a_speed_that_nobody_can_mean_is_brought_to_one_that_timers_can_follow(told, used):
    """A call that says it is 1e20 times as fast as life must not make a timer fire without end."""
    call = call_under(Every(1_000), time_scale=told)
    call.advance_ms(1_000)
    assert call.state.time_scale == used
    assert sum(isinstance(record, Tick) for record, _ in call.log) == int(used)


def test_silence_fires_once_in_each_silence():
    call = call_under(Silence(12_000))
    call.says("let me think")
    call.advance_ms(60_000)
    assert fired(call) == [{"quiet": "12.0 s"}]
    call.says("hm")
    call.advance_ms(60_000)
    assert fired(call) == [{"quiet": "12.0 s"}] * 2


def test_silence_does_not_fire_again_because_a_detector_tells_of_the_same_silence():
    call = call_under(Silence(12_000))
    call.says("let me think")
    call.advance_ms(20_000)
    call.send(SilenceDetected, at_ms=call.now_ms - 20_000)
    call.advance_ms(60_000)
    assert fired(call) == [{"quiet": "12.0 s"}]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Can I BOOK a table?", "book"),
        ("I booked it", None),
        ("a bookshelf", None),
        ("my money -- back, please", "money back"),
        ("back money", None),
        ("that isn\u2019t right", "isn't"),
        ("Caf\u00e9?", "café"),
        ("Cafe\u0301!", "café"),
        ("STRASSE", "straße"),
        ("मुझे हिन्दी पसंद है", "हिन्दी"),
        ("हिन्द", None),
        ("", None),
    ],
)
def test_a_keyword_is_a_whole_word_or_words_in_a_row_in_any_case_and_script(text, found):
    call = call_under(Keyword(("book", "money back", "isn't", "café", "straße", "हिन्दी")))
    call.send(MessageCompleted, speaker="user", text=text)
    assert fired(call) == ([{"keywords": found}] if found else [])


@pytest.mark.parametrize(("speaker", "times"), [("user", 1), (ASSISTANT, 1), (None, 2)])
def test_a_keyword_listens_to_one_speaker_or_to_anybody(speaker, times):
    call = call_under(Keyword(("table",), speaker=speaker))
    call.says("a table")
    call.says("a table", speaker=ASSISTANT)
    assert len(fired(call)) == times


def test_emotion_is_read_from_words_and_taken_from_the_voice_engines_own_detector():
    call = call_under(Emotion(("anger",)))
    call.says("this is outrageous, I'm furious and angry")
    call.says("I'm not angry at all")
    call.says("I'm happy")
    call.says("I'm angry too", speaker=ASSISTANT)
    call.send(EmotionShifted, speaker="user", emotion="anger", intensity=0.8)
    call.send(EmotionShifted, speaker=ASSISTANT, emotion="anger")
    call.send(EmotionShifted, speaker="user", emotion="joy")
    assert fired(call) == [
        {"emotion": "anger", "words": "furious, angry"},
        {"emotion": "anger", "intensity": "0.80"},
    ]


@pytest.mark.parametrize(
    "parts",
    [
        (Emotion(("stress",)), Keyword(("startup",))),
        (Keyword(("startup",)), Keyword(("stressed", "worried"))),
        (All((Emotion(("stress",)), Emotion(("stress", "fear")))), Keyword(("startup",))),
        (All((Keyword(("my",)), Keyword(("startup",)))), Keyword(("stressed",))),
    ],
    ids=["emotion and keyword", "two keywords", "nested without words", "nested with words"],
)
def test_all_fires_when_every_part_fires_on_the_same_message(parts):
    call = call_under(All(parts))
    call.says("my startup")
    call.says("I'm stressed")
    assert fired(call) == []
    call.says("I'm stressed about my startup")
    assert len(fired(call)) == 1


@pytest.mark.parametrize("parts", [(EveryMessages(3), Keyword(("yes",))), (Keyword(("yes",)), EveryMessages(3))])
def test_all_with_a_count_fires_with_the_first_such_message_after_each_multiple(parts):
    """In whatever order its parts are written."""
    call = call_under(All(parts))
    for text in ("yes", "no", "no", "no", "yes", "yes", "yes"):
        call.says(text)
    assert fired(call) == [{"messages": "5", "keywords": "yes"}, {"messages": "6", "keywords": "yes"}]


def test_all_with_a_count_does_not_count_what_another_part_held_back():
    call = call_under(All((EveryMessages(3), Emotion(("stress",)))))
    for text in ("well", "well", "well", "well", "I'm stressed"):
        call.says(text)
    assert fired(call) == [{"messages": "5", "emotion": "stress", "words": "stressed"}]


def test_a_strategy_that_cannot_be_meant_is_refused_when_it_is_made():
    refused = [
        (lambda: EveryMessages(0), "at least 1"),
        (lambda: Every(999), "at least 1 s"),
        (lambda: Keyword(()), "at least one word"),
        (lambda: Keyword(("?!",)), "contains no word"),
        (lambda: Emotion(()), "at least one emotion"),
        (lambda: All((Keyword(("a",)),)), "at least two"),
        (lambda: All((Keyword(("a",)), Every(1_000))), "these never do: Keyword, Every"),
    ]
    for make, told in refused:
        with pytest.raises(ValueError, match=told):
            make()


def test_a_rule_that_no_longer_waits_for_a_timer_does_not_fire_on_the_one_it_left_behind():
    call = call_under(Every(MINUTE_MS))
    call.says("one")
    changed = Rule(name="rule-0", when=EveryMessages(1), build=Text(information={"n": "0"}))
    call.change_rules(RuleSet((changed,), "changed"))
    call.advance_ms(5 * MINUTE_MS)
    assert fired(call) == []
    call.says("two")
    assert fired(call) == [{"messages": "2"}]


@pytest.mark.parametrize(
    ("before", "after", "due_ms"),
    [
        (ConversationReaches(MINUTE_MS), ConversationReaches(3 * MINUTE_MS), 3 * MINUTE_MS),
        (Silence(MINUTE_MS), Silence(3 * MINUTE_MS), 3 * MINUTE_MS),
        (Every(MINUTE_MS), Every(3 * MINUTE_MS), 3 * MINUTE_MS),
    ],
)
def test_a_rule_whose_time_is_put_off_does_not_fire_on_the_timer_from_before(before, after, due_ms):
    call = call_under(before)
    call.change_rules(RuleSet((Rule(name="rule-0", when=after, build=Text(information={"n": "0"})),), "changed"))
    call.advance_ms(due_ms - 1)
    assert fired(call) == []
    call.advance_ms(1)
    assert len(fired(call)) == 1


def test_a_rule_that_is_added_during_a_call_fires_for_what_has_been_reached_already():
    call = call_under(EveryMessages(1000))
    call.advance_ms(10 * MINUTE_MS)
    added = Rule(name="added", when=ConversationReaches(5 * MINUTE_MS), build=Text(information={"n": "0"}))
    call.change_rules(RuleSet((added,), "changed"))
    call.says("hello")
    call.advance_ms(0)
    assert fired(call) == [{"elapsed": "10.0 min"}]


def test_a_session_remembers_how_often_and_when_last_a_rule_fired_and_nothing_of_those_that_did_not():
    call = call_under(Keyword(("table",)), Keyword(("chair",)), EveryMessages(1_000))
    call.says("a table")
    call.says("a table")
    last_said_ms = call.now_ms
    call.says("no chairs")
    [(name, memory)] = call.state.rules.items()
    assert (name, memory.fired, memory.last_fired_ms) == ("rule-0", 2, last_said_ms)


def test_a_rule_whose_when_has_changed_begins_to_count_anew_and_any_other_change_leaves_its_memory():
    def rules(count, text, rules_hash):
        rule = Rule(name="nth", when=EveryMessages(count), build=Text(information={"n": text}))
        return RuleSet((rule,), rules_hash)

    call = Call(rules(2, "a", "first"))
    for _ in range(10):
        call.says("hello")
    assert len(call.injections()) == 1, "the same text is a duplicate"
    call.change_rules(rules(2, "b", "second"))
    call.says("hello")
    assert len(call.injections()) == 1, "eleven messages are no new pair"
    call.change_rules(rules(11, "c", "third"))
    call.says("hello")
    assert call.injections()[-1].context.information == {"n": "c"}, "twelve messages are eleven and one"
    call.says("hello")
    assert len(call.injections()) == 2


def test_strategies_are_told_apart_by_their_parameters_and_named_alike_in_every_process():
    assert digest_of(EveryMessages(2)) == digest_of(EveryMessages(2)) == "fb827386fa83"
    assert len({digest_of(one) for one in (EveryMessages(2), EveryMessages(3), Every(2_000), Keyword(("a",)))}) == 4
    joined = [All((Keyword(("a",)), EveryMessages(count))) for count in (1, 2)]
    assert digest_of(joined[0]) != digest_of(joined[1])


def test_a_thousand_rules_are_not_asked_about_a_message_that_names_none_of_their_words():
    """A rule that is asked would be remembered: the session's memory shows who was."""
    asked = []

    class Watched(Keyword):
        def evidence(self, moment, memory):
            asked.append(self.any_of)
            return super().evidence(moment, memory)

    call = call_under(*(Watched((f"word{at}",)) for at in range(1_000)))
    call.says("nothing of the kind, word17 and word500 excepted")
    assert asked == [("word17",), ("word500",)]
