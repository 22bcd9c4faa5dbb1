"""Rules from YAML: every mistake is told with file, line and column, what was found and what was expected.

The keys of a rule are the fields of `engine.rules.Rule`, those of a strategy its own; a field `x_ms` is written
`x: 10 s`. A strategy with one thing to say may be written short: `every_messages: 10`.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from hashlib import blake2b
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import yaml

from contextengine import __version__, plugins
from contextengine.engine.builders import Builder, Text, template_mistakes
from contextengine.engine.rules import Rule, RuleSet
from contextengine.engine.strategies.strategy import Strategy
from contextengine.errors import RulesInvalid
from contextengine.schemas.context import Trust

_WRITTEN: Final = {"build": "inject", "policy": "on_failure"}
_UNITS: Final = {"ms": 1, "s": 1_000, "min": 60_000, "h": 3_600_000}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|h)")
_LONGEST_MS: Final = 366 * 24 * 3_600_000
_GREATEST: Final = 10**9


def rules_hash(text: str) -> str:
    """The name of a rule set in the log: it covers the text and the engine's version."""
    return blake2b(f"{__version__}\n{text}".encode(), digest_size=12).hexdigest()


def read_text(file: Path) -> str:
    """What a rules file holds, to be parsed. RulesInvalid when it is no text in UTF-8."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RulesInvalid([f"{file}: byte {error.start + 1} is no UTF-8; rules are text (YAML)"]) from None


def parse_rules(text: str, source: str) -> RuleSet:
    """The rule set that `text` writes down. RulesInvalid lists every mistake; `source` is the file's name in them."""
    reading = _Reading(source)
    try:
        rules = reading.document(text)
    except RecursionError:
        raise RulesInvalid([f"{source}: nested too deeply, or an alias that contains itself"]) from None
    if reading.problems:
        raise RulesInvalid(reading.problems)
    return RuleSet(tuple(rules), rules_hash(text))


class _Reading:
    """One pass over one document; a value with a mistake becomes None and a problem."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[str] = []
        self._names: set[str] = set()

    def document(self, text: str) -> list[Rule]:
        try:
            root = yaml.compose(text, yaml.SafeLoader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{self.source}:{mark.line + 1}:{mark.column + 1}" if mark else self.source
            told = getattr(error, "problem", None) or getattr(error, "reason", error)
            self.problems.append(f"{where}: not YAML: {told}")
            return []
        if root is None:
            self.problems.append(f"{self.source}:1:1: the file is empty, expected `rules:` and a list of rules")
            return []
        pairs = self._pairs(root, ["rules"], "the file")
        if "rules" not in pairs:
            self._problem(root, f"no `rules`, expected a list of rules; found {_shown(root)}")
            return []
        node = pairs["rules"]
        if not isinstance(node, yaml.SequenceNode):
            self._problem(node, f"`rules` is {_shown(node)}, expected a list of rules")
            return []
        return [rule for item in node.value if (rule := self._rule(item)) is not None]

    def _rule(self, node: yaml.Node) -> Rule | None:
        """What can be said of the rule as a whole is said of one with mistakes in its parts too."""
        before = len(self.problems)
        values = self._values(node, Rule, "a rule")
        name, build = values.get("name"), values.get("build")
        if name in self._names:
            self._problem(node, f"a second rule named {name!r}; a name is used once")
        elif name is not None:
            self._names.add(name)
        if build is not None and build.quotes_people and values.get("trust", Trust.TRUSTED) is Trust.TRUSTED:
            self._problem(
                node,
                f"rule {name!r} quotes what people said (`said` or `history`), so it must say `trust: untrusted`:"
                " such text never speaks to a model with authority",
            )
        given = {part: value for part, value in values.items() if value is not None}
        rule = self._made(node, Rule, {"name": "?", "when": None, "build": None} | given, "a rule") if values else None
        return rule if isinstance(rule, Rule) and len(self.problems) == before else None

    def _value(self, node: yaml.Node, hint: Any, what: str) -> Any:  # noqa: PLR0911 - one return a kind
        if hint is Strategy:
            return self._strategy(node)
        if hint is Builder:
            return self._fields(node, Text, "inject")
        origin = get_origin(hint)
        if origin in (Union, UnionType):
            return self._union(node, get_args(hint), what)
        if origin in (tuple, list):
            return self._list(node, get_args(hint)[0], what, origin)
        if origin in (dict, Mapping):
            pairs = self._pairs(node, None, what)
            return {name: self._value(value, get_args(hint)[1], f"{what}.{name}") for name, value in pairs.items()}
        if isinstance(hint, type) and (dataclasses.is_dataclass(hint) or issubclass(hint, msgspec.Struct)):
            return self._fields(node, hint, what)
        return self._scalar(node, hint, what)

    def _strategy(self, node: yaml.Node) -> Any:
        known = plugins.names("strategies")
        if not isinstance(node, yaml.MappingNode) or len(node.value) != 1:
            self._problem(node, f"`when` is {_shown(node)}, expected exactly one of {', '.join(known)}")
            return None
        pairs = self._pairs(node, known, "`when`")
        if not pairs:
            return None
        ((name, value),) = pairs.items()
        strategy = plugins.load("strategies", name)
        if not isinstance(value, yaml.MappingNode):
            first = next(field for field in dataclasses.fields(strategy) if field.init)
            value = _mapping(_written(first.name), value)
        return self._fields(value, strategy, name)

    def _fields(self, node: yaml.Node, kind: type, what: str) -> Any:
        before = len(self.problems)
        values = self._values(node, kind, what)
        if kind is Text:
            for text in _texts(node):
                for mistake in template_mistakes(text.value):
                    self._problem(text, mistake)
        return self._made(node, kind, values, what) if len(self.problems) == before else None

    def _values(self, node: yaml.Node, kind: type, what: str) -> dict[str, Any]:
        """The values of the fields of `kind` that are given, by the fields' names; None stands for a mistake."""
        hints = get_type_hints(kind)
        fields = {_written(name): (name, required) for name, required in _fields_of(kind)}
        pairs = self._pairs(node, fields, what)
        if not isinstance(node, yaml.MappingNode):
            return {}
        meant = {near for key, _ in node.value for near in _near(key.value, fields)}
        missing = [written for written, (_, required) in fields.items() if required and written not in {*pairs, *meant}]
        if missing:
            self._problem(node, f"{what} lacks {', '.join(f'`{name}`' for name in missing)}")
        values = {}
        for written, value in pairs.items():
            name = fields[written][0]
            hint = hints[name]
            if name.endswith("_ms"):
                hint = _Duration | None if NoneType in get_args(hint) else _Duration
            values[name] = self._value(value, hint, f"`{written}`")
        return values

    def _made(self, node: yaml.Node, kind: type, values: dict[str, Any], what: str) -> Any:
        try:
            return kind(**values)
        except (TypeError, ValueError) as error:
            self._problem(node, f"{what}: {error}")
            return None

    def _pairs(self, node: yaml.Node, known: Iterable[str] | None, what: str) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self._problem(node, f"{what} is {_shown(node)}, expected `name: value` pairs")
            return {}
        pairs: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or not _is_text(key.value):
                self._problem(key, f"a name in {what} is {_shown(key)}, expected text")
            elif key.value in pairs:
                self._problem(key, f"{what} says `{key.value}` twice")
            elif known is not None and key.value not in known:
                near = _near(key.value, known)
                hint = f"; did you mean `{near[0]}`?" if near else f"; expected one of {', '.join(known)}"
                self._problem(key, f"{what} knows no `{key.value}`{hint}")
            else:
                pairs[key.value] = value
        return pairs

    def _union(self, node: yaml.Node, members: tuple[Any, ...], what: str) -> Any:
        if NoneType in members and isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
            return None
        rest = [member for member in members if member is not NoneType]
        if isinstance(node, yaml.SequenceNode):
            rest.sort(key=lambda member: get_origin(member) is None)
        return self._value(node, rest[0], what)

    def _list(self, node: yaml.Node, hint: Any, what: str, kind: type) -> Any:
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        return kind(self._value(item, hint, what) for item in items)

    def _scalar(self, node: yaml.Node, hint: Any, what: str) -> Any:  # noqa: C901, PLR0911 - one branch a kind
        if not isinstance(node, yaml.ScalarNode):
            self._problem(node, f"{what} is {_shown(node)}, expected {_expected(hint)}")
            return None
        text = node.value
        if hint is _Duration:
            found = _DURATION.fullmatch(text.strip())
            if found and float(found[1]) * _UNITS[found[2]] <= _LONGEST_MS:
                return round(float(found[1]) * _UNITS[found[2]])
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
            if re.fullmatch(r"[+-]?\d{1,10}", text) and abs(int(text)) <= _GREATEST:
                return int(text)
        elif hint is str and node.tag != "tag:yaml.org,2002:null" and _is_text(text):
            return text
        self._problem(node, f"{what} is {_shown(node)}, expected {_expected(hint)}")
        return None

    def _problem(self, node: yaml.Node, told: str) -> None:
        mark = node.start_mark
        self.problems.append(f"{self.source}:{mark.line + 1}:{mark.column + 1}: {told}")


