"""Event-driven: what is asked for, what happens, what goes wrong, and what usually comes next.

Evidence is open to the templates of trusted rules, so the free text of an event (what was said, heard, reported) is no
part of it. The one exception is the query that `OnDemand` answers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, ClassVar, Final, Literal, TypeAlias, get_type_hints

import msgspec

from contextengine.engine.moment import Moment
from contextengine.engine.strategies.strategy import Evidence
from contextengine.engine.triggers.keywords import PhraseIndex, must_have_words, words_of
from contextengine.schemas.events import (
    ASSISTANT,
    CONVERSATION_EVENTS,
    USER,
    AudioChunkReceived,
    ContextRequested,
    ConversationEvent,
    ErrorOccurred,
    MessageCompleted,
    ToolCallEnded,
    TopicChanged,
)
from contextengine.schemas.session import Memory

Wrong: TypeAlias = Literal["error", "failed_response", "refused_response", "user_correction"]

EVENT_NAMES: Final = {
    re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower(): kind
    for kind in CONVERSATION_EVENTS
    if kind is not AudioChunkReceived
}
"""The events that a rule can react to, by the names that rules call them."""
FREE_TEXT: Final = frozenset(
    {"text", "heard", "query", "message", "facts", "reason", "information", "strategy", "attention", "name", "key"}
)
"""Fields of events that hold what people said or anybody wrote."""

RESPONSE_STAGES: Final = frozenset({"response", "generation", "model", "llm"})
"""The `stage` of an ErrorOccurred when it was the model's turn that failed."""
REFUSAL_CODES: Final = frozenset({"refusal", "refused", "content_filter", "safety", "prohibited_content", "blocklist"})
"""The `code` of an ErrorOccurred when the provider would not answer."""


def _pairs(first: str, second: str) -> list[str]:
    """Each of `first` before each of `second`; commas divide them."""
    return [f"{one} {other}" for one in first.split(", ") for other in second.split(", ")]


REFUSALS: Final = (
    *_pairs(
        "i can't, i cannot, i can not, i won't, i won't be able to, i'm unable to, i am unable to, i'm not able to,"
        " i'm not allowed to",
        "help with, help you with, assist, comply, discuss, provide, share, answer, do that, fulfill, fulfil,"
        " engage in",
    ),
    *("i must decline", "i have to decline"),
)
"""How a refusal begins. To have looked for something and found nothing is none: "I can't find any".

In 76,802 messages of MultiWOZ's clerks, TIAGE and GoEmotions, where nobody is expected to refuse, 3 begin so.
"""
CORRECTIONS: Final = (
    *("i meant", "i misspoke", "my mistake", "scratch that", "let me correct", "correction", "did i say"),
    *("i didn't say", "i didn't mean", "i didn't ask", "i never said", "i never asked"),
    *("as i said", "i already said", "i already told you", "no i said", "sorry i need"),
    *_pairs(
        "not what i, that's not what i, that is not what i, that isn't what i, that wasn't what i",
        "said, mean, meant, asked, want, wanted, need, ordered",
    ),
    *_pairs("that's not, that is not, that isn't", "right, correct"),
    *_pairs("that's, that is", "wrong, incorrect"),
    *("you misunderstood", "you misheard", "you got that wrong", "you got it wrong", "you've got it wrong"),
    *_pairs("actually", "it's, it is, i said, i wanted, make it, make that"),
    *_pairs("no, sorry", "it's actually, it is actually"),
)
"""How a correction begins. A change of mind is none: "Actually, I don't need a room".

The list is for precision: of the 14,737 turns of MultiWOZ's users 23 begin so, and 21 of these correct something (read
by eye); of the 54,263 comments of GoEmotions 66, and 58 of these. Who only says it anew ("on Tuesday") is not noticed.
"""

_BEFORE_REFUSALS: Final = (
    "i'm i am so very really sorry but unfortunately apologize apologise afraid oh well no however as an ai assistant"
)
_BEFORE_CORRECTIONS: Final = "no nope sorry wait oh oops um uh hm well but hey what i'm i am so very"
_NO_CORRECTIONS: Final = (
    *("i meant what", "i meant it", "i meant to ask", "i meant to tell", "i meant to thank"),
    *("i didn't mean to", "not what i wanted to"),
)
_FOLLOWED: Final = "followed"
_TOPICS: Final = 64
"""What is remembered about topics, of those that the conversation came to last."""
_NAME_CHARACTERS: Final = 60
_BEGINNING: Final = 24
"""Words of a message; what comes later does not begin it."""


def _beginning(phrases: Iterable[str], before: str, but: Iterable[str] = ()) -> re.Pattern[str]:
    """Matches joined words that begin with one of `phrases`, and with none of `but`, after words of `before`."""
    openers, excluded = "|".join(before.split()), "|".join(but) or "(?!)"
    return re.compile(rf"(?:(?:{openers}) )*?(?!(?:{excluded})\b)({'|'.join(phrases)})(?: |$)")


