"""The two forms of the fault tests, and where their figures go.

`FAULTS=full` (what `make faults` sets) runs every test at the base load; otherwise some of them run, in a short form.
With `FAULTS_JSON=FILE` the figures are also written there.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from fleet import Load

FULL = os.environ.get("FAULTS") == "full"
_figures: dict[str, dict[str, object]] = {}


def pytest_configure(config: pytest.Config) -> None:
    """The markers that only these tests have."""
    config.addinivalue_line("markers", "faults: an installation under load, and what goes wrong with it")
    config.addinivalue_line("markers", "full_faults: a fault test that only `make faults` runs")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark these tests, and skip what only the full form runs."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("faults")
        if item.get_closest_marker("full_faults") and not FULL:
            item.add_marker(pytest.mark.skip(reason="takes too long for every run: `make faults` runs it"))


@pytest.fixture
def full() -> bool:
    """Whether this is the full form."""
    return FULL


@pytest.fixture
def base() -> Load:
    """The load under which the fault happens."""
    return Load() if FULL else Load(sessions=40, events_per_s=100, seconds=10)


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> dict[str, object]:
    """What a test measures goes in here by name; shown at the end of the run."""
    found = _figures[request.node.name] = {}
    return found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the figures, a line for each test, and write them where they are asked for."""
    if any(_figures.values()):
        terminalreporter.section("figures of the fault tests")
    for test, found in _figures.items():
        if found:
            terminalreporter.write_line(f"{test}: " + ", ".join(f"{name} {value}" for name, value in found.items()))
    if (path := os.environ.get("FAULTS_JSON")) and _figures:
        Path(path).write_text(json.dumps(_figures, indent=1, default=str) + "\n")
