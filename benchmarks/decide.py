"""What it costs to judge an event, beside the naive way: no broker, one process.

    python benchmarks/decide.py [--runs 5]

Conversations that people wrote (tests/sessions), several in a call until it has a hundred turns, under 10, 200 and
1,000 rules: ten that ask for every detector, and for the rest keywords, 2,000 for 200 rules, few of which are ever
said. Each event is timed by itself, decoding aside, with the worker's setting of the garbage collector; what it takes
is the median of the runs. In the naive way every rule is asked about every event, and each keyword is searched for by a
regular expression; it must decide the same, byte for byte.
"""

from __future__ import annotations

import gc
import itertools
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any, Final, NamedTuple, TypeAlias

from arena import arguments, floor, machine, say

from contextengine.agents.transport import GARBAGE_AFTER
from contextengine.engine.decide import decide
from contextengine.engine.moment import Moment
from contextengine.engine.rules import Rule, RuleSet
from contextengine.engine.strategies.strategy import vocabulary_of
from contextengine.engine.triggers.keywords import PhraseIndex, words_of
from contextengine.replay.recording import files_in, read
from contextengine.rulefile import parse_rules
from contextengine.schemas.events import (
    USER,
    AttemptReported,
    AudioChunkReceived,
    GenerationStarted,
    MessageCompleted,
    PlaybackEnded,
    PlaybackStarted,
    ResponseCompleted,
    ResponseStarted,
    Tick,
    TurnEnded,
    TurnStarted,
)
from contextengine.schemas.session import Partition, Session, dump_state
from contextengine.testing import Call

RECORDINGS: Final = Path(__file__).parents[1] / "tests" / "sessions"
TURNS: Final = 100
AUDIO_MS: Final = 200
WORD_MS: Final = 400
PAUSE_MS: Final = 1_000
SESSION: Final = "session-00000001"
FEW: Final = 10
RULES: Final = 200
MANY: Final = 1_000
KEYWORDS: Final = 2_000
"""Of RULES rules; of MANY, each has as many."""
SAID_ONE_IN: Final = 4
"""Of the words that are said once, one in so many is a keyword; all of them begin phrases that nobody says."""
TURN: Final = (
    *(TurnStarted, TurnEnded, GenerationStarted, ResponseStarted),
    *(PlaybackStarted, ResponseCompleted, PlaybackEnded),
)

DETECTORS: Final = """
  - {name: shift, when: {context_shift: {profile: task}}, inject: {strategy: {topic: "{{ evidence.chance }}"}}}
  - {name: travel, when: {topic: {about: [train, taxi, hotel], profile: task}}, inject: {information: {a: tickets}}}
  - {name: felt, when: {emotion: {any_of: [anger, fear, sadness], implied: 0.5}}, inject: {strategy: {tone: kind}}}
  - {name: worse, when: {emotion_shift: negative}, inject: {strategy: {tone: patient}}}
  - {name: goodbye, when: {phase: end}, inject: {strategy: {pace: close}}, place: turn_boundary}
  - {name: lost, when: {user_state: confused}, inject: {strategy: {detail: explain again}}, criticality: important}
  - {name: recap, when: {every_messages: 10}, inject: {information: {messages: "{{ session.messages }}"}}}
  - {name: silence, when: {silence: 5 s}, inject: {strategy: {silence: offer help}}, cooldown: 60 s}
  - {name: long, when: {conversation_reaches: 2 min}, inject: {information: {minutes: "{{ session.minutes }}"}}}
  - {name: wrong, when: {corrective: {of: [user_correction]}}, inject: {strategy: {correction: thank}}}
"""

Said: TypeAlias = tuple[str, str]
"""Who said what."""
Log: TypeAlias = list[tuple[Any, int]]
"""Everything that is judged in a call, with its append time."""


class Judged(NamedTuple):
    """An event that was judged, what that took, and whether a rule fired."""

    event: Any
    us: float
    fired: bool


class NaivePhrases(PhraseIndex):
    """Searches for each phrase, in a text of its own words."""

    __slots__ = ("_patterns",)

    def __init__(self, phrases: Iterable[str]) -> None:
        self._patterns = {phrase: re.compile(rf"(?<!\S){re.escape(phrase)}(?!\S)") for phrase in phrases}

    def found_in(self, words: Sequence[str]) -> frozenset[str]:
        """The phrases that occur in `words`."""
        said = " ".join(words)
        return frozenset(phrase for phrase, pattern in self._patterns.items() if pattern.search(said))


class NaiveRules(RuleSet):
    """Asks every rule about every event that it listens to."""

    def __post_init__(self) -> None:
        super().__post_init__()
        phrases = frozenset[str]().union(*(vocabulary_of(rule.when) for rule in self.rules))
        object.__setattr__(self, "phrases", NaivePhrases(phrases))

    def concerned(self, moment: Moment) -> Iterable[Rule]:
        """All of them; of a timer, its own."""
        if isinstance(moment.event, Tick):
            return super().concerned(moment)
        return [rule for rule in self.rules if type(moment.event) in rule.when.listens]


def conversations() -> Iterator[list[Said]]:
    """What was said in the recorded conversations, several to a call of TURNS turns."""
    said: list[Said] = []
    for file in files_in([RECORDINGS]):
        events = [record.event for record in read(file).records]
        said += [(event.speaker, event.text) for event in events if isinstance(event, MessageCompleted)]
        if len(said) >= TURNS:
            yield said[:TURNS]
            said = []


