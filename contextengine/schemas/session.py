"""What is remembered about a session and about a partition: the values of the sessions table.

The state is JSON, not Avro: it is written by one program and read back by the same one, at every flush, and JSON
encodes an order of magnitude faster. `version` names its shape; `load_state` reads every older one, and `dump_state`
writes the one before as well: while engines of two versions share the partitions, all of them write what all can read.

    1   the first
    2   RuleMemory.when: a rule whose `when` changes begins to count anew. Session.redriven, which this engine writes in
        version 1 too, for otherwise a copy of a redrive would act after a restore; one that knows only that forgets it
    3   RuleMemory.at_ms and parts, for strategies made of strategies; what detectors remember; the stream's figures;
        what is put in again when the model has lost it; what a partition has switched off.
        An engine that knows version 2 leaves these out of what it writes
"""

from __future__ import annotations

import struct
from enum import StrEnum
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from contextengine.errors import UndecodableRecord
from contextengine.schemas.detectors import Moods, Thread
from contextengine.schemas.injection import Confirmation, Injection

STATE_VERSION: Final = 3

STATE_HEADER: Final = struct.Struct(">qi")
"""What a value of the changelog begins with: the last offset that the state has seen, the generation of its writer.

Big endian and never negative: the bytes compare as the numbers do.
"""
TOMBSTONE_HEADER: Final = "cx-version"
"""Where a record without a value has it."""
RESERVED: Final = b"\x00"
"""What the key of a partition's own record begins with, and no session's."""


class Stage(StrEnum):
    """Where an injection is that has not ended: waiting for its moment, with a consumer, or resting before a retry."""

    WAITING = "waiting"
    IN_FLIGHT = "in_flight"
    RESTING = "resting"


class Line(Struct, gc=False):
    """Something that was said."""

    speaker: str
    text: str
    at_ms: int


class SeqWindow(Struct, gc=False):
    """The last 64 positions of one producer's incarnation: bit n of `seen` stands for `highest - n`."""

    highest: int
    seen: int = 1


class Place(StrEnum):
    """The moments of a conversation that a context can wait for."""

    NOW = "now"
    TURN_BOUNDARY = "turn_boundary"
    SILENCE = "silence"


class Placement(Struct, frozen=True):
    """When a context may go in: at `place`, or at the latest at `fallback_ms` (broker time).

    `quiet_ms` is how long a silence must have lasted, in broker time.
    """

    place: Place = Place.NOW
    quiet_ms: int = 0
    fallback_ms: int | None = None


class HeldInjection(Struct):
    """An injection that has not ended.

    `attempt` counts those made; `due_ms` is the end of its rest.

    `called_back` is the outcome that it ends in when its attempt could still be cancelled; `reassert` whether the
    context is put in again when the model has lost it.
    """

    injection: Injection
    placement: Placement
    stage: Stage = Stage.WAITING
    attempt: int = 0
    due_ms: int = 0
    first_failure_ms: int = 0
    last_failure_ms: int = 0
    confirmation: Confirmation = Confirmation.NONE
    failure: str = ""
    called_back: str = ""
    reassert: bool = False


class LiveContext(Struct, omit_defaults=True):
    """What a slot holds in the model's context; the injection itself where it must be put in again when it is lost."""

    injection_id: str
    content_hash: str
    since_ms: int
    injection: Injection | None = None


class Memory(Struct, gc=False, omit_defaults=True):
    """What a strategy remembers about a session: a number, a time, and what its parts remember, by their place."""

    counter: int = 0
    at_ms: int = 0
    parts: dict[str, Memory] = {}


class RuleMemory(Memory, gc=False, omit_defaults=True):
    """What a rule remembers about a session: when it last fired, how often, and its strategy's own.

    `when` is the digest of the strategy that remembers; "" in a state of version 1.
    """

    fired: int = 0
    last_fired_ms: int = 0
    when: str = ""


class Session(Struct, tag="session"):
    """Everything the engine knows about one conversation. Times are broker milliseconds unless said otherwise.

    `redriven` has the ids of the last injections that came back from the dead letters. `threads` are what the rules'
    profiles of `engine.triggers.topic` remember; `emotion_told` says that the VoiceEngine tells emotions itself.
    `closing_at` and `confused_at` are the numbers of the messages that last sounded like that, `trouble_ms` when
    something last went wrong, `latency_ms` and `buffer_ms` the stream's figures.
    """

    session_id: str
    version: int = STATE_VERSION
    offset: int = -1
    started_ms: int | None = None
    ended_ms: int | None = None
    last_event_ms: int = 0
    clock_offset_ms: int = 0
    time_scale: float = 1.0
    user_id: str | None = None
    provider: str = ""
    model: str = ""
    route: str = ""
    call_id: str | None = None
    modality: str = ""
    facts: dict[str, str] = {}
    windows: dict[str, SeqWindow] = {}
    duplicates: int = 0
    stragglers: int = 0
    missing: int = 0
    messages: int = 0
    turns: int = 0
    history: list[Line] = []
    speaking: str | None = None
    generating: bool = False
    playing: bool = False
    tools: int = 0
    muted: bool = False
    quiet_since_ms: int | None = None
    emotion: str = "neutral"
    timers: dict[str, int] = {}
    held: dict[str, HeldInjection] = {}
    live: dict[str, LiveContext] = {}
    rules: dict[str, RuleMemory] = {}
    armed_for: str = ""
    outcomes: dict[str, int] = {}
    digest: str = ""
    redriven: list[str] = []
    threads: dict[str, Thread] = {}
    moods: Moods = msgspec.field(default_factory=Moods)
    emotion_told: bool = False
    closing_at: int = 0
    confused_at: int = 0
    trouble_ms: int | None = None
    latency_ms: int = 0
    buffer_ms: int | None = None


class Partition(Struct, tag="partition"):
    """What a partition of the events topic remembers: the rules in force, the log it belongs to, how far it has come.

    `off` is what is switched off; `now_ms` is the greatest append time so far. Records at or below `floor` have been
    applied for every session.
    """

    number: int
    version: int = STATE_VERSION
    log_id: str = ""
    floor: int = -1
    now_ms: int = 0
    rules_version: int = -1
    rules_hash: str = ""
    switches_version: int = -1
    off: list[str] = []


State: TypeAlias = Session | Partition

_decoder: Final = msgspec.json.Decoder(State)
_encode: Final = msgspec.json.Encoder().encode


def dump_state(state: State, version: int = STATE_VERSION) -> bytes:
    """The bytes of a state, for engines that know the newest version, or only the one before."""
    if version == STATE_VERSION:
        return _encode(state)
    return _encode(msgspec.to_builtins(state) | {"version": version})


def load_state(data: bytes) -> State:
    """The state in these bytes, as of the newest version; UndecodableRecord when they are none, or a newer engine's."""
    try:
        state: State = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise UndecodableRecord(f"state: {error}") from error
    if state.version > STATE_VERSION:
        raise UndecodableRecord(f"state of version {state.version}; this engine reads up to {STATE_VERSION}")
    state.version = STATE_VERSION
    return state
