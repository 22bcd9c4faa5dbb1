"""Why a strategy does not fire, in words and figures: for whoever asks why nothing was injected."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol, get_args, runtime_checkable

from contextengine.engine import clock
from contextengine.engine.phase import phase_of
from contextengine.engine.strategies import compose
from contextengine.engine.strategies.semantic import ContextShift, Emotion, EmotionShift, Keyword, Topic
from contextengine.engine.strategies.state_based import Phase, Silence, SystemIs, SystemState, UserIs, UserState
from contextengine.engine.strategies.strategy import Evidence, Holding, Strategy, Timed
from contextengine.engine.strategies.temporal import EveryMessages
from contextengine.engine.triggers.language import shipped
from contextengine.schemas.events import EmotionShifted, TopicChanged
from contextengine.schemas.session import Memory

if TYPE_CHECKING:
    from contextengine.engine.moment import Moment
    from contextengine.schemas.session import Session

SHOWN_NAMES: Final = 5


@runtime_checkable
class Explains(Protocol):
    """A strategy that says itself why it does not fire. It is asked only when a person wants to know."""

    def why_not(self, moment: Moment, memory: Memory) -> str:
        """What is missing in this moment, with the figures; `memory` is a copy of what the strategy remembers."""


def why_not(strategy: Strategy, moment: Moment, memory: Memory) -> str:
    """Why there is no evidence in this moment, if there is none. Never raises: a strategy may be anybody's."""
    try:
        if type(moment.event) in strategy.listens and strategy.evidence(moment, copy.deepcopy(memory)) is not None:
            return "its strategy says yes"
        return _why_not(strategy, moment, copy.deepcopy(memory))
    except Exception as error:  # noqa: BLE001 - as above
        return f"no evidence; it cannot say why: {type(error).__name__}: {error}"


def in_call(elapsed_ms: int) -> str:
    """A time since the conversation's start, for people: minutes, seconds and tenths."""
    return f"{elapsed_ms // 60_000:02}:{elapsed_ms % 60_000 // 1_000:02}.{elapsed_ms % 1_000 // 100}"


def some(names: Iterable[str]) -> str:
    """Names for people: the first few of them."""
    known = sorted(names)
    more = len(known) - SHOWN_NAMES
    return ", ".join(known[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def seen(evidence: Evidence) -> str:
    """Evidence for people."""
    return ", ".join(f"{name} {found}" for name, found in evidence.items())


def _why_not(strategy: Strategy, moment: Moment, memory: Memory) -> str:  # noqa: C901, PLR0911, PLR0912 - a line for each
    session, noticed = moment.session, moment.noticed
    wanted, speaker = getattr(strategy, "speaker", None), getattr(moment.event, "speaker", None)
    if isinstance(strategy, Explains):
        return strategy.why_not(moment, memory)
    if None not in (wanted, speaker) and wanted != speaker:
        return f"it listens to the {wanted}, this is the {speaker}"
    if isinstance(strategy, Holding) and (so := strategy.holds(moment)) is not None:
        return f"it has been so before: {seen(so)}"
    match strategy:
        case compose._Composed():  # noqa: SLF001
            return "; ".join([*_parts(strategy, moment, memory), *_together(strategy, session, memory)])
        case compose.Not(of=part):
            return f"{type(part).__name__} says yes"
        case Keyword(any_of=phrases):
            return f"the message has none of its phrases: {some(phrases)}"
        case Emotion(any_of=emotions):
            return f"it waits for {some(emotions)}, this is {_felt(moment)}"
        case EmotionShift(rise=rise) if noticed is not None and (mood := noticed.mood) is not None:
            risen = {"negative": mood.negative, mood.emotion: mood.rise}.get(strategy.to, 0)
            return f"{strategy.to} has risen by {risen / 1_000:.2f}, it waits for {rise:.2f}, once"
        case Topic() | ContextShift() if isinstance(moment.event, TopicChanged):
            return f"the topic is {moment.event.topic!r}"
        case Topic() | ContextShift() if noticed is not None and (change := noticed.topics.get(strategy.profile)):
            return f"the topic is {change.topic.label!r}, by a chance of {change.chance / 1_000:.2f} a new one"
        case EveryMessages(count=count):
            return f"message {session.messages}, next at {(memory.counter + 1) * count}"
        case Silence(lasts_ms=lasts_ms):
            quiet_ms = 0 if session.quiet_since_ms is None else moment.now_ms - session.quiet_since_ms
            return f"quiet for {quiet_ms * session.time_scale / 1_000:.1f} of {lasts_ms / 1_000:.1f} s"
        case Phase():
            return f"the phase is {phase_of(session)}"
        case UserState() | SystemState():
            states = get_args(UserIs if isinstance(strategy, UserState) else SystemIs)
            found = (replace(strategy, becomes=state).holds(moment) for state in states)
            return next(seen(state) for state in found if state is not None)
        case Timed():
            due_ms = strategy.due_ms(session, memory)
            return "it waits for no time" if due_ms is None else f"its next time is {_at(due_ms, session)}"
        case _:
            return f"no evidence for {strategy}"


def _felt(moment: Moment) -> str:
    """The emotion that was heard, or is in the message."""
    if isinstance(moment.event, EmotionShifted):
        return f"{moment.event.emotion} {moment.event.intensity:.2f}"
    if moment.feeling is not None or moment.noticed is None:
        return moment.feeling.emotion if moment.feeling is not None else "neutral"
    felt = shipped().felt(moment.noticed.reading)
    return f"{felt.emotion} {felt.intensity / 1_000:.2f}"


def _parts(strategy: compose._Composed, moment: Moment, memory: Memory) -> Iterable[str]:
    """What each part of a strategy says."""
    for place, part in strategy._parts().items():  # noqa: SLF001
        name, own = type(part).__name__, memory.parts.get(place) or Memory()
        listens = type(moment.event) in part.listens
        tells = isinstance(part, Holding) and isinstance(strategy, compose.All)
        if listens and part.evidence(moment, copy.deepcopy(own)) is not None:
            yield f"{name} says yes"
        elif isinstance(part, Holding) and tells and part.holds(moment) is not None:
            yield f"{name} holds"
        elif listens or tells:
            yield f"{name} says no: {_why_not(part, moment, own)}"
        else:
            yield f"{name} does not listen to {type(moment.event).__name__}"


def _together(strategy: compose._Composed, session: Session, memory: Memory) -> Iterable[str]:
    """What a strategy remembers besides its parts."""
    since = _at(memory.at_ms, session)
    match strategy:
        case compose.AtMost(times=times) if memory.at_ms:
            yield f"it has fired {memory.counter} of {times} times since {since}"
        case compose.CoolDown(pause_ms=pause_ms) if memory.at_ms:
            yield f"it fired at {since}, and rests for {pause_ms / 1_000:g} s"
        case compose.Hysteresis() if memory.counter:
            yield "it has fired, and waits for its `off`"
        case compose.Within(span_ms=span_ms):
            first = f"its `first` fired at {since}" if memory.at_ms else "its `first` has not fired"
            yield f"{first}; `then` has {span_ms / 1_000:g} s"
        case compose.After(delay_ms=delay_ms) if memory.at_ms:
            yield f"its `of` fired at {since}, and it waits for {delay_ms / 1_000:g} s"


def _at(broker_ms: int, session: Session) -> str:
    return in_call(clock.elapsed_ms(session, broker_ms))
