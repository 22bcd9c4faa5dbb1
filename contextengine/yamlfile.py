"""YAML that becomes dataclasses: every mistake is told with file, line and column, what was found, what was expected.

The keys of a mapping are the fields of its dataclass or Struct; a field `x_ms` is written `x: 10 s`.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from types import NoneType, UnionType
from typing import Any, ClassVar, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import yaml

from contextengine.errors import RulesInvalid

T = TypeVar("T")

UNITS: Final = {"ms": 1, "s": 1_000, "min": 60_000, "h": 3_600_000}
DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|h)")
_LONGEST_MS: Final = 366 * 24 * 3_600_000
GREATEST: Final = 10**9


class Duration:
    """Stands for a field in milliseconds that people write with its unit."""


class Reading:
    """One pass over some files; a value with a mistake becomes None and a problem.

    `renamed` are the fields that have another name in a file. A subclass says how its own types are read.
    """

    renamed: ClassVar[Mapping[str, str]] = {}

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._source = ""

    def read(self, files: Mapping[str, str], key: str, item: Callable[[yaml.Node], T]) -> list[T]:
        """Each item of the list that the only `key` of a file holds; `files` are texts by the names that messages have.

        RulesInvalid lists every mistake in all of them.
        """
        items = []
        for self._source, text in files.items():
            try:
                items += [item(node) for node in self._items(text, key)]
            except RecursionError:
                told = f"{self._source}: nested too deeply, or an alias that contains itself"
                raise RulesInvalid([told]) from None
        if self.problems:
            raise RulesInvalid(self.problems)
        return items

    def value(self, node: yaml.Node, hint: Any, what: str) -> Any:
        """What `node` says as a `hint`."""
        origin = get_origin(hint)
        if origin in (Union, UnionType):
            return self._union(node, get_args(hint), what)
        if origin in (tuple, list):
            return self._list(node, get_args(hint)[0], what, origin)
        if origin in (dict, Mapping):
            pairs = self.pairs(node, None, what)
            return {name: self.value(value, get_args(hint)[1], f"{what}.{name}") for name, value in pairs.items()}
        if isinstance(hint, type) and (dataclasses.is_dataclass(hint) or issubclass(hint, msgspec.Struct)):
            return self.made_of_fields(node, hint, what)
        return self._scalar(node, hint, what)

    def made_of_fields(self, node: yaml.Node, kind: type, what: str) -> Any:
        """A `kind`, its fields from the pairs of `node`."""
        before = len(self.problems)
        values = self.values(node, kind, what)
        return self.made(node, kind, values, what) if len(self.problems) == before else None

    def values(self, node: yaml.Node, kind: type, what: str) -> dict[str, Any]:
        """The values of the fields of `kind` that are given, by the fields' names; None stands for a mistake."""
        hints = hints_of(kind)
        fields = {self.written(name): (name, required) for name, required in self.fields_of(kind)}
        pairs = self.pairs(node, fields, what)
        if not isinstance(node, yaml.MappingNode):
            return {}
        meant = {near for key, _ in node.value for near in _near(key.value, fields)}
        missing = [written for written, (_, required) in fields.items() if required and written not in {*pairs, *meant}]
        if missing:
            self.problem(node, f"{what} lacks {', '.join(f'`{name}`' for name in missing)}")
        values = {}
        for written, value in pairs.items():
            name = fields[written][0]
            values[name] = self.value(value, hints[name], f"`{written}`")
        return values

    def made(self, node: yaml.Node, kind: type, values: dict[str, Any], what: str) -> Any:
        """A `kind` of these values, unless it refuses them."""
        try:
            return kind(**values)
        except (TypeError, ValueError) as error:
            self.problem(node, f"{what}: {error}")
            return None

    def pairs(self, node: yaml.Node, known: Iterable[str] | None, what: str) -> dict[str, yaml.Node]:
        """The pairs of a mapping; with `known`, no other names may stand in it."""
        if not isinstance(node, yaml.MappingNode):
            self.problem(node, f"{what} is {shown(node)}, expected `name: value` pairs")
            return {}
        pairs: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or not _is_text(key.value):
                self.problem(key, f"a name in {what} is {shown(key)}, expected text")
            elif key.value in pairs:
                self.problem(key, f"{what} says `{key.value}` twice")
            elif known is not None and key.value not in known:
                self.problem(key, f"{what} knows no `{key.value}`{instead(key.value, known)}")
            else:
                pairs[key.value] = value
        return pairs

    def fields_of(self, kind: Any) -> list[tuple[str, bool]]:
        """The fields that may be given, each with whether it must be."""
        if issubclass(kind, msgspec.Struct):
            return [(field.name, field.required) for field in msgspec.structs.fields(kind)]
        none = dataclasses.MISSING
        return [
            (field.name, field.default is none and field.default_factory is none)
            for field in dataclasses.fields(kind)
            if field.init
        ]

    def written(self, field: str) -> str:
        """The field's name in the file."""
        return self.renamed.get(field, field.removesuffix("_ms"))

    def problem(self, node: yaml.Node, told: str) -> None:
        """There is a mistake where `node` begins."""
        self.problems.append(f"{self.place(node)}: {told}")

    def place(self, node: yaml.Node) -> str:
        """The file, line and column where `node` begins."""
        return f"{self._source}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    def _items(self, text: str, key: str) -> list[yaml.Node]:
        try:
            root = yaml.compose(text, yaml.SafeLoader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{self._source}:{mark.line + 1}:{mark.column + 1}" if mark else self._source
            told = getattr(error, "problem", None) or getattr(error, "reason", error)
            self.problems.append(f"{where}: not YAML: {told}")
            return []
        if root is None:
            self.problems.append(f"{self._source}:1:1: the file is empty, expected `{key}:` and a list of {key}")
            return []
        pairs = self.pairs(root, [key], "the file")
        if key not in pairs:
            self.problem(root, f"no `{key}`, expected a list of {key}; found {shown(root)}")
            return []
        node = pairs[key]
        if not isinstance(node, yaml.SequenceNode):
            self.problem(node, f"`{key}` is {shown(node)}, expected a list of {key}")
            return []
        return list(node.value)

    def _union(self, node: yaml.Node, members: tuple[Any, ...], what: str) -> Any:
        if NoneType in members and isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
            return None
        rest = [member for member in members if member is not NoneType]
        if isinstance(node, yaml.SequenceNode):
            rest.sort(key=lambda member: get_origin(member) is None)
        return self.value(node, rest[0], what)

    def _list(self, node: yaml.Node, hint: Any, what: str, kind: type) -> Any:
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        return kind(self.value(item, hint, what) for item in items)

    def _scalar(self, node: yaml.Node, hint: Any, what: str) -> Any:  # noqa: C901, PLR0911, PLR0912 - one branch a kind
        if not isinstance(node, yaml.ScalarNode):
            self.problem(node, f"{what} is {shown(node)}, expected {_expected(hint)}")
            return None
        text = node.value
        if hint is Duration:
            found = DURATION.fullmatch(text.strip())
            if found and float(found[1]) * UNITS[found[2]] <= _LONGEST_MS:
                return round(float(found[1]) * UNITS[found[2]])
        elif isinstance(hint, type) and issubclass(hint, Enum):
            if text in {member.value for member in hint}:
                return hint(text)
        elif get_origin(hint) is Literal:
            if text in get_args(hint):
                return text
        elif hint is bool:
            if node.tag == "tag:yaml.org,2002:bool":
                return text.lower() in ("true", "yes", "on")
        elif hint is int:
            if re.fullmatch(r"[+-]?\d{1,10}", text) and abs(int(text)) <= GREATEST:
                return int(text)
        elif hint is float:
            if re.fullmatch(r"[+-]?\d{1,10}(\.\d{1,10})?", text) and abs(float(text)) <= GREATEST:
                return float(text)
        elif hint is str and node.tag != "tag:yaml.org,2002:null" and _is_text(text):
            return text
        self.problem(node, f"{what} is {shown(node)}, expected {_expected(hint)}")
        return None


def hints_of(kind: type) -> dict[str, Any]:
    """The types of the fields of `kind`; a field in milliseconds is a Duration."""

    def hint(name: str, told: Any) -> Any:
        if not name.endswith("_ms"):
            return told
        return Duration | None if NoneType in get_args(told) else Duration

    return {name: hint(name, told) for name, told in get_type_hints(kind).items()}


def shown(node: yaml.Node) -> str:
    """What stands there, for a message."""
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value) if node.value else "empty"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def instead(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is none of `known`."""
    near = _near(name, known)
    return f"; did you mean `{near[0]}`?" if near else f"; expected one of {', '.join(known)}"


def _near(key: Any, known: Iterable[str]) -> list[str]:
    """The one of `known` that `key` probably means, if there is one."""
    return difflib.get_close_matches(key, list(known), n=1) if isinstance(key, str) else []


def _is_text(text: str) -> bool:
    """Whether it has no half of a character in it, which YAML can write and no record can hold."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _expected(hint: Any) -> str:
    if hint is Duration:
        return "a duration such as 500 ms, 10 s, 30 min or 1 h, at most a year"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(member.value for member in hint)
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    return _EXPECTED.get(hint, str(hint))


_EXPECTED: Final = {
    bool: "true or false",
    int: "a whole number up to a billion",
    float: "a number up to a billion",
    str: "text",
}
