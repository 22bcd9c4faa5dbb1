"""Calls that were held through a real worker and a real delivery consumer, once for all tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from contextengine.settings import Settings

sys.path.append(str(Path(__file__).parents[1] / "adapters"))


@pytest.fixture(scope="session")
def held(broker: str) -> Settings:
    """The installation on the embedded broker in which the calls were held; its processes have ended."""
    from held_calls import hold  # noqa: PLC0415  found once this file is

    return hold(broker, embedded=True)


@pytest.fixture(scope="session")
def held_on_kafka(kafka: str) -> Settings:
    """As `held`, on Apache Kafka."""
    from held_calls import hold  # noqa: PLC0415

    return hold(kafka, embedded=False)
