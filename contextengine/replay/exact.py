"""A recording through `decide` again: the same events must lead to the same outputs, record for record.

Replay is open loop: ticks and answers are those of the log. It stops at the first divergence, because what follows
from a wrong decision says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import msgspec
from msgspec import Struct

from contextengine import __version__
from contextengine.errors import EngineDefect, UndecodableRecord
from contextengine.replay.difference import ABSENT, Difference, first_difference
from contextengine.replay.evidence import name_of
from contextengine.replay.partition import PartitionReplay, RuleSets, outputs_of
from contextengine.replay.recording import LogRecord, Output, Recording
from contextengine.schemas.codec import SINGLE_OBJECT
from contextengine.schemas.decision import DecisionMade
from contextengine.schemas.events import PARTITION_EVENTS, PartitionAssigned
from contextengine.schemas.injection import InjectionAttempt, InjectionCancelled, InjectionResult, RetryRequested
from contextengine.schemas.session import Partition, Session, dump_state, load_state
from contextengine.topics.intake import event_in

if TYPE_CHECKING:
    from contextengine.engine.decision import Decision
    from contextengine.schemas.events import AnyEvent


S = TypeVar("S", Session, Partition)


def _without_digest(made: DecisionMade | None) -> DecisionMade | None:
    return None if made is None else msgspec.structs.replace(made, digest="")


def _whole(output: Output | None) -> Output | None:
    return output


COMPARED: Final[tuple[tuple[type[Output], Callable[[Any], Output | None]], ...]] = (
    (DecisionMade, _without_digest),
    (InjectionAttempt, _whole),
    (InjectionCancelled, _whole),
    (RetryRequested, _whole),
    (InjectionResult, _whole),
    (DecisionMade, _whole),
)
"""In which order a divergence is looked for: why something was decided tells most, that its digest differs least."""


class Divergence(Struct, frozen=True, kw_only=True):
    """Where a replay leaves its recording: the record, and the first field of what followed that is another.

    An event that the engine fails on is one as well (`what` is "defect"), whatever the recording says followed.
    `position` is the event's (producer, incarnation and seq, or the feedback's own); `what` is the output that differs
    and `rule` its rule, where it has one. `before` is what the recording says, `after` what the replay does.
    """

    partition: int
    offset: int
    session_id: str
    position: str
    event: str
    what: str
    rule: str
    field: str
    before: str
    after: str

    def __str__(self) -> str:
        """The divergence for people."""
        rule = f" of rule {self.rule}" if self.rule else ""
        return (
            f"session {self.session_id}, {self.event} {self.position} (partition {self.partition} offset {self.offset})"
            f": {self.what}{rule} differs in {self.field}\n  recorded: {self.before}\n  replayed: {self.after}"
        )


@dataclass(slots=True)
class Replayed:
    """What came of a replay: how much was the same, up to the first divergence, if there is one."""

    events: int = 0
    sessions: int = 0
    decisions: int = 0
    injections: int = 0
    outcomes: int = 0
    skipped: int = 0
    """Events of sessions that cannot be replayed, because nobody knew their state."""
    divergence: Divergence | None = None


def cautions(recording: Recording) -> list[str]:
    """What may make this engine decide otherwise than the one that is recorded, and what is left out."""
    header, engines = recording.header, {recording.header.engine}
    engines |= {of.event.engine for of in recording.records if isinstance(of.event, PartitionAssigned)}
    told = [f"recorded with engine {engine}; this is {__version__}" for engine in sorted(engines - {"", __version__})]
    return told + [f"session {name} is not replayed: {why}" for name, why in header.incomplete.items()]


def replay(recording: Recording) -> Replayed:
    """Judge a recording again, and compare. ConfigurationError when its rules are not in it, or cannot be read."""
    done, sessions = Replayed(), set[str]()
    for of, decision in _judged(recording, done):
        if decision is not None:
            sessions.add(of.event.session_id)  # type: ignore[union-attr]
            done.decisions += decision.explanation is not None
            done.injections += len(decision.accepted)
            done.outcomes += len(decision.results)
        done.divergence = _divergence(of, decision, recording.header.partitions)
        if done.divergence is not None:
            break
    done.sessions = len(sessions)
    return done


def accepted(recording: Recording) -> Recording:
    """The recording with what this engine makes of it in place of what it says followed.

    Raises EngineDefect where the engine fails: that must not be what follows from now on.
    """
    records = []
    for of, decision in _judged(recording, Replayed()):
        if decision is not None and decision.defect:
            raise EngineDefect(str(_defect(of, decision)))
        records.append(msgspec.structs.replace(of, outputs=() if decision is None else tuple(outputs_of(decision))))
    header = msgspec.structs.replace(recording.header, engine=__version__)
    return Recording(header, recording.partitions, recording.sessions, records)


def _judged(recording: Recording, done: Replayed) -> Iterable[tuple[LogRecord, Decision | None]]:
    """Each record, and what follows from it now."""
    rule_sets = RuleSets(recording.header.rules)
    sessions = {name: _copy(session) for name, session in recording.sessions.items()}
    replays: dict[int, PartitionReplay] = {}
    for of in recording.records:
        replay = replays.get(of.partition)
        if replay is None:
            partition = recording.partitions.get(of.partition) or Partition(of.partition)
            replay = replays[of.partition] = PartitionReplay(_copy(partition), sessions, rule_sets)
        event = of.event
        if event is not None and not isinstance(event, PARTITION_EVENTS):
            if event.session_id in recording.header.incomplete:
                done.skipped += 1
                continue
            done.events += 1
        yield of, replay.judge(of.offset, of.appended_ms, event)


def _copy(state: S) -> S:
    return cast("S", load_state(dump_state(state)))


def _divergence(of: LogRecord, decision: Decision | None, partitions: int) -> Divergence | None:
    if of.event is None:
        return _decodable(of, partitions)
    if decision is not None and decision.defect:
        return _defect(of, decision)
    now = () if decision is None else tuple(outputs_of(decision))
    if of.outputs == now:
        return None
    for kind, reveals in COMPARED:
        pairs = zip_longest(*([one for one in outputs if isinstance(one, kind)] for outputs in (of.outputs, now)))
        for was, is_now in pairs:
            difference = first_difference(reveals(was), reveals(is_now))
            if difference is not None:
                return _told(of, decision, was, is_now, difference)
    return None


def _told(
    of: LogRecord, decision: Decision | None, was: Output | None, is_now: Output | None, difference: Difference
) -> Divergence:
    what, session_id, _ = name_of(cast("Output", was or is_now))
    return Divergence(
        partition=of.partition,
        offset=of.offset,
        session_id=session_id,
        position=decision.position if decision is not None else getattr(of.event, "position", ""),
        event=type(of.event).__name__,
        what=what,
        rule=_rule(was, difference.field) or _rule(is_now, difference.field),
        field=difference.field or "all of it",
        before=difference.before,
        after=difference.after,
    )


def _rule(output: Output | None, field: str) -> str:
    """The rule that a field of an output speaks of, as far as the output knows it."""
    match output:
        case DecisionMade():
            name, _, rest = field.partition("[")
            named: list[Any] = getattr(output, name or "fired", None) or []
            at = rest.partition("]")[0] or "0"
            return str(getattr(named[int(at)], "rule", "")) if isinstance(named, list) and int(at) < len(named) else ""
        case InjectionAttempt():
            return output.injection.rule
        case InjectionResult():
            return output.rule
        case _:
            return ""


def _defect(of: LogRecord, decision: Decision) -> Divergence:
    """The engine itself fails on the event."""
    return _instead(of, of.event, decision.position, "defect", ABSENT, decision.defect)


def _decodable(of: LogRecord, partitions: int) -> Divergence | None:
    """A record that was no event, and is one now."""
    try:
        event = event_in(of, of.partition, partitions, SINGLE_OBJECT.decode)
    except UndecodableRecord:
        return None
    name = f"a {type(event).__name__}"
    return _instead(of, event, getattr(event, "position", ""), "record", "no event", name)


def _instead(of: LogRecord, event: AnyEvent | None, position: str, what: str, before: str, after: str) -> Divergence:
    """Something as a whole that the recording does not say."""
    return Divergence(
        partition=of.partition,
        offset=of.offset,
        session_id=getattr(event, "session_id", ""),
        position=position,
        event=type(event).__name__,
        what=what,
        rule="",
        field="all of it",
        before=before,
        after=after,
    )
