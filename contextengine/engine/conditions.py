"""Conditions: what must be so for a rule to fire, and still be so when its context goes in.

They are CEL expressions (Common Expression Language, cel.dev) over `session`, `facts` and the `event`. All is checked
when one is written: the syntax, every name and type, and that the answer is yes or no. The language is cut to what
costs microseconds whatever it is asked, and answers alike on every machine: no macro but `has`, so nothing repeats; no
regular expressions; no clock and no calendar.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cel_expr_python import cel

from contextengine.engine.vocabulary import OF_SESSION
from contextengine.schemas.events import AnyEvent, MessageCompleted
from contextengine.schemas.session import Session

CONDITION_BYTES: Final = 1_000
HEARD_CHARACTERS: Final = 1_000
"""How much of a message a condition sees: as much as the session's history keeps."""
SHOWN_CHARACTERS: Final = 100
"""How much a message shows of a condition, a reason of a value."""
REASON_CHARACTERS: Final = 2_000

FUNCTIONS: Final = ("has", "size", "contains", "startsWith", "endsWith", "int", "double", "string")
OPERATORS: Final = (
    *("_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_", "@in", "_&&_", "_||_", "!_", "_?_:_"),
    *("_+_", "_-_", "_*_", "_/_", "_%_", "-_", "_[_]"),
)

_OF_SESSION: Final[Mapping[str, Callable[[Session, int], Any]]] = {
    **{f"session.{name}": asked.of for name, asked in OF_SESSION.items()},
    "facts": lambda session, _: session.facts,
}
_OF_EVENT: Final[Mapping[str, Callable[[AnyEvent], str]]] = {
    "event.type": lambda event: type(event).__name__,
    "event.speaker": lambda event: getattr(event, "speaker", ""),
    "event.text": lambda event: event.text[:HEARD_CHARACTERS] if isinstance(event, MessageCompleted) else "",
}
_KNOWN: Final = (*_OF_SESSION, *_OF_EVENT, *FUNCTIONS)

_TYPES: Final = {str: cel.Type.STRING, int: cel.Type.INT}
_language: Final = cel.NewEnv(
    config=cel.NewEnvConfigFromYaml(
        "stdlib: {include_macros: [has], include_functions: ["
        + ", ".join(f"{{name: '{name}'}}" for name in (*OPERATORS, *FUNCTIONS[1:]))
        + "]}"
    ),
    variables={
        **{f"session.{name}": _TYPES[asked.kind] for name, asked in OF_SESSION.items()},
        "facts": cel.Type.Map(cel.Type.STRING, cel.Type.STRING),
        **dict.fromkeys(_OF_EVENT, cel.Type.STRING),
    },
)


@dataclass(frozen=True, slots=True)
class Condition:
    """A CEL expression that holds or does not. Conditions of the same text are equal.

    Raises ValueError for a text that no session could make good. `attends` is what must be noticed in messages so that
    it can be told, as `engine.triggers.notice` names it.
    """

    text: str

    attends: frozenset[str] = field(init=False, repr=False, compare=False)
    _program: Any = field(init=False, repr=False, compare=False)
    _of_session: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _of_event: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        program = _compiled(self.text)
        referred = program.serialize()  # every name that the expression refers to stands in it
        of_session = tuple(name for name in _OF_SESSION if name.encode() in referred)
        attends = {OF_SESSION[name].attends for name in OF_SESSION if f"session.{name}" in of_session}
        derived = {
            "attends": frozenset(attends - {None}),
            "_program": program,
            "_of_session": of_session,
            "_of_event": tuple(name for name in _OF_EVENT if name.encode() in referred),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def why_not(self, session: Session, now_ms: int, event: AnyEvent | None = None) -> str | None:
        """Why it does not hold, with the values it was judged by; None when it holds.

        What has no answer, such as a question about a missing fact, does not hold. Without an `event`, what is asked of
        one is left open: the condition holds unless the rest alone makes it false.
        """
        values = {name: _OF_SESSION[name](session, now_ms) for name in self._of_session}
        if event is not None:
            values |= {name: _OF_EVENT[name](event) for name in self._of_event}
        try:
            answer = self._program.eval(data=values).value()
        except RuntimeError:  # half of a character, which the library does not take
            answer = "INVALID: a value is no text"
        if answer is True or (answer is not False and event is None and self._of_event):
            return None
        told = "is false" if answer is False else f"has no answer: {answer.partition(': ')[2]}"
        return "; ".join([f"{self.text} {told}", *self._shown(values)])[:REASON_CHARACTERS]

    def _shown(self, values: Mapping[str, Any]) -> list[str]:
        """What it was judged by, for people; of the facts those that it names."""
        facts = {f"facts.{name}": told for name, told in values.get("facts", {}).items() if name in self.text}
        told = {name: value for name, value in values.items() if name != "facts"} | facts
        return [f"{name} is {repr(value)[:SHOWN_CHARACTERS]}" for name, value in told.items()]


def _compiled(text: str) -> Any:
    size = len(text.encode())
    if size > CONDITION_BYTES:
        raise ValueError(f"a condition of {size} bytes, at most {CONDITION_BYTES} are allowed")
    shown = repr(text)[:SHOWN_CHARACTERS]
    try:
        program = _language.compile(text)
        answer = program.return_type()
    except RuntimeError as error:
        raise ValueError(f"condition {shown}: {_mistake(str(error))}") from None
    if answer != cel.Type.BOOL:
        raise ValueError(f"condition {shown}: it gives {answer.name().lower()}, expected true or false")
    return program


def _mistake(told: str) -> str:
    """The first mistake that the library tells, with its line and column in the text."""
    first = re.sub(r"^\w+: (ERROR: <input>:(-1:-1: )?)?| expecting .*| \[\w+\]$", "", told.splitlines()[0])
    unknown = re.search(r"undeclared reference to '([^']*)'", first)
    if unknown is None:
        return first
    names = {name.rpartition(".")[2]: name for name in _KNOWN} | {name: name for name in _KNOWN}
    near = difflib.get_close_matches(unknown[1], names, n=1)
    meant = f"did you mean {names[near[0]]}? Known" if near else "known"
    return f"no condition knows {unknown[1]}; {meant}: {', '.join(_KNOWN)}"
