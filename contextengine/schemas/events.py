"""What happens in a conversation, and what answers the engine: every record of the events topic.

    ConversationEvent       published by a VoiceEngine: who said what, who is speaking, what the provider does
    Tick                    a timer of a session has fired: time is an event too, so that a replay is exact
    AttemptReported         what became of an attempt to deliver an injection
    RetryDue                a delay line has held a retry for its length
    InjectionRedriven       somebody sends a dead injection back
    PartitionAssigned       a worker has taken over a partition
    RulesChanged            from here on a partition's events are judged by these rules
    SwitchesChanged         from here on these rules and providers are switched off

All times are milliseconds of Unix time. A conversation event's `at_ms` is its producer's clock; the engine shifts it by
an offset learned at the session's start. Events are trees, so the garbage collector need not look at them (`gc=False`).
"""

from __future__ import annotations

from typing import Final, TypeAlias

from msgspec import Struct

from contextengine.schemas.context import Criticality, Facts, Respond, Trust
from contextengine.schemas.injection import AttemptVerdict, Injection
from contextengine.schemas.session import Place

USER = "user"
ASSISTANT = "assistant"
ATTACH = "attach"
HAND_OFF = "hand_off"
EVERYTHING = "everything"


class ConversationEvent(Struct, frozen=True, kw_only=True, gc=False):
    """What every event of a conversation carries.

    `producer`, `incarnation` and `seq` identify the record: a producer counts its own records of a session from 0, and
    a restarted producer is a new incarnation. `at_ms` is when it happened; `channel` tells apart the streams of a
    multi-modal session.
    """

    session_id: str
    producer: str
    incarnation: int
    seq: int
    at_ms: int
    channel: str = "audio"

    @property
    def position(self) -> str:
        """The event's place in its session's stream, the same for every copy of the record."""
        return f"{self.producer}/{self.incarnation}/{self.seq}"


class SessionStarted(ConversationEvent, frozen=True, kw_only=True):
    """A conversation begins; names the provider's session that contexts go into, and how they get there.

    `route` is ATTACH (the delivery consumer joins the provider's session by `call_id`) or HAND_OFF (the
    VoiceEngine delivers by itself). `time_scale` multiplies elapsed time: 1 for a live call, 10 for a rehearsal at ten
    times the speed. `facts` are what is known about this session from the start; templates see them.
    """

    provider: str
    model: str
    route: str = ATTACH
    call_id: str | None = None
    user_id: str | None = None
    modality: str = "voice"
    time_scale: float = 1.0
    facts: dict[str, str] = {}


class SessionEnded(ConversationEvent, frozen=True, kw_only=True):
    """The conversation is over: what still waits is cancelled."""

    reason: str = "hangup"


class StreamStateChanged(ConversationEvent, frozen=True, kw_only=True):
    """The media stream paused, resumed, or its figures changed."""

    state: str
    buffer_ms: int | None = None
    latency_ms: int | None = None


class TurnStarted(ConversationEvent, frozen=True, kw_only=True):
    """Somebody starts to speak; `at_ms` is the edge in the speech, `known_ms` when the detector knew."""

    speaker: str
    known_ms: int


class TurnEnded(ConversationEvent, frozen=True, kw_only=True):
    """Somebody has finished; `at_ms` is the edge in the speech, `known_ms` when the detector knew."""

    speaker: str
    known_ms: int


class AudioChunkReceived(ConversationEvent, frozen=True, kw_only=True):
    """Audio went by: figures and a reference, never the audio. A publisher folds neighbours into one (`chunks`)."""

    speaker: str
    duration_ms: int
    energy: float = 0.0
    chunks: int = 1
    reference: str = ""


class MessageCompleted(ConversationEvent, frozen=True, kw_only=True):
    """What somebody said in a turn, or a message of a chat."""

    speaker: str
    text: str
    message_id: str = ""


class SilenceDetected(ConversationEvent, frozen=True, kw_only=True):
    """Nobody has spoken since `at_ms`; `known_ms` is when that became known."""

    known_ms: int


class TopicChanged(ConversationEvent, frozen=True, kw_only=True):
    """The VoiceEngine's own detector saw a new topic."""

    topic: str
    confidence: float = 1.0


class EmotionShifted(ConversationEvent, frozen=True, kw_only=True):
    """The VoiceEngine's own detector (of voice, of a face) heard an emotion."""

    speaker: str
    emotion: str
    intensity: float = 1.0


class GenerationStarted(ConversationEvent, frozen=True, kw_only=True):
    """The model was asked for its next turn: what is not in its context by now is too late for it."""

    response_id: str


class ResponseStarted(ConversationEvent, frozen=True, kw_only=True):
    """The first output of the model's turn is there."""

    response_id: str


class ResponseCompleted(ConversationEvent, frozen=True, kw_only=True):
    """The model has finished its turn; its playback may go on."""

    response_id: str


class ResponseInterrupted(ConversationEvent, frozen=True, kw_only=True):
    """The model's turn was cut off: what was heard of it, and how far it was played."""

    response_id: str
    heard: str = ""
    played_ms: int = 0


class PlaybackStarted(ConversationEvent, frozen=True, kw_only=True):
    """The person begins to hear the model's turn."""

    response_id: str


