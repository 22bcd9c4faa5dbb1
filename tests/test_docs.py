"""What the docs promise to list, they list."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from contextengine import plugins
from contextengine.engine.filters import FILTERS
from contextengine.engine.rules import Rule
from contextengine.monitoring import metrics
from contextengine.rulefile import parse_rules
from contextengine.settings import Settings

ROOT = Path(__file__).parents[1]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
RULES = (ROOT / "docs" / "rules.md").read_text()


def test_every_setting_is_in_the_operations_page():
    assert [name for name in Settings.model_fields if f"`{name}`" not in OPERATIONS] == []


def test_every_metric_is_in_the_operations_page():
    names = [metric._name for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)]
    assert names
    assert [name for name in names if f"`{name}" not in OPERATIONS] == []


def test_every_strategy_filter_and_key_of_a_rule_is_in_the_rules_page():
    keys = {field.name.removesuffix("_ms") for field in fields(Rule) if field.init} - {"build", "policy"} | {
        "inject",
        "on_failure",
    }
    names = {*plugins.names("strategies"), *FILTERS, *keys} - {"when", "name"}
    assert sorted(name for name in names if f"`{name}`" not in RULES) == []


def test_the_rules_in_the_readme_and_the_docs_are_valid():
    for page in (ROOT / "README.md").read_text(), RULES:
        for block in re.findall(r"```yaml\n(rules:\n.*?)```", page, re.DOTALL):
            assert parse_rules(block, "the docs").rules
