"""A recording that can leave the house: what people said is gone, and it is still judged alike.

    replaced word by word   what was said and asked for, facts, topics, errors and their reasons: each word by a made-up
                            one of the same shape, the same word always by the same
    renamed                 sessions, people, calls, producers, workers, providers, models, tools, agents, fact names
    left out                traces, the bytes of records that are no events, sessions that cannot be replayed
    kept                    the texts of the rules; each word that a rule listens for or that stands in its templates'
                            code; words of feelings where a rule listens for them; punctuation; all times

The salt of the made-up words is random, and nowhere kept. What follows is worked out anew, side by side with the
original: where a rule would fire otherwise, or a context end otherwise, there is no redacted recording.
"""

from __future__ import annotations

import copy
import re
import secrets
from collections.abc import Iterator
from enum import Enum
from hashlib import blake2b
from typing import Any, Final

import msgspec
from msgspec import Struct

from contextengine.engine.builders import Text
from contextengine.engine.decision import Decision
from contextengine.engine.lives import INJECTION_TIMER
from contextengine.engine.rules import RuleSet
from contextengine.engine.strategies.semantic import Emotion, Topic
from contextengine.engine.strategies.strategy import Strategy, parts_of, vocabulary_of
from contextengine.engine.triggers.emotion import feeling_in
from contextengine.engine.triggers.keywords import with_words, words_of
from contextengine.errors import ContextEngineError
from contextengine.replay.exact import replay
from contextengine.replay.partition import PartitionReplay, RuleSets, outputs_of
from contextengine.replay.recording import LogRecord, Recording
from contextengine.schemas.events import (
    ASSISTANT,
    ATTACH,
    HAND_OFF,
    USER,
    ContextPushed,
    PendingCancelled,
    SwitchesChanged,
)
from contextengine.schemas.session import Partition, Session
from contextengine.topics.catalogue import partition_for

SAID: Final = frozenset({"text", "query", "topic", "emotion", "message", "reason", "facts"})
"""Fields that hold words; what is in other fields is a name, unless it is the engine's own."""
RENDERED: Final = frozenset({"information", "strategy", "attention"})
"""Fields of a context that waits in a session's state: they hold words too, and those of the rules' own stay."""
OURS: Final = frozenset(
    {"rule", "rules", "rules_hash", "engine", "source", "key", "when", "armed_for", "called_back", "content_hash"}
)
"""Fields that only the engine and the rules fill."""
TERMS: Final = frozenset(
    {"", USER, ASSISTANT, ATTACH, HAND_OFF, "voice", "audio", "text", "neutral", "hangup"}
    | {"native", "emulated", "none", "system", "developer"}
)
"""What stands for itself in any recording."""
PLACES: Final = frozenset({"of", "first", "then", "unless", "on", "off"})
"""What a strategy that is made of others calls its parts; other names are topics."""
HANDS: Final = (ContextPushed, PendingCancelled, SwitchesChanged)
"""What somebody does by hand: names and texts that no rule file knows."""
TRIES: Final = 1_000
_CODE: Final = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)


class RedactionFailed(ContextEngineError):
    """A recording cannot be redacted so that it is judged alike: says where it would not be."""


def redacted(recording: Recording, salt: bytes | None = None) -> Recording:
    """The recording without what people said, and without names; the same `salt` (random by default) gives the same.

    Raises RedactionFailed when the recording is not judged as it was, or could not be after its redaction.
    """
    divergence = replay(recording).divergence
    if divergence is not None:
        raise RedactionFailed(f"before anything is redacted, the recording is not judged as it was\n{divergence}")
    if any(isinstance(of.event, HANDS) for of in recording.records) or any(
        of.off for of in recording.partitions.values()
    ):
        raise RedactionFailed("contexts that were pushed or taken back, and switches, cannot be redacted yet")
    redaction = _Redaction(recording, salt or secrets.token_bytes(32))
    records = list(redaction.records())
    header = msgspec.structs.replace(
        recording.header,
        log_id=redaction.name("log", recording.header.log_id),
        topic="events",
        redacted=True,
        incomplete={},
    )
    return Recording(header, redaction.partitions, redaction.sessions, records)