_REFUSAL: Final = _beginning(REFUSALS, _BEFORE_REFUSALS)
_CORRECTION: Final = _beginning(CORRECTIONS, _BEFORE_CORRECTIONS, _NO_CORRECTIONS)
_SAID_WRONG: Final[Mapping[str, tuple[Wrong, re.Pattern[str]]]] = {
    USER: ("user_correction", _CORRECTION),
    ASSISTANT: ("refused_response", _REFUSAL),
}
_WORDS: Final = frozenset(
    " ".join((*REFUSALS, *CORRECTIONS, *_NO_CORRECTIONS, _BEFORE_REFUSALS, _BEFORE_CORRECTIONS)).split()
)
_TOLD_BY: Final[Mapping[Wrong, set[type]]] = {
    "error": {ErrorOccurred, ToolCallEnded},
    "failed_response": {ErrorOccurred},
    "refused_response": {ErrorOccurred, MessageCompleted},
    "user_correction": {MessageCompleted},
}


@dataclass(frozen=True, slots=True)
class OnDemand:
    """Fires when context is asked for; with `query`, when the request's query contains one of these phrases."""

    query: tuple[str, ...] = ()

    listens: ClassVar[frozenset[type]] = frozenset({ContextRequested})
    vocabulary: frozenset[str] = field(init=False, repr=False)
    _phrases: PhraseIndex = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        must_have_words(self.query)
        object.__setattr__(self, "vocabulary", frozenset(self.query))
        object.__setattr__(self, "_phrases", PhraseIndex(self.query))

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:  # noqa: ARG002
        """The request, and what it asks."""
        event = moment.event
        if not isinstance(event, ContextRequested):
            return None
        if self.query and not self._phrases.found_in(words_of(event.query)):
            return None
        return {"request_id": event.request_id, "query": event.query}


@dataclass(frozen=True, slots=True)
class Reactive:
    """Fires on each event of one kind, by its name in `EVENT_NAMES`; with `where`, if its fields have these values."""

    on: str
    where: Mapping[str, str] = field(default_factory=dict)

    listens: frozenset[type] = field(init=False, repr=False)
    _wanted: Mapping[str, Any] = field(init=False, repr=False)
    _shown: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.on == "audio_chunk_received":
            raise ValueError("audio_chunk_received comes many times a second: too often to react to")
        _must_be_known(self.on, EVENT_NAMES, "event")
        kind = EVENT_NAMES[self.on]
        hints = get_type_hints(kind)
        for name in self.where:
            _must_be_known(name, kind.__struct_fields__, f"field of {self.on}")
        own = (name for name in kind.__struct_fields__ if name not in ConversationEvent.__struct_fields__)
        object.__setattr__(self, "listens", frozenset({kind}))
        object.__setattr__(self, "_wanted", {name: _read(name, hints[name], text) for name, text in self.where.items()})
        object.__setattr__(self, "_shown", tuple(name for name in own if name not in FREE_TEXT))

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:  # noqa: ARG002
        """The event's name and its own fields, without free text."""
        event = moment.event
        if type(event) not in self.listens or any(getattr(event, name) != is_ for name, is_ in self._wanted.items()):
            return None
        shown = ((name, getattr(event, name)) for name in self._shown)
        return {"event": self.on} | {name: _written(value) for name, value in shown if value is not None}


@dataclass(frozen=True, slots=True)
class Corrective:
    """Fires after something has gone wrong.

    error              an ErrorOccurred, or a tool call that failed
    failed_response    an ErrorOccurred of a stage in `RESPONSE_STAGES`
    refused_response   an ErrorOccurred with a code in `REFUSAL_CODES`, or a message of the assistant that begins
                       with one of `REFUSALS`
    user_correction    a message of the user that begins with one of `CORRECTIONS`
    """

    of: tuple[Wrong, ...]

    listens: frozenset[type] = field(init=False, repr=False)
    phrases: frozenset[str] = field(init=False, repr=False)
    vocabulary: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.of:
            raise ValueError("`of` must name at least one thing that goes wrong")
        listens = frozenset[type]().union(*(_TOLD_BY[wrong] for wrong in self.of))
        only_said = listens == {MessageCompleted}  # phrases would keep any other event away
        phrases = frozenset(" ".join(phrase.split()[:2]) for phrase in CORRECTIONS if only_said)
        object.__setattr__(self, "listens", listens)
        object.__setattr__(self, "phrases", phrases)
        object.__setattr__(self, "vocabulary", phrases | (_WORDS if MessageCompleted in listens else frozenset()))

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:  # noqa: ARG002
        """What has gone wrong (`after`), and how that was told."""
        kinds, told = _went_wrong(moment)
        after = next((wrong for wrong in kinds if wrong in self.of), None)
        return None if after is None else {"after": after} | told


