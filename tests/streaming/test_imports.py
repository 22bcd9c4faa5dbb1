"""A VoiceEngine loads neither Faust nor a provider's SDK."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "contextengine.topics.publisher",
        "contextengine.streaming.injections",
        "contextengine.adapters.consumer",
        "contextengine.adapters.delay_line",
    ],
)
def test_importing_it_loads_neither_faust_nor_openai(module):
    code = f"import {module}, sys; print([name for name in ('faust', 'openai', 'mode') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"
