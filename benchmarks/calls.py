"""What a VoiceEngine publishes about a thousand calls: the events that the product's own worker is measured on."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final

from contextengine.engine.decide import decide
from contextengine.engine.rules import RuleSet
from contextengine.schemas.codec import encode
from contextengine.schemas.events import (
    AttemptReported,
    AudioChunkReceived,
    ConversationEvent,
    GenerationStarted,
    MessageCompleted,
    PlaybackEnded,
    PlaybackStarted,
    ResponseCompleted,
    ResponseStarted,
    SessionStarted,
    TurnEnded,
    TurnStarted,
)
from contextengine.schemas.injection import AttemptVerdict, Confirmation, InjectionAttempt, Verdict
from contextengine.schemas.session import Partition, Session

SESSIONS: Final = 1_000
START_MS: Final = 1_700_000_000_000
SAID: Final = (
    "I would like to book a table for four on Friday evening.",
    "Nothing special, I went for a walk and then read a little.",
    "What time does the train to Cambridge leave in the morning?",
    "My dog was ill last week, but he is fine again.",
    "Thank you, that is all I need for today.",
)
TURNS: Final[Sequence[tuple[type[ConversationEvent], dict[str, Any]]]] = [
    (TurnStarted, {"speaker": "user", "known_ms": 0}),
    *[(AudioChunkReceived, {"speaker": "user", "duration_ms": 200, "energy": 0.4, "chunks": 10})] * 20,
    (TurnEnded, {"speaker": "user", "known_ms": 0}),
    (MessageCompleted, {"speaker": "user"}),
    (GenerationStarted, {"response_id": "r"}),
    (ResponseStarted, {"response_id": "r"}),
    (PlaybackStarted, {"response_id": "r"}),
    (MessageCompleted, {"speaker": "assistant"}),
    (ResponseCompleted, {"response_id": "r"}),
    (PlaybackEnded, {"response_id": "r"}),
]
"""A turn of a person and one of the model: four seconds of folded audio, two messages, seven edges."""


def event_of(session_id: str, seq: int, said: str = "", *, at_ms: int = START_MS) -> ConversationEvent:
    """The event of a call at a place in its stream; `said` is for the messages."""
    common = {"session_id": session_id, "producer": "bench", "incarnation": 1, "seq": seq, "at_ms": at_ms}
    if seq == 0:
        return SessionStarted(**common, provider="nobody", model="none")
    kind, fields = TURNS[(seq - 1) % len(TURNS)]
    return kind(**common, **fields, **({"text": said} if kind is MessageCompleted else {}))


def call_records(count: int, rules: RuleSet) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of `count` records of all calls together, the sessions in turns.

    What `rules` inject is delivered and reported, as it is in a call: a report is an event too.
    """
    sessions = [Session(f"session-{number:08d}") for number in range(SESSIONS)]
    partition, written, now_ms = Partition(0), 0, START_MS
    for seq in itertools.count():
        for number, session in enumerate(sessions):
            key = session.session_id.encode()
            now_ms += number % 50 == 0
            coming: deque[Any] = deque([event_of(session.session_id, seq, SAID[(seq + number) % len(SAID)])])
            while coming:
                yield key, encode(coming[0])
                written += 1
                if written == count:
                    return
                coming.extend(map(_report, decide(session, partition, coming.popleft(), now_ms, rules).attempts))


def _report(attempt: InjectionAttempt) -> AttemptReported:
    verdict = AttemptVerdict(
        session_id=attempt.session_id,
        injection_id=attempt.injection.injection_id,
        attempt=attempt.attempt,
        verdict=Verdict.DELIVERED,
        confirmation=Confirmation.IN_CONTEXT,
        provider=attempt.destination.provider,
    )
    return AttemptReported(session_id=attempt.session_id, verdict=verdict)
