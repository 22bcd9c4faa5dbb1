"""Strategies made of strategies.

A part is asked about the events that it listens to, and remembers for itself. Of a part that only tells how things are
(`Holding`), the others decide when.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Final

from contextengine.engine import clock
from contextengine.engine.moment import Moment
from contextengine.engine.strategies.strategy import (
    Evidence,
    Strategy,
    Worded,
    attended_by,
    is_holding,
    is_timed,
    parts_of,
    vocabulary_of,
)
from contextengine.engine.strategies.temporal import Decay, Every, EveryMessages, Scheduled
from contextengine.schemas.events import Tick
from contextengine.schemas.session import Memory, Session

_NOTHING = Memory()


@dataclass(frozen=True, slots=True)
class _Composed:
    """What every strategy has that is made of others: `listens` is what any of them listens to."""

    listens: frozenset[type] = field(init=False, repr=False)
    phrases: frozenset[str] = field(init=False, repr=False)
    vocabulary: frozenset[str] = field(init=False, repr=False)
    attends: frozenset[str] = field(init=False, repr=False)

    def _parts(self) -> dict[str, Strategy]:
        """The parts that fire, by their place."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        parts = self._parts().values()
        self._set("listens", frozenset().union(*(part.listens for part in parts)))
        self._set("vocabulary", frozenset().union(*map(vocabulary_of, parts)))
        self._set("attends", frozenset().union(*map(attended_by, parts)))
        worded = [part.phrases for part in parts if isinstance(part, Worded)]
        all_are = len(worded) == len(parts) and all(worded)
        self._set("phrases", frozenset().union(*worded) if all_are else frozenset())

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def due_ms(self, session: Session, memory: Memory) -> int | None:
        """The first time that one of the parts waits for."""
        due = [
            part.due_ms(session, memory.parts.get(place, _NOTHING))
            for place, part in self._parts().items()
            if Tick in part.listens and is_timed(part)
        ]
        return min((each for each in due if each is not None), default=None)


@dataclass(frozen=True, slots=True)
class All(_Composed):
    """Fires when all its parts fire on the same event; of those that only tell how things are, when that is so.

    A part that would fire without the others counts nothing as fired, and fires with them later; but one that waits
    for a time is not asked for the same time again.
    """

    of: tuple[Strategy, ...]

    def _parts(self) -> dict[str, Strategy]:
        return _placed(self.of)

    def __post_init__(self) -> None:
        super(All, self).__post_init__()
        if len(self.of) < 2:
            raise ValueError("`all` joins at least two strategies")
        deciding = [part for part in self.of if not is_holding(part)]
        if deciding:
            self._set("listens", frozenset.intersection(*(part.listens for part in deciding)))
            worded = [part.phrases for part in deciding if isinstance(part, Worded) and part.phrases]
            self._set("phrases", frozenset().union(*worded[:1]))
        if not self.listens:
            names = ", ".join(type(part).__name__ for part in deciding or self.of)
            raise ValueError(f"the parts of `all` fire on the same event, and these never do: {names}")
        following = [part for part in deciding if any(isinstance(each, _FOLLOWING) for each in parts_of(part))]
        if following:
            self._set("listens", self.listens.union(*(part.listens for part in following)))
            phrases = [part.phrases if isinstance(part, Worded) else frozenset() for part in following]
            self._set("phrases", frozenset().union(*phrases) if all(phrases) else frozenset())

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:
        """The evidence of all parts together."""
        together: Evidence = {}
        fired, so, remembered = False, True, {}
        for place, part in self._parts().items():
            own = _copied(memory.parts.get(place, _NOTHING))
            found = _asked(part, moment, own)
            fired = fired or found is not None
            waited = is_timed(part) and isinstance(moment.event, Tick)
            if found is None or waited or is_holding(part):
                _keep(memory, place, own)
            else:
                remembered[place] = own
            if found is None and is_holding(part):
                found = part.holds(moment)
            so = so and found is not None
            together |= found or {}
        if not (so and fired):
            return None
        for place, own in remembered.items():
            _keep(memory, place, own)
        return together


@dataclass(frozen=True, slots=True)
class AnyOf(_Composed):
    """Fires when one of its parts fires."""

    of: tuple[Strategy, ...]

    def _parts(self) -> dict[str, Strategy]:
        return _placed(self.of)

    def __post_init__(self) -> None:
        super(AnyOf, self).__post_init__()
        if len(self.of) < 2:
            raise ValueError("`any` joins at least two strategies")

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:
        """The evidence of all parts that fire."""
        found = [_ask(part, place, moment, memory) for place, part in self._parts().items()]
        fired = [evidence for evidence in found if evidence is not None]
        return {name: seen for evidence in reversed(fired) for name, seen in evidence.items()} if fired else None


@dataclass(frozen=True, slots=True)
class Not:
    """Never fires; tells that something is not so: that its part does not hold, or does not fire on this event.

    What fires because of what it remembers has no place here: asked about one event, it would not know.
    """

    of: Strategy

    listens: ClassVar[frozenset[type]] = frozenset()
    vocabulary: frozenset[str] = field(init=False, repr=False)
    attends: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        remembering = [type(part).__name__ for part in parts_of(self.of) if isinstance(part, _REMEMBERING)]
        if remembering and not is_holding(self.of):
            raise ValueError(f"`not` denies a state, or what an event says; {remembering[0]} counts or waits")
        object.__setattr__(self, "vocabulary", vocabulary_of(self.of))
        object.__setattr__(self, "attends", attended_by(self.of))

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:  # noqa: ARG002
        """None."""
        return None

    def holds(self, moment: Moment) -> Evidence | None:
        """No evidence, unless the part has some."""
        so = self.of.holds(moment) if is_holding(self.of) else _asked(self.of, moment, Memory())
        return {} if so is None else None


