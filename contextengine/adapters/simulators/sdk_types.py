"""Strict checks of JSON against the types that a provider's SDK publishes for it.

Pydantic alone lets wrong payloads through these types: it leaves `Iterable` fields unread until somebody iterates,
allows unknown keys, and believes `__required_keys__`, which is wrong under postponed annotations. So the types are
read here, once, into shapes with this law:

    | the SDK says              | the JSON must be                                                     |
    |---------------------------|----------------------------------------------------------------------|
    | TypedDict, pydantic model | an object with every required key and no unknown one                 |
    | Union                     | what one member allows; among objects, `type` and `role` pick it     |
    | Literal                   | one of the values, and of the same type (1 is not true)              |
    | list, Iterable, Sequence  | an array; a string is none                                           |
    | dict, Mapping             | an object whose values all fit                                       |
    | str, int, float, bool     | that; true is no number; 1 is a float                                |
    | Any, object               | anything                                                             |
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, NotRequired, Protocol, Required, Union, get_args, get_origin

from pydantic import BaseModel
from typing_extensions import get_type_hints, is_typeddict

_PICKED_BY: Final = ("type", "role")
_JSON_NAMES: Final[Mapping[type, str]] = {
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


class PayloadMismatch(ValueError):
    """JSON that the SDK's type does not allow: `path` says where, `problem` what is wrong there."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}" if path else problem)
        self.path, self.problem = path, problem

    @property
    def depth(self) -> int:
        """How many steps below the frame the mismatch lies."""
        return self.path.count(".") + self.path.count("[") + bool(self.path)


class PayloadType:
    """An SDK's type (TypedDict, pydantic model, or a union of such) as a check of JSON.

    Raises TypeError at construction when the type contains something that this module cannot check.
    """

    def __init__(self, sdk_type: object) -> None:
        self._shape = _shape(sdk_type, {})

    def check(self, frame: object) -> None:
        """Raise PayloadMismatch, naming the path, unless `frame` (decoded JSON) is exactly what the type allows."""
        self._shape.check(frame, "")


class _Shape(Protocol):
    def check(self, value: object, path: str) -> None: ...


class _Anything:
    def check(self, value: object, path: str) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Plain:
    declared: type

    def check(self, value: object, path: str) -> None:
        if type(value) is not self.declared and not (self.declared is float and type(value) is int):
            wanted = "an integer" if self.declared is int else _JSON_NAMES[self.declared]
            raise PayloadMismatch(path, f"is {_json_name(value)}, must be {wanted}")


@dataclass(frozen=True, slots=True)
class _OneOfTheseValues:
    values: tuple[object, ...]

    def check(self, value: object, path: str) -> None:
        if not any(type(value) is type(allowed) and value == allowed for allowed in self.values):
            raise PayloadMismatch(path, f"is {value!r}, must be one of {', '.join(map(repr, self.values))}")


@dataclass(frozen=True, slots=True)
class _ListOf:
    member: _Shape

    def check(self, value: object, path: str) -> None:
        if not isinstance(value, list):
            raise PayloadMismatch(path, f"is {_json_name(value)}, must be an array")
        for index, member in enumerate(value):
            self.member.check(member, f"{path}[{index}]")