def _went_wrong(moment: Moment) -> tuple[tuple[Wrong, ...], Evidence]:
    """What has gone wrong by this event, the narrowest name first, and how that was told."""
    match moment.event:
        case ErrorOccurred(stage=stage, code=code):
            told = {"stage": stage, "code": code}
            if code.casefold() in REFUSAL_CODES:
                return ("refused_response", "error"), told
            if stage.casefold() in RESPONSE_STAGES:
                return ("failed_response", "error"), told
            return ("error",), told
        case ToolCallEnded(failed=True, tool=tool):
            return ("error",), {"tool": tool}
        case MessageCompleted(speaker=speaker) if speaker in _SAID_WRONG:
            wrong, begins = _SAID_WRONG[speaker]
            found = begins.match(" ".join(moment.words[:_BEGINNING]))
            return ((wrong,), {"phrase": found[1]}) if found else ((), {})
    return (), {}


@dataclass(frozen=True, slots=True)
class Predictive:
    """Fires before an anticipated need: somebody says one of `given`, and nobody has said one of `then` yet.

    `chance` (to 1) says how often one follows: the author of the rule knows. *Yet* is in the last 20 messages.
    """

    given: tuple[str, ...]
    then: tuple[str, ...]
    chance: float

    listens: ClassVar[frozenset[type]] = frozenset({MessageCompleted})
    phrases: frozenset[str] = field(init=False, repr=False)
    vocabulary: frozenset[str] = field(init=False, repr=False)
    _then: PhraseIndex = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.given or not self.then:
            raise ValueError("given and then must name at least one word or phrase each")
        if not 0 < self.chance <= 1:
            raise ValueError("chance is above 0, and at most 1")
        must_have_words(self.given + self.then)
        object.__setattr__(self, "phrases", frozenset(self.given))
        object.__setattr__(self, "vocabulary", frozenset(self.given + self.then))
        object.__setattr__(self, "_then", PhraseIndex(self.then))

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:  # noqa: ARG002
        """What was said, what is expected, and how often it follows."""
        given = self.phrases & moment.phrases
        if not given or self._then.found_in(moment.words):
            return None
        if any(self._then.found_in(words_of(line.text)) for line in moment.session.history):
            return None
        return {"given": ", ".join(sorted(given)), "expected": ", ".join(self.then), "chance": f"{self.chance:.2f}"}


@dataclass(frozen=True, slots=True)
class PredictiveTopic:
    """Fires when the conversation comes to a topic that one of `then` has usually followed in this session so far.

    Topics are what the VoiceEngine's own detector calls them (TopicChanged): ours has no names that last, and cannot
    tell a return from a new topic well enough to learn from. *Usually* is with a chance of `at_least` (to 1), by
    Laplace's rule of succession, known from `seen` times or more.
    """

    then: tuple[str, ...]
    at_least: float = 0.6
    seen: int = 3

    listens: ClassVar[frozenset[type]] = frozenset({TopicChanged})
    _then: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.then:
            raise ValueError("then must name at least one topic")
        must_have_words(self.then)
        if not 0 < self.at_least < 1:
            raise ValueError("at_least is above 0, and below 1: nothing is learned for certain")
        if self.seen < 1:
            raise ValueError("seen must be at least 1")
        object.__setattr__(self, "_then", frozenset(map(_named, self.then)))

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:
        """The topic, what is expected, its chance, and from how many times that is known."""
        if not isinstance(moment.event, TopicChanged):
            return None
        topic = _named(moment.event.topic)
        left = next(reversed(memory.parts), None)
        if left == topic:
            return None
        if left is not None:
            memory.parts[left].counter += 1
            if topic in self._then:
                memory.parts[left].parts.setdefault(_FOLLOWED, Memory()).counter += 1
        now = memory.parts[topic] = memory.parts.pop(topic, Memory())
        if len(memory.parts) > _TOPICS:
            del memory.parts[next(iter(memory.parts))]
        followed = now.parts[_FOLLOWED].counter if _FOLLOWED in now.parts else 0
        chance = (followed + 1) / (now.counter + 2)
        if now.counter < self.seen or chance < self.at_least:
            return None
        expected = ", ".join(self.then)
        return {"topic": topic, "expected": expected, "chance": f"{chance:.2f}", "seen": str(now.counter)}


def _named(topic: str) -> str:
    """The name of a topic, however its words are written."""
    return " ".join(words_of(topic))[:_NAME_CHARACTERS]


def _must_be_known(name: str, known: Collection[str], what: str) -> None:
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise ValueError(f"{name} is no {what}; {hint}")


def _read(name: str, hint: Any, text: str) -> Any:
    """The value of a field that `text` stands for."""
    try:
        return msgspec.convert(text, hint, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"{name} is never {text!r}: {error}") from None


def _written(value: Any) -> str:
    """The value of a field as a rules file writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
