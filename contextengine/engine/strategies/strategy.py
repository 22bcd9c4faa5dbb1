"""What a strategy is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from enum import Enum
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeGuard, runtime_checkable

if TYPE_CHECKING:
    from contextengine.engine.moment import Moment
    from contextengine.schemas.session import Memory, Session

Evidence: TypeAlias = dict[str, str]
"""What speaks for firing now: names to what was seen; it is shown to people and open to templates."""


class Strategy(Protocol):
    """Says whether now is the moment. A frozen dataclass: its fields are its parameters in a rules file.

    A strategy keeps what it must remember about a session in the Memory it is given and changes nothing else.
    """

    @property
    def listens(self) -> frozenset[type]:
        """The events that can make it fire."""

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:
        """What speaks for firing because of this event, or None."""


@runtime_checkable
class Timed(Protocol):
    """A strategy that fires when no event comes: it names the time at which it wants to be asked again."""

    def due_ms(self, session: Session, memory: Memory) -> int | None:
        """The broker time at which to ask, or None when there is no such time as things stand."""


@runtime_checkable
class Holding(Protocol):
    """A strategy that also says whether something is so, at any event: what others can be joined with or denied by."""

    def holds(self, moment: Moment) -> Evidence | None:
        """What speaks for it being so now, or None."""


@runtime_checkable
class Attentive(Protocol):
    """A strategy that asks for detectors: those that no rule asks for do not run."""

    @property
    def attends(self) -> frozenset[str]:
        """What it attends to, as `engine.triggers.notice` names it."""


@runtime_checkable
class Worded(Protocol):
    """A strategy that can fire only on a message that contains one of its phrases; none: on any message.

    One that looks for other phrases too names them all in `vocabulary`.
    """

    @property
    def phrases(self) -> frozenset[str]:
        """Words and phrases as `engine.triggers.keywords` defines them."""


def is_timed(strategy: Strategy) -> TypeGuard[Timed]:
    """What `isinstance` says; of a protocol that takes it 7 us, and rules are asked at every message."""
    return hasattr(strategy, "due_ms")


def is_holding(strategy: Strategy) -> TypeGuard[Holding]:
    """As `is_timed`."""
    return hasattr(strategy, "holds")


def parts_of(strategy: Strategy) -> Iterator[Strategy]:
    """The strategy, and all that it is made of, at every depth."""
    yield strategy
    for given in (getattr(strategy, field.name) for field in fields(strategy) if field.init):  # type: ignore[arg-type]
        for part in given if isinstance(given, tuple) else [given]:
            if hasattr(part, "evidence"):
                yield from parts_of(part)


def vocabulary_of(strategy: Strategy) -> frozenset[str]:
    """The phrases that are to be looked for in messages for this strategy."""
    found: frozenset[str] = getattr(strategy, "vocabulary", getattr(strategy, "phrases", frozenset()))
    return found


def attended_by(strategy: Strategy) -> frozenset[str]:
    """The detectors that this strategy asks for."""
    return strategy.attends if isinstance(strategy, Attentive) else frozenset()


def digest_of(strategy: Strategy) -> str:
    """A name for the strategy with its parameters, the same in every process."""
    return blake2b(_written(strategy).encode(), digest_size=6).hexdigest()


def _written(value: Any) -> str:
    """A parameter as text; of one that cannot be compared, its type."""
    if is_dataclass(value):
        given = (f"{field.name}={_written(getattr(value, field.name))}" for field in fields(value) if field.init)
        return f"{type(value).__qualname__}({', '.join(given)})"
    if isinstance(value, Enum):
        return _written(value.value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, AbstractSet):
        return f"[{', '.join(sorted(map(_written, value)))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{_written(key)}: {_written(part)}' for key, part in value.items()))}}}"
    return repr(value) if isinstance(value, str | int | float | None) else type(value).__qualname__