class _Redaction:
    def __init__(self, recording: Recording, salt: bytes) -> None:
        self._recording = recording
        self._salt = salt
        self._rule_sets = RuleSets(recording.header.rules)
        rules = [self._rule_sets.of(name) for name in recording.header.rules]
        self._listened_for = {word for text in _words_that_count(rules, recording) for word in words_of(text)}
        self._feelings = any(isinstance(part, Emotion) for of in rules for part in _strategies(of))
        self._rules_own = {word for of in rules for text in _texts(of) for word in words_of(text)}
        self._words: dict[str, str] = {}
        self._injections: dict[str, str] = {}
        """The ids of injections: as they were, and as they are."""
        self.partitions = {
            number: msgspec.structs.replace(partition, log_id=self.name("log", partition.log_id))
            for number, partition in recording.partitions.items()
        }
        kept = [session for name, session in recording.sessions.items() if name not in recording.header.incomplete]
        self.sessions: dict[str, Session] = {session.session_id: session for session in map(self._struct, kept)}

    def records(self) -> Iterator[LogRecord]:
        """Each record redacted, with what follows from it. Raises RedactionFailed where it is not what followed."""
        before = _Judges(self._recording.partitions, self._recording.sessions, self._rule_sets)
        after = _Judges(self.partitions, self.sessions, self._rule_sets)
        for of in self._recording.records:
            if getattr(of.event, "session_id", None) in self._recording.header.incomplete:
                continue
            event = None if of.event is None else self._struct(of.event)
            record = LogRecord(
                partition=of.partition,
                offset=of.offset,
                appended_ms=of.appended_ms,
                event=event,
                value=b"" if event is None else None,
            )
            was, now = before.judge(of), after.judge(record)
            if was is None or now is None:
                if was is not now:
                    raise RedactionFailed(f"partition {of.partition} offset {of.offset} would not be judged as it was")
                yield record
                continue
            if _course(was) != _course(now):
                raise RedactionFailed(
                    f"{was.event} {was.position} (partition {of.partition} offset {of.offset}) would be judged"
                    " otherwise, because a rule depends on what is redacted"
                    f"\n  recorded: {_course(was)}\n  redacted: {_course(now)}"
                )
            self._injections |= {
                accepted.injection_id: again.injection_id
                for accepted, again in zip(was.accepted, now.accepted, strict=True)
            }
            yield msgspec.structs.replace(record, outputs=tuple(outputs_of(now)))

    def name(self, kind: str, name: str) -> str:
        """Another name for the same thing of a kind; a session stays in its partition."""
        if name in TERMS:
            return name
        if kind != "session":
            return f"{kind}-{self._digest(kind, name)}"
        partitions = self._recording.header.partitions
        names = (f"session-{self._digest(kind, name, number)}" for number in range(TRIES * partitions))
        return next(
            one for one in names if partition_for(one.encode(), partitions) == partition_for(name.encode(), partitions)
        )

    def _struct(self, struct: Any) -> Any:
        """The same kind of record or state, each field redacted."""
        told = {name: self._field(name, getattr(struct, name)) for name in struct.__struct_fields__}
        return msgspec.structs.replace(struct, **told)

    def _field(self, field: str, value: Any) -> Any:
        match value:
            case Struct():
                return self._struct(value)
            case dict():
                return {self._key(field, name): self._field(field, part) for name, part in value.items()}
            case list():
                return [self._field(field, part) for part in value]
            case Enum():
                return value
            case str():
                return self._text(field, value)
            case _:
                return value

    def _key(self, field: str, name: str) -> str:  # noqa: PLR0911 - one return a kind
        """The name of an entry of a mapping."""
        match field:
            case "facts" | "terms":
                return with_words(name, self._word)
            case "parts":
                return name if name.isdigit() or name in PLACES else with_words(name, self._word)
            case "by_speaker":
                return self.name("speaker", name)
            case "held":
                return self._injection(name)
            case "timers":
                return self._timer(name)
            case "windows":
                producer, _, incarnation = name.rpartition("/")
                return f"{self.name('producer', producer)}/{incarnation}"
            case _:
                return name

    def _text(self, field: str, value: str) -> str:  # noqa: PLR0911 - one return a kind
        if field in OURS or (field in SAID and value in TERMS):
            return value
        if field in SAID:
            return with_words(value, self._word)
        if field in RENDERED:
            own = self._rules_own
            return with_words(value, lambda word: word if own.issuperset(words_of(word)) else self._word(word))
        match field:
            case "injection_id" | "redriven":
                return self._injection(value)
            case "timer":
                return self._timer(value)
            case "position":
                return self._position(value)
            case "digest":
                return value and self._digest("digest", value)
            case _:
                return self.name(field.removesuffix("_id"), value)

    def _injection(self, injection_id: str) -> str:
        """The id that an injection has now; one that is older than the recording gets a name of the same form."""
        return self._injections.get(injection_id) or self._digest("injection", injection_id, size=16)

    def _timer(self, timer: str) -> str:
        name = timer.removeprefix(INJECTION_TIMER)
        return timer if name == timer else INJECTION_TIMER + self._injection(name)

    def _position(self, position: str) -> str:
        kind, _, _ = position.partition("/")
        if kind in ("report", "retry", "redrive"):
            _, injection_id, number = position.split("/")
            return f"{kind}/{self._injection(injection_id)}/{number}"
        if kind == "tick":
            timer, _, due_ms = position.removeprefix("tick/").rpartition("/")
            return f"tick/{self._timer(timer)}/{due_ms}"
        producer, incarnation, seq = position.rsplit("/", 2)
        return f"{self.name('producer', producer)}/{incarnation}/{seq}"

    def _word(self, word: str) -> str:
        """The word that stands for this one: itself where it counts, else a made-up one that does not."""
        if self._counts(word):
            return word
        if word not in self._words:
            made = (self._made_up(word, number) for number in range(TRIES))
            found = next((one for one in made if one.casefold() != word.casefold() and not self._counts(one)), None)
            if found is None:
                raise RedactionFailed(f"the rules listen for every word of {len(word)} characters: none is left")
            self._words[word] = found
        return self._words[word]

    def _counts(self, word: str) -> bool:
        """Whether a rule could tell this word from others."""
        return any(
            part in self._listened_for
            or (self._feelings and (feeling_in([part]) is not None or feeling_in([part, "happy"]) is None))
            for part in words_of(word)
        )

    def _made_up(self, word: str, number: int) -> str:
        """Letters for letters and digits for digits, capitals where they were."""
        drawn = bytes.fromhex(self._digest("word", word.casefold(), number, size=64))
        letters = (_like(char, drawn[at % len(drawn)]) for at, char in enumerate(word))
        return "".join(letters)

    def _digest(self, kind: str, of: str, number: int = 0, size: int = 6) -> str:
        said = f"{kind}\x1f{of}\x1f{number}".encode()
        return blake2b(said, key=self._salt, digest_size=size).hexdigest()