class PlaybackEnded(ConversationEvent, frozen=True, kw_only=True):
    """The person has heard the model's turn: silence counts from here."""

    response_id: str


class ToolCallStarted(ConversationEvent, frozen=True, kw_only=True):
    """The model waits for a tool: this is no silence."""

    tool: str
    tool_call_id: str


class ToolCallEnded(ConversationEvent, frozen=True, kw_only=True):
    """The tool answered, or failed."""

    tool: str
    tool_call_id: str
    failed: bool = False


class UserMuted(ConversationEvent, frozen=True, kw_only=True):
    """The person switched the microphone off: this is no silence."""


class UserUnmuted(ConversationEvent, frozen=True, kw_only=True):
    """The person switched the microphone on again."""


class AgentHandover(ConversationEvent, frozen=True, kw_only=True):
    """Another agent takes over the conversation, with a context of its own."""

    agent: str


class ContextCompacted(ConversationEvent, frozen=True, kw_only=True):
    """The model's context was summarised or cut: what was injected may be gone."""


class ProviderReconnected(ConversationEvent, frozen=True, kw_only=True):
    """The provider's session was opened anew: what was injected is gone."""


class ContextRequested(ConversationEvent, frozen=True, kw_only=True):
    """Somebody asks for context explicitly."""

    request_id: str
    query: str = ""


class ContextPushed(ConversationEvent, frozen=True, kw_only=True):
    """Somebody puts a context into the session by hand: it is filtered, placed and delivered as a rule's.

    `name` is what it is called in explanations (the producer by default), `key` its slot (its name by default),
    `ttl_ms` the time within which it must be in, counted from `at_ms`. Untrusted text, unless its producer says more.
    """

    information: Facts = {}
    strategy: Facts = {}
    attention: Facts = {}
    name: str = ""
    key: str = ""
    ttl_ms: int = 60_000
    criticality: Criticality = Criticality.HELPFUL
    priority: int = 0
    place: Place = Place.NOW
    fallback_ms: int | None = None
    respond: Respond = Respond.NEVER
    trust: Trust = Trust.UNTRUSTED


class PendingCancelled(ConversationEvent, frozen=True, kw_only=True):
    """Somebody takes back what has not reached the model: of `rule` (`pushed:NAME`), of the slot `key`, or everything.

    Each ends as cancelled; one that is with its provider already ends as its provider says.
    """

    rule: str = ""
    key: str = ""
    reason: str = ""


class ErrorOccurred(ConversationEvent, frozen=True, kw_only=True):
    """Something in the conversation's own machinery went wrong."""

    stage: str
    code: str
    message: str = ""


class Tick(Struct, frozen=True, kw_only=True, gc=False):
    """A timer of a session has fired; one that is appended before `due_ms` is ignored and armed again."""

    session_id: str
    timer: str
    due_ms: int


class AttemptReported(Struct, frozen=True, kw_only=True, gc=False):
    """What became of an attempt; acts only on an attempt that is in flight, and once."""

    session_id: str
    verdict: AttemptVerdict


class RetryDue(Struct, frozen=True, kw_only=True, gc=False):
    """A delay line has held this retry for the line's length; the session knows whether that was enough."""

    session_id: str
    injection_id: str
    attempt: int


class InjectionRedriven(Struct, frozen=True, kw_only=True, gc=False):
    """Somebody sends a dead injection back, for the `number`th time: a new injection for a session that goes on."""

    session_id: str
    injection: Injection
    number: int


class PartitionAssigned(Struct, frozen=True, kw_only=True):
    """A worker has taken over the partition: its append time is the base of the worker's timers.

    `engine` is the version of the engine that judges from here on.
    """

    worker: str
    generation: int
    engine: str = ""


class RulesChanged(Struct, frozen=True, kw_only=True):
    """From this record on the partition's events are judged by this rule set; a lower version is ignored."""

    version: int
    rules_hash: str


class SwitchesChanged(Struct, frozen=True, kw_only=True):
    """From this record on the partition sends nothing of what is `off`; a lower version is ignored.

    `rule:NAME`, `provider:NAME`, or EVERYTHING.
    """

    version: int
    off: list[str]


SessionFeedback: TypeAlias = Tick | AttemptReported | RetryDue | InjectionRedriven
PartitionEvent: TypeAlias = PartitionAssigned | RulesChanged | SwitchesChanged
AnyEvent: TypeAlias = ConversationEvent | SessionFeedback | PartitionEvent

PARTITION_EVENTS: Final = (PartitionAssigned, RulesChanged, SwitchesChanged)
"""The same for `isinstance`, to which a union costs as much as a rule."""

CONVERSATION_EVENTS: tuple[type[ConversationEvent], ...] = (
    SessionStarted,
    SessionEnded,
    StreamStateChanged,
    TurnStarted,
    TurnEnded,
    AudioChunkReceived,
    MessageCompleted,
    SilenceDetected,
    TopicChanged,
    EmotionShifted,
    GenerationStarted,
    ResponseStarted,
    ResponseCompleted,
    ResponseInterrupted,
    PlaybackStarted,
    PlaybackEnded,
    ToolCallStarted,
    ToolCallEnded,
    UserMuted,
    UserUnmuted,
    AgentHandover,
    ContextCompacted,
    ProviderReconnected,
    ContextRequested,
    ContextPushed,
    PendingCancelled,
    ErrorOccurred,
)
