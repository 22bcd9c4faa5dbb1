"""Rules from YAML: every mistake is told with file, line and column, what was found and what was expected.

The keys of a rule are the fields of `engine.rules.Rule`, those of a strategy its own. A strategy with one thing to say
may be written short: `every_messages: 10`.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, Final

import yaml

from contextengine import __version__, plugins
from contextengine.engine.builders import Builder, Text, template_mistakes
from contextengine.engine.conditions import Condition
from contextengine.engine.rules import Rule, RuleSet
from contextengine.engine.strategies.strategy import Strategy
from contextengine.errors import RulesInvalid
from contextengine.schemas.context import Trust
from contextengine.yamlfile import Reading, shown

_BEGINS: Final = re.compile(r"(?:\A|\n)--- # file: (.+)\n")
"""What stands before each file of a folder, where they are joined to one text."""


def rules_hash(text: str) -> str:
    """The name of a rule set in the log: it covers the text and the engine's version."""
    return blake2b(f"{__version__}\n{text}".encode(), digest_size=12).hexdigest()


def read_text(path: Path) -> str:
    """What a rules file holds, to be parsed; of a folder, what all its files hold, by their names.

    Files of scenarios are left out (`*.test.yaml`). RulesInvalid when there is no file, or one is no text in UTF-8.
    """
    if not path.is_dir():
        return _text_of(path)
    files = sorted(file for file in path.glob("[!.]*.yaml") if not file.name.endswith(".test.yaml"))
    if not files:
        raise RulesInvalid([f"{path}: no rules in this folder, expected files named *.yaml"])
    return "\n".join(f"--- # file: {file.name}\n{_text_of(file)}" for file in files)


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RulesInvalid([f"{file}: byte {error.start + 1} is no UTF-8; rules are text (YAML)"]) from None


def parse_rules(text: str, source: str) -> RuleSet:
    """The rule set that `text` writes down. RulesInvalid lists every mistake; `source` is the file's name in them."""
    return parse_and_place(text, source)[0]


def parse_and_place(text: str, source: str) -> tuple[RuleSet, dict[str, str]]:
    """The rule set, and where each of its rules begins (file, line and column) by its name."""
    reading = RulesReading()
    rules = reading.read(_files(text, source), "rules", reading.rule)
    return RuleSet(tuple(rule for rule in rules if rule is not None), rules_hash(text)), reading.places


def _files(text: str, source: str) -> dict[str, str]:
    """The texts of the files that `read_text` has joined, by their names."""
    if not _BEGINS.match(text):
        return {source: text}
    _, *joined = _BEGINS.split(text)
    return {f"{source}/{name}": part for name, part in zip(joined[::2], joined[1::2], strict=True)}


class RulesReading(Reading):
    """One pass over the files of a rule set."""

    renamed: ClassVar = {"build": "inject", "condition": "if", "policy": "on_failure"}

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, str] = {}

    def rule(self, node: yaml.Node) -> Rule | None:
        """What can be said of the rule as a whole is said of one with mistakes in its parts too."""
        before = len(self.problems)
        values = self.values(node, Rule, "a rule")
        name, build = values.get("name"), values.get("build")
        if name in self.places:
            self.problem(node, f"a second rule named {name!r}; a name is used once")
        elif name is not None:
            self.places[name] = self.place(node)
        if build is not None and build.quotes_people and values.get("trust", Trust.TRUSTED) is Trust.TRUSTED:
            self.problem(
                node,
                f"rule {name!r} quotes what people said (`said` or `history`), so it must say `trust: untrusted`:"
                " such text never speaks to a model with authority",
            )
        given = {part: value for part, value in values.items() if value is not None}
        rule = self.made(node, Rule, {"name": "?", "when": None, "build": None} | given, "a rule") if values else None
        return rule if isinstance(rule, Rule) and len(self.problems) == before else None

    def value(self, node: yaml.Node, hint: Any, what: str) -> Any:
        """A strategy by its name, a text with its templates, a condition by its text; the rest as it stands."""
        if hint is Strategy:
            return self._strategy(node)
        if hint is Builder:
            return self._text(node)
        if hint is Condition:
            return self._condition(node, what)
        return super().value(node, hint, what)

    def _strategy(self, node: yaml.Node) -> Any:
        known = plugins.names("strategies")
        if not isinstance(node, yaml.MappingNode) or len(node.value) != 1:
            self.problem(node, f"`when` is {shown(node)}, expected exactly one of {', '.join(known)}")
            return None
        pairs = self.pairs(node, known, "`when`")
        if not pairs:
            return None
        ((name, value),) = pairs.items()
        strategy = plugins.load("strategies", name)
        fields = [self.written(field) for field, _ in self.fields_of(strategy)]
        if not isinstance(value, yaml.MappingNode) or self._is_strategy(value, fields):
            value = _mapping(fields[0], value)
        return self.made_of_fields(value, strategy, name)

    def _is_strategy(self, node: yaml.MappingNode, fields: list[str]) -> bool:
        """Whether a strategy stands where the fields of another one could: its first field, written short."""
        names = [key.value for key, _ in node.value]
        return len(names) == 1 and names[0] not in fields and names[0] in plugins.names("strategies")

    def _text(self, node: yaml.Node) -> Any:
        before = len(self.problems)
        values = self.values(node, Text, "inject")
        for text in _texts(node):
            for mistake in template_mistakes(text.value):
                self.problem(text, mistake)
        return self.made(node, Text, values, "inject") if len(self.problems) == before else None

    def _condition(self, node: yaml.Node, what: str) -> Condition | None:
        text = super().value(node, str, what)
        try:
            return None if text is None else Condition(text)
        except ValueError as error:
            self.problem(node, str(error))
            return None


def _texts(inject: yaml.Node) -> list[yaml.ScalarNode]:
    """The texts that `inject` fills its dimensions with."""
    told = [told for dimension in _values_of(inject) for told in _values_of(dimension)]
    texts = [text for each in told for text in (each.value if isinstance(each, yaml.SequenceNode) else [each])]
    return [text for text in texts if isinstance(text, yaml.ScalarNode)]


def _values_of(node: yaml.Node) -> list[yaml.Node]:
    return [value for _, value in node.value] if isinstance(node, yaml.MappingNode) else []


def _mapping(name: str, value: yaml.Node) -> yaml.MappingNode:
    key = yaml.ScalarNode("tag:yaml.org,2002:str", name, value.start_mark, value.end_mark)
    return yaml.MappingNode("tag:yaml.org,2002:map", [(key, value)], value.start_mark, value.end_mark)
