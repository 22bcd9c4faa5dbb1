"""The JSON Schema of rules files: what editors check with it is what the engine reads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import fastjsonschema
import pytest
import yaml

import contextengine
from contextengine.rules_schema import SHIPPED, built_in, schema_of, schema_text

ROOT = Path(__file__).parents[1]
FILES = [
    Path(contextengine.__file__).parent / "demo" / "rules.yaml",
    *sorted((ROOT / "tests" / "sessions" / "rules").glob("*.yaml")),
    *(file for file in sorted((ROOT / "examples").rglob("*.yaml")) if "rules:" in file.read_text()),
]
DOCS = [
    block
    for page in (ROOT / "README.md", ROOT / "docs" / "rules.md")
    for block in re.findall(r"```yaml\n(rules:\n.*?)```", page.read_text(), re.DOTALL)
]


class AsEditorsDo(yaml.SafeLoader):
    """Reads YAML 1.2, as editors do: `on` and `yes` are text there."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


AsEditorsDo.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("(true|false)$"), list("tf"))


@pytest.fixture(scope="module")
def valid():
    """Raise JsonSchemaException for what the shipped schema does not allow."""
    return fastjsonschema.compile(json.loads(SHIPPED.read_text()))


def test_the_shipped_schema_is_what_the_classes_say():
    assert SHIPPED.read_text() == schema_text(built_in()), "run: python -m contextengine.rules_schema"


@pytest.mark.parametrize("text", [*(file.read_text() for file in FILES), *DOCS], ids=lambda text: text[:20])
def test_it_allows_the_rules_that_the_project_shows(valid, text):
    valid(yaml.load(text, AsEditorsDo))  # noqa: S506  a safe loader


def rule(**keys):
    """A file with one rule."""
    return {"rules": [{"name": "r", "when": {"keyword": "a"}, "inject": {"information": {"a": "b"}}} | keys]}


@pytest.mark.parametrize(
    "keys",
    [
        {"when": {"keyword": ["a", 12, True]}},
        {"when": {"keyword": {"any_of": ["a"], "speaker": None}}},
        {"when": {"every_messages": 3}},
        {"when": {"every": "1.5 min"}},
        {"when": {"all": [{"keyword": "a"}, {"emotion": {"any_of": "joy", "implied": 0.5}}]}},
        {"ttl": "10s", "fallback": None, "shadow": True, "place": "silence"},
        {"on_failure": {"strategy": "retry_async", "max_attempts": 4, "delay": "2 s"}},
    ],
)
def test_it_allows_what_can_be_read(valid, keys):
    valid(rule(**keys))


@pytest.mark.parametrize(
    "keys",
    [
        {"wehn": {"keyword": "a"}},
        {"when": {"key_word": "a"}},
        {"when": {"keyword": "a", "emotion": "joy"}},
        {"when": {}},
        {"when": "keyword"},
        {"when": {"keyword": {"speaker": "user"}}},
        {"when": {"keyword": {"any_of": "a", "speaker": "customer"}}},
        {"when": {"every": 10}},
        {"when": {"every_messages": "ten"}},
        {"when": {"all": [{"keyword": "a"}, {"keywrd": "b"}]}},
        {"inject": {"informaton": {"a": "b"}}},
        {"inject": {"strategy": "calm"}},
        {"ttl": "soon"},
        {"ttl_ms": 10},
        {"place": "nowhere"},
        {"shadow": "maybe"},
        {"on_failure": "skip"},
        {"name": None},
    ],
)
def test_it_refuses_what_cannot_be_read(valid, keys):
    with pytest.raises(fastjsonschema.JsonSchemaException):
        valid(rule(**keys))


def test_every_part_of_it_says_what_it_is():
    strategies = schema_of(built_in())["definitions"]["strategy"]["properties"]
    assert [name for name, part in strategies.items() if not part["description"]] == []
    assert "_ms`" not in json.dumps(schema_of(built_in()))
