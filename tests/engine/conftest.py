"""Calls for tests: rules as they stand in a file, and a conversation under them."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import dedent
from typing import Any, TypeAlias

import pytest

from contextengine.rulefile import parse_rules
from contextengine.testing import Call

CallWith: TypeAlias = Callable[..., Call]


@pytest.fixture(scope="session")
def call_with() -> CallWith:
    """Begins a call under the rules that it is given, as a list in YAML."""

    def begin(rules: str, **start: Any) -> Call:
        return Call(parse_rules("rules:\n" + dedent(rules), "rules.yaml"), **start)

    return begin