@dataclass(frozen=True, slots=True)
class Within(_Composed):
    """Fires when `then` fires at most `span_ms` (the session's time) after `first` has."""

    first: Strategy
    then: Strategy
    span_ms: int

    def _parts(self) -> dict[str, Strategy]:
        return {"first": self.first, "then": self.then}

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:
        """The evidence of `then`."""
        found, began = _ask(self.then, "then", moment, memory), _ask(self.first, "first", moment, memory)
        if found is not None and memory.at_ms:
            late_ms = moment.now_ms - memory.at_ms - clock.broker_span_ms(moment.session, self.span_ms)
            memory.at_ms = 0
            if late_ms <= 0:
                return found
        if began is not None:
            memory.at_ms = moment.now_ms
        return None


@dataclass(frozen=True, slots=True)
class After(_Composed):
    """Fires `delay_ms` (the session's time) after `of` has, unless `unless` fires in between."""

    of: Strategy
    delay_ms: int
    unless: Strategy | None = None

    def _parts(self) -> dict[str, Strategy]:
        return {"of": self.of} | ({"unless": self.unless} if self.unless else {})

    def __post_init__(self) -> None:
        super(After, self).__post_init__()
        self._set("listens", self.listens | {Tick})
        self._set("phrases", frozenset())

    def due_ms(self, session: Session, memory: Memory) -> int | None:
        """The end of the delay, or what a part waits for."""
        first = super(After, self).due_ms(session, memory)
        if not memory.at_ms:
            return first
        end = memory.at_ms + clock.broker_span_ms(session, self.delay_ms)
        return end if first is None else min(first, end)

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:
        """How long ago it was."""
        span_ms = clock.broker_span_ms(moment.session, self.delay_ms)
        began = _ask(self.of, "of", moment, memory)
        if self.unless and _ask(self.unless, "unless", moment, memory) is not None:
            memory.at_ms = 0
        over = memory.at_ms and moment.now_ms >= memory.at_ms + span_ms
        if began is not None and (over or not memory.at_ms):
            memory.at_ms = moment.now_ms
        elif over:
            memory.at_ms = 0
        return {"after": f"{self.delay_ms / 1_000:g} s"} if over else None


@dataclass(frozen=True, slots=True)
class AtMost(_Composed):
    """Fires with `of`, and at most `times` in `window_ms` (the session's time), which begins with a firing."""

    of: Strategy
    times: int
    window_ms: int

    def _parts(self) -> dict[str, Strategy]:
        return {"of": self.of}

    def __post_init__(self) -> None:
        super(AtMost, self).__post_init__()
        if self.times < 1 or self.window_ms < 1:
            raise ValueError("times must be at least 1, and window longer than nothing")

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:
        """The evidence of `of`, and the number in the window."""
        found = _ask(self.of, "of", moment, memory)
        if found is None:
            return None
        window_ms = clock.broker_span_ms(moment.session, self.window_ms)
        if not memory.at_ms or moment.now_ms >= memory.at_ms + window_ms:
            memory.at_ms, memory.counter = moment.now_ms, 0
        if memory.counter >= self.times:
            return None
        memory.counter += 1
        return found | {"in the window": f"{memory.counter} of {self.times}"}


@dataclass(frozen=True, slots=True)
class CoolDown(_Composed):
    """Fires with `of`, and then not for `pause_ms` (the session's time)."""

    of: Strategy
    pause_ms: int

    def _parts(self) -> dict[str, Strategy]:
        return {"of": self.of}

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:
        """The evidence of `of`."""
        found = _ask(self.of, "of", moment, memory)
        pause_ms = clock.broker_span_ms(moment.session, self.pause_ms)
        if found is None or (memory.at_ms and moment.now_ms < memory.at_ms + pause_ms):
            return None
        memory.at_ms = moment.now_ms
        return found


@dataclass(frozen=True, slots=True)
class Hysteresis(_Composed):
    """Fires with `on`, and not again before `off` has fired."""

    on: Strategy
    off: Strategy

    def _parts(self) -> dict[str, Strategy]:
        return {"on": self.on, "off": self.off}

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:
        """The evidence of `on`."""
        found, ended = _ask(self.on, "on", moment, memory), _ask(self.off, "off", moment, memory)
        if memory.counter:
            memory.counter = int(ended is None)
            return None
        memory.counter = int(found is not None)
        return found


_FOLLOWING: Final = (Within, After, Hysteresis)
"""What must see more events than those on which it fires."""


_REMEMBERING: Final = (EveryMessages, Every, Decay, Scheduled, AtMost, CoolDown, *_FOLLOWING)


def _placed(parts: tuple[Strategy, ...]) -> dict[str, Strategy]:
    return {str(place): part for place, part in enumerate(parts)}


def _asked(part: Strategy, moment: Moment, memory: Memory) -> Evidence | None:
    return part.evidence(moment, memory) if type(moment.event) in part.listens else None


def _ask(part: Strategy, place: str, moment: Moment, memory: Memory) -> Evidence | None:
    """Ask a part, and remember what it remembers."""
    own = memory.parts.get(place) or Memory()
    found = _asked(part, moment, own)
    _keep(memory, place, own)
    return found


def _keep(memory: Memory, place: str, own: Memory) -> None:
    if own == _NOTHING:
        memory.parts.pop(place, None)
    else:
        memory.parts[place] = own


def _copied(memory: Memory) -> Memory:
    return Memory(memory.counter, memory.at_ms, {place: _copied(part) for place, part in memory.parts.items()})
