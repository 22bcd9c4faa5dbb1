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
_PLAIN: Final[Mapping[object, tuple[type, ...]]] = {
    str: (str,),
    bool: (bool,),
    int: (int,),
    float: (int, float),
    type(None): (type(None),),
}


class Mismatch(ValueError):
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
        """Raise Mismatch, naming the path, unless `frame` (decoded JSON) is exactly what the type allows."""
        self._shape.check(frame, "")


class _Shape(Protocol):
    def check(self, value: object, path: str) -> None: ...


class _Anything:
    def check(self, value: object, path: str) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Plain:
    name: str
    python_types: tuple[type, ...]

    def check(self, value: object, path: str) -> None:
        if not isinstance(value, self.python_types) or (isinstance(value, bool) and bool not in self.python_types):
            raise Mismatch(path, f"is {_json_name(value)}, must be {self.name}")


@dataclass(frozen=True, slots=True)
class _OneOfTheseValues:
    values: tuple[object, ...]

    def check(self, value: object, path: str) -> None:
        if not any(type(value) is type(allowed) and value == allowed for allowed in self.values):
            raise Mismatch(path, f"is {value!r}, must be one of {', '.join(map(repr, self.values))}")


@dataclass(frozen=True, slots=True)
class _ListOf:
    member: _Shape

    def check(self, value: object, path: str) -> None:
        if not isinstance(value, list):
            raise Mismatch(path, f"is {_json_name(value)}, must be an array")
        for index, member in enumerate(value):
            self.member.check(member, f"{path}[{index}]")


@dataclass(frozen=True, slots=True)
class _DictOf:
    member: _Shape

    def check(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise Mismatch(path, f"is {_json_name(value)}, must be an object")
        for key, member in value.items():
            self.member.check(member, _below(path, key))


@dataclass(frozen=True, slots=True)
class _Record:
    name: str
    shapes: dict[str, _Shape] = field(default_factory=dict)
    required: set[str] = field(default_factory=set)

    def check(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise Mismatch(path, f"is {_json_name(value)}, must be an object")
        for key, member in value.items():
            if key not in self.shapes:
                raise Mismatch(_below(path, key), f"is no field of {self.name}")
            self.shapes[key].check(member, _below(path, key))
        for key in self.required:
            if key not in value:
                raise Mismatch(_below(path, key), f"is missing; {self.name} requires it")

    def allows(self, key: str, value: object) -> bool:
        try:
            self.shapes[key].check(value, key)
        except (KeyError, Mismatch):
            return False
        return True


@dataclass(frozen=True, slots=True)
class _Union:
    records: tuple[_Record, ...]
    others: tuple[_Shape, ...]

    def check(self, value: object, path: str) -> None:
        candidates = self._candidates(value, path) if isinstance(value, dict) else self.records
        mismatches: list[Mismatch] = []
        for shape in (*candidates, *self.others):
            try:
                shape.check(value, path)
            except Mismatch as mismatch:
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
                    raise Mismatch(_below(path, key), "is missing; it says what the object is")
                continue
            rest = tuple(record for record in candidates if record.allows(key, value[key]))
            if not rest and not self.others:
                raise Mismatch(_below(path, key), f"{value[key]!r} is none that can stand here")
            candidates = rest
        return candidates


def _shape(hint: Any, records: dict[object, _Record]) -> _Shape:
    """The shape of one type; `records` holds those already met, so that a type may contain itself."""
    hint = _bare(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return _Anything()
    if hint in _PLAIN:
        return _Plain(hint.__name__, _PLAIN[hint])
    if origin is Literal:
        return _OneOfTheseValues(arguments)
    if origin in {list, Iterable, Sequence}:
        return _ListOf(_shape(arguments[0], records))
    if origin in {dict, Mapping}:
        return _DictOf(_shape(arguments[1], records))
    if origin in {Union, types.UnionType}:
        members = [_shape(argument, records) for argument in arguments]
        return _Union(
            records=tuple(member for member in members if isinstance(member, _Record)),
            others=tuple(member for member in members if not isinstance(member, _Record)),
        )
    if is_typeddict(hint) or (isinstance(hint, type) and issubclass(hint, BaseModel)):
        return _record(hint, records)
    raise TypeError(f"no check is known for {hint!r}")


def _record(hint: Any, records: dict[object, _Record]) -> _Record:
    if hint in records:
        return records[hint]
    record = records[hint] = _Record(hint.__name__)
    if is_typeddict(hint):
        for key, declared in get_type_hints(hint, include_extras=True).items():
            record.shapes[key] = _shape(declared, records)
            # Under postponed annotations __required_keys__ knows only the class's `total`: the marker overrules it.
            marker = get_origin(declared)
            if marker is Required or (marker is not NotRequired and key in hint.__required_keys__):
                record.required.add(key)
    else:
        for name, info in hint.model_fields.items():
            record.shapes[info.alias or name] = _shape(info.annotation, records)
            if info.is_required():
                record.required.add(info.alias or name)
    return record


def _bare(hint: Any) -> Any:
    """`hint` without the wrappers that say nothing about its value."""
    while get_origin(hint) in {Annotated, Required, NotRequired}:
        hint = get_args(hint)[0]
    return hint


def _below(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _json_name(value: object) -> str:
    """What JSON calls the type of `value`."""
    names = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "an array", dict: "an object"}
    return names.get(type(value), "null")