class _Duration:
    """Stands for a field in milliseconds that people write with its unit."""


def _fields_of(kind: Any) -> list[tuple[str, bool]]:
    """The fields that may be given, each with whether it must be."""
    if issubclass(kind, msgspec.Struct):
        return [(field.name, field.required) for field in msgspec.structs.fields(kind)]
    none = dataclasses.MISSING
    return [
        (field.name, field.default is none and field.default_factory is none)
        for field in dataclasses.fields(kind)
        if field.init
    ]


def _near(key: Any, known: Iterable[str]) -> list[str]:
    """The one of `known` that `key` probably means, if there is one."""
    return difflib.get_close_matches(key, list(known), n=1) if isinstance(key, str) else []


def _texts(inject: yaml.Node) -> list[yaml.ScalarNode]:
    """The texts that `inject` fills its dimensions with."""
    told = [told for dimension in _values_of(inject) for told in _values_of(dimension)]
    texts = [text for each in told for text in (each.value if isinstance(each, yaml.SequenceNode) else [each])]
    return [text for text in texts if isinstance(text, yaml.ScalarNode)]


def _values_of(node: yaml.Node) -> list[yaml.Node]:
    return [value for _, value in node.value] if isinstance(node, yaml.MappingNode) else []


def _written(name: str) -> str:
    return _WRITTEN.get(name, name.removesuffix("_ms"))


def _mapping(name: str, value: yaml.Node) -> yaml.MappingNode:
    key = yaml.ScalarNode("tag:yaml.org,2002:str", name, value.start_mark, value.end_mark)
    return yaml.MappingNode("tag:yaml.org,2002:map", [(key, value)], value.start_mark, value.end_mark)


def _is_text(text: str) -> bool:
    """Whether it has no half of a character in it, which YAML can write and no record can hold."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value) if node.value else "empty"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def _expected(hint: Any) -> str:
    if hint is _Duration:
        return "a duration such as 500 ms, 10 s, 30 min or 1 h, at most a year"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(member.value for member in hint)
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    return {bool: "true or false", int: "a whole number up to a billion", str: "text"}.get(hint, str(hint))
