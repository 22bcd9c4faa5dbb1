"""The JSON Schema of rules files, made from the classes that rules are made of: with it editors complete and check.

`python -m contextengine.rules_schema` ships it, with the built-in strategies alone.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

from contextengine import plugins
from contextengine.engine.builders import Builder, Text
from contextengine.engine.conditions import Condition
from contextengine.engine.rules import Rule
from contextengine.engine.strategies.strategy import Strategy
from contextengine.rulefile import RulesReading
from contextengine.yamlfile import DURATION, GREATEST, Duration, hints_of

SHIPPED: Final = Path(__file__).parent / "rules.schema.json"
_RULES: Final = RulesReading()
_SIMPLE: Final[Mapping[Any, dict[str, Any]]] = {
    Strategy: {"$ref": "#/definitions/strategy"},
    Duration: {"$ref": "#/definitions/duration"},
    str: {"$ref": "#/definitions/text"},
    Condition: {"$ref": "#/definitions/text"},
    NoneType: {"type": "null"},
    bool: {"type": "boolean"},
    int: {"type": "integer", "minimum": -GREATEST, "maximum": GREATEST},
    float: {"type": "number", "minimum": -GREATEST, "maximum": GREATEST},
}


def schema_of(strategies: Iterable[str]) -> dict[str, Any]:
    """The schema of rules files in which these strategies may stand."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Rules of ContextEngine",
        **_object({"rules": {"type": "array", "items": {"$ref": "#/definitions/rule"}}}, ["rules"]),
        "definitions": {
            "rule": _fields(Rule),
            "strategy": _object({name: _strategy(plugins.load("strategies", name)) for name in strategies}, [])
            | {"minProperties": 1, "maxProperties": 1},
            "duration": {"type": "string", "pattern": rf"^\s*{DURATION.pattern}\s*$"},
            "text": {"type": ["string", "number", "boolean"]},  # what YAML takes for another scalar is text here
        },
    }


def built_in() -> list[str]:
    """The strategies that come with this package."""
    ours = f"{__package__}."
    return [
        name for name in plugins.names("strategies") if plugins.load("strategies", name).__module__.startswith(ours)
    ]


def schema_text(strategies: Iterable[str]) -> str:
    """The schema as a file."""
    return json.dumps(schema_of(strategies), indent=2) + "\n"


def _strategy(kind: type) -> dict[str, Any]:
    """The fields of a strategy, or its first one alone where the others need not be given."""
    first, *others = _RULES.fields_of(kind)
    whole = _fields(kind)
    if any(required for _, required in others):
        return whole
    return {"description": whole.pop("description"), "anyOf": [_schema(hints_of(kind)[first[0]]), whole]}


def _fields(kind: type) -> dict[str, Any]:
    hints, fields = hints_of(kind), _RULES.fields_of(kind)
    required = [_RULES.written(name) for name, is_required in fields if is_required]
    properties = {_RULES.written(name): _schema(hints[name]) for name, _ in fields}
    told = re.sub(r"`(\w+)_ms`", r"`\1`", inspect.getdoc(kind) or "")
    return {"description": told, **_object(properties, required)}


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _schema(hint: Any) -> dict[str, Any]:  # noqa: PLR0911 - one return a kind
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    if hint is Builder:
        return _fields(Text)
    if origin in (Union, UnionType):
        lists = [get_args(member)[0] for member in arguments if get_origin(member) in (tuple, list)]
        members = [_schema(member) for member in arguments if member not in lists]
        return members[0] if len(members) == 1 else {"anyOf": members}
    if origin in (tuple, list):
        item = _schema(arguments[0])
        return {"anyOf": [item, {"type": "array", "items": item}]}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": _schema(arguments[1])}
    if origin is Literal:
        return {"enum": list(arguments)}
    if issubclass(hint, Enum):
        return {"enum": [member.value for member in hint]}
    return _fields(hint)


if __name__ == "__main__":
    SHIPPED.write_text(schema_text(built_in()))
