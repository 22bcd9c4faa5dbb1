"""The style and the types of the project itself: `make test` says what `make check` says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("check", ["ruff format --check", "ruff check", "mypy"])
def test_the_project_passes_its_own_checks(check):
    # What else lies in somebody's clone is none of our business.
    ours = [] if check == "mypy" else ["contextengine", "tests", "benchmarks", "examples"]
    command = [sys.executable, "-m", *check.split(), *ours]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