@dataclass(frozen=True, slots=True)
class _DictOf:
    member: _Shape

    def check(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise PayloadMismatch(path, f"is {_json_name(value)}, must be an object")
        for key, member in value.items():
            self.member.check(member, _below(path, key))


@dataclass(frozen=True, slots=True)
class _Record:
    name: str
    shapes: dict[str, _Shape] = field(default_factory=dict)
    required: list[str] = field(default_factory=list)

    def check(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise PayloadMismatch(path, f"is {_json_name(value)}, must be an object")
        for key, member in value.items():
            if key not in self.shapes:
                raise PayloadMismatch(_below(path, key), f"is no field of {self.name}")
            self.shapes[key].check(member, _below(path, key))
        for key in self.required:
            if key not in value:
                raise PayloadMismatch(_below(path, key), f"is missing; {self.name} requires it")

    def allows(self, key: str, value: object) -> bool:
        try:
            self.shapes[key].check(value, key)
        except (KeyError, PayloadMismatch):
            return False
        return True


@dataclass(frozen=True, slots=True)
class _Union:
    records: tuple[_Record, ...]
    others: tuple[_Shape, ...]

    def check(self, value: object, path: str) -> None:
        candidates = self._candidates(value, path) if isinstance(value, dict) else self.records
        mismatches: list[PayloadMismatch] = []
        for shape in (*candidates, *self.others):
            try:
                shape.check(value, path)
            except PayloadMismatch as mismatch:
                mismatches.append(mismatch)
            else:
                return
        # The member that got furthest before it disagreed is the one that was meant.
        raise max(mismatches, key=lambda mismatch: mismatch.depth)

    def _candidates(self, value: dict[str, object], path: str) -> tuple[_Record, ...]:
        """The records that `value` can be meant for, by the fields that tell them apart."""
        candidates = self.records
        for key in _PICKED_BY:
            if key not in value:
                if len(candidates) > 1 and all(key in record.required for record in candidates):
                    raise PayloadMismatch(_below(path, key), "is missing; it says what the object is")
                continue
            rest = tuple(record for record in candidates if record.allows(key, value[key]))
            if not rest and not self.others:
                raise PayloadMismatch(_below(path, key), f"{value[key]!r} is none that can stand here")
            candidates = rest
        return candidates


def _shape(hint: Any, records: dict[object, _Record]) -> _Shape:
    """The shape of one type; `records` holds those already met, so that a type may contain itself."""
    hint = _bare(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    shape: _Shape
    if hint is Any or hint is object:
        shape = _Anything()
    elif hint in {str, bool, int, float, type(None)}:
        shape = _Plain(hint)
    elif origin is Literal:
        shape = _OneOfTheseValues(arguments)
    elif origin in {list, Iterable, Sequence}:
        shape = _ListOf(_shape(arguments[0], records))
    elif origin in {dict, Mapping}:
        shape = _DictOf(_shape(arguments[1], records))
    elif origin in {Union, types.UnionType}:
        members = [_shape(argument, records) for argument in arguments]
        shape = _Union(
            records=tuple(member for member in members if isinstance(member, _Record)),
            others=tuple(member for member in members if not isinstance(member, _Record)),
        )
    elif is_typeddict(hint) or (isinstance(hint, type) and issubclass(hint, BaseModel)):
        shape = _record(hint, records)
    else:
        raise TypeError(f"no check is known for {hint!r}")
    return shape


def _record(hint: Any, records: dict[object, _Record]) -> _Record:
    if hint in records:
        return records[hint]
    record = records[hint] = _Record(hint.__name__)
    if is_typeddict(hint):
        for key, declared in get_type_hints(hint, include_extras=True).items():
            record.shapes[key] = _shape(declared, records)
            # Under postponed annotations __required_keys__ knows only the class's `total`: the marker overrules it.
            marker: object = get_origin(declared)
            if marker is Required or (marker is not NotRequired and key in hint.__required_keys__):
                record.required.append(key)
    else:
        for name, info in hint.model_fields.items():
            record.shapes[info.alias or name] = _shape(info.annotation, records)
            if info.is_required():
                record.required.append(info.alias or name)
    return record


def _bare(hint: Any) -> Any:
    """`hint` without the wrappers that say nothing about its value."""
    while get_origin(hint) in {Annotated, Required, NotRequired}:
        hint = get_args(hint)[0]
    return hint


def _below(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _json_name(value: object) -> str:
    """What JSON calls the type of `value`; Python's name when JSON has none."""
    return _JSON_NAMES.get(type(value), type(value).__name__)