def keywords_in(calls: list[list[Said]]) -> Iterator[str]:
    """Endless keywords: some of the words that are said once, and phrases that begin with one and that nobody says."""
    said = Counter(word for call in calls for _, text in call for word in words_of(text))
    rare = sorted(word for word, times in said.items() if times == 1 and word.isalpha())
    yield from rare[::SAID_ONE_IN]
    for number in itertools.count():
        yield from (f"{word} number{number}" for word in rare)


def rule_set(count: int, keywords: Iterator[str]) -> RuleSet:
    """So many rules: those of DETECTORS, and each of the others with the next keywords."""
    others = count - DETECTORS.count("name:")
    each = KEYWORDS / (RULES - DETECTORS.count("name:"))
    told = "rules:" + DETECTORS
    for at in range(others):
        words = list(itertools.islice(keywords, round(each * (at + 1)) - round(each * at)))
        told += f"  - {{name: rule-{at}, when: {{keyword: {words}}}, inject: {{strategy: {{tone: number {at}}}}}}}\n"
    return parse_rules(told, "made")


def held(said: list[Said], rules: RuleSet) -> Log:
    """What is judged in a call in which this is said: the audio of the person, the turns, timers and reports."""
    call = Call(rules, session_id=SESSION)
    for speaker, text in said:
        spoken_ms = WORD_MS * len(words_of(text))
        for _ in range(spoken_ms // AUDIO_MS if speaker == USER else 0):
            call.send(AudioChunkReceived, speaker=speaker, duration_ms=AUDIO_MS, energy=0.4, chunks=10)
        call.says(text, speaker, spoken_ms)
        call.advance_ms(PAUSE_MS)
    return call.log


def judge(logs: list[Log], rules: RuleSet) -> tuple[list[Judged], list[Session]]:
    """Judge the calls again from their begin."""
    judged, sessions = [], []
    gc.collect()
    for log in logs:
        session, partition = Session(SESSION), Partition(0, rules_version=0, rules_hash=rules.rules_hash)
        for event, now_ms in log:
            began = time.perf_counter_ns()
            decision = decide(session, partition, event, now_ms, rules)
            took = time.perf_counter_ns() - began
            judged.append(Judged(event, took / 1_000, bool(decision.fired)))
        sessions.append(session)
    return judged, sessions


def usual(runs: list[list[Judged]]) -> list[Judged]:
    """Each event with the median of what it took: in a single run, another process may have had the processor."""
    return [one[0]._replace(us=median(each.us for each in one)) for one in zip(*runs, strict=True)]


def percentile(judged: list[Judged], part: int, of: Callable[[Judged], bool]) -> float:
    """The microseconds that `part` per cent of those events do not exceed."""
    return quantiles([one.us for one in judged if of(one)], n=100)[part - 1]


def is_a(*kinds: type) -> Callable[[Judged], bool]:
    """Whether an event is of one of these kinds."""
    return lambda one: isinstance(one.event, kinds)


def main() -> None:
    """See the module's docstring."""
    given = arguments(__doc__).parse_args()
    print(machine())
    gc.set_threshold(GARBAGE_AFTER, *gc.get_threshold()[1:])
    calls = list(conversations())
    rules = {count: rule_set(count, keywords_in(calls)) for count in (FEW, RULES, MANY)}
    logs = {count: [held(call, each) for call in calls] for count, each in rules.items()}
    ways = {
        "ours": (RULES, rules[RULES]),
        "naive": (RULES, NaiveRules(rules[RULES].rules, rules[RULES].rules_hash)),
        "few": (FEW, rules[FEW]),
        "many": (MANY, rules[MANY]),
    }
    runs: dict[str, list[list[Judged]]] = {way: [] for way in ways}
    for run in range(given.runs):
        say(f"run {run + 1} of {given.runs}")
        left: dict[str, list[Session]] = {}
        for way, (count, each) in ways.items():
            judged, left[way] = judge(logs[count], each)
            runs[way].append(judged)
        if [session.digest for session in left["naive"]] != [session.digest for session in left["ours"]]:
            raise SystemExit("the naive way decides otherwise: its figures mean nothing")
    ours, naively, few, many = map(usual, runs.values())
    ratio = mean(one.us for one in many if not one.fired) / mean(one.us for one in few if not one.fired)

    message, audio, turn = is_a(MessageCompleted), is_a(AudioChunkReceived), is_a(*TURN)
    firing = mean(one.fired for one in ours if message(one))
    print(f"{len(calls)} calls of {TURNS} turns, {len(ours):,} events; {firing:.0%} of the messages make a rule fire")
    print(f"\n{'us an event, 200 rules':40}{'p50':>8}{'p99':>8}{'naive p50':>12}{'p99':>8}")
    for told, of in {
        "message": message,
        "message that makes a rule fire": lambda one: one.fired and message(one),
        "message that makes none": lambda one: not one.fired and message(one),
        **{kind.__name__: is_a(kind) for kind in (AudioChunkReceived, *TURN)},
        "what came of an attempt": is_a(AttemptReported),
    }.items():
        found = [percentile(way, part, of) for way in (ours, naively) for part in (50, 99)]
        print("{:40}{:8.1f}{:8.1f}{:12.1f}{:8.1f}".format(told, *found))
    print()
    floor("us for a message, 200 rules and every detector, p50", percentile(ours, 50, message), None, 80)
    floor("p99", percentile(ours, 99, message), None, 250)
    floor("us for audio, p50", percentile(ours, 50, audio), None, 8)
    floor("us for a turn's events, p50", percentile(ours, 50, turn), None, 8)
    floor("1,000 rules over 10, events that fire none", ratio, None, 1.3)
    floor("KB of state after 100 turns", max(len(dump_state(session)) for session in left["ours"]) / 1024, None, 8)


if __name__ == "__main__":
    main()