class _Judges:
    """The judges of all partitions, on copies of their states."""

    def __init__(self, partitions: dict[int, Partition], sessions: dict[str, Session], rule_sets: RuleSets) -> None:
        self._partitions, self._rule_sets = copy.deepcopy(partitions), rule_sets
        self._sessions = copy.deepcopy(sessions)
        self._replays: dict[int, PartitionReplay] = {}

    def judge(self, of: LogRecord) -> Decision | None:
        """What follows from the next record."""
        if of.partition not in self._replays:
            partition = self._partitions.get(of.partition) or Partition(of.partition)
            self._replays[of.partition] = PartitionReplay(partition, self._sessions, self._rule_sets)
        return self._replays[of.partition].judge(of.offset, of.appended_ms, of.event)


def _course(decision: Decision) -> list[tuple[object, ...]]:
    """What a decision comes to, without words and names."""
    return [
        ("fired", *(told.rule for told in decision.fired)),
        ("held back", *((told.rule, told.filter) for told in decision.suppressed)),
        ("accepted", *((told.rule, told.placement) for told in decision.accepted)),
        ("attempts", *((told.injection.rule, told.attempt, told.injection.deadline_ms) for told in decision.attempts)),
        ("called back", len(decision.cancellations)),
        ("retries", *((told.attempt, told.due_ms) for told in decision.retries)),
        ("ended", *((told.rule, told.outcome.value, told.attempts) for told in decision.results)),
        ("timers", *(due_ms for _, due_ms in decision.timers)),
        ("forgotten", decision.forget),
    ]


def _strategies(rules: RuleSet) -> Iterator[Strategy]:
    """Those of all rules, and their parts."""
    return (part for rule in rules.rules for part in parts_of(rule.when))


def _words_that_count(rules: list[RuleSet], recording: Recording) -> Iterator[str]:
    """The phrases that rules listen for, the feelings by their names, and what stands in templates' code."""
    for of in rules:
        for strategy in _strategies(of):
            yield from vocabulary_of(strategy)
            if isinstance(strategy, Emotion):
                yield from strategy.any_of
            if isinstance(strategy, Topic):
                yield from strategy.about
    for text in recording.header.rules.values():
        yield from _CODE.findall(text)


def _texts(rules: RuleSet) -> Iterator[str]:
    """What rules say, templates as they are written."""
    for build in (rule.build for rule in rules.rules):
        if isinstance(build, Text):
            for dimension in (build.information, build.strategy, build.attention):
                for told in dimension.values():
                    yield from [told] if isinstance(told, str) else told


def _like(char: str, drawn: int) -> str:
    if char in "'\u2019":
        return char
    if char.isdigit():
        return str(drawn % 10)
    letter = chr(ord("a") + drawn % 26)
    return letter.upper() if char.isupper() else letter
