"""`make test` says which brokers it had, and `--brokers=all` demands them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ON_KAFKA = Path(__file__).parents[1] / "topics" / "test_admin.py"


@pytest.mark.parametrize(("options", "code", "outcome"), [([], 0, "SKIPPED"), (["--brokers=all"], 1, "ERROR")])
def test_a_machine_without_apache_kafka_says_so_and_passes_only_where_it_is_not_demanded(
    options, code, outcome, tmp_path
):
    bare = {**os.environ, "PATH": "", "XDG_CACHE_HOME": str(tmp_path)}  # no Docker, no Java, no Maven, no jars
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        *options,
        str(ON_KAFKA),
        "-k",
        "agree and apache",
    ]
    ran = subprocess.run(command, env=bare, capture_output=True, text=True, check=False)
    assert ran.returncode == code, ran.stdout
    assert "broker: Apache Kafka: missing: " in ran.stdout
    assert outcome in ran.stdout
