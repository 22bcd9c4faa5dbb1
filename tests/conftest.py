"""Brokers for the tests, started when the first test asks for one."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from contextengine.broker import EmbeddedBroker
from contextengine.settings import Settings, load

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    """The address of an embedded broker."""
    with EmbeddedBroker() as embedded:
        yield embedded.bootstrap


@pytest.fixture(scope="session")
def kafka() -> Iterator[str]:
    """The address of an Apache Kafka; where none can be run, the test is skipped and says why."""
    sys.path.append(str(BENCHMARKS))
    from apache_kafka import ApacheKafka, KafkaUnavailable  # noqa: PLC0415

    try:
        apache = ApacheKafka().start()
    except KafkaUnavailable as reason:
        pytest.skip(f"no Apache Kafka on this machine: {reason}")
    yield apache.bootstrap
    apache.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with the broker that it asks for, so that `-m "not broker"` means it."""
    for item in items:
        for fixture in ("broker", "kafka"):
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(fixture)


def fresh(broker: str, *, embedded: bool) -> Settings:
    """Settings with topics of their own."""
    return load(environ={}, broker=broker, embedded=embedded, partitions=4, prefix=f"test-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def settings(broker: str) -> Settings:
    """Settings for the embedded broker, with topics of their own, which do not exist yet."""
    return fresh(broker, embedded=True)


@pytest.fixture(
    params=[pytest.param("embedded", marks=pytest.mark.broker), pytest.param("apache", marks=pytest.mark.kafka)]
)
def any_settings(request: pytest.FixtureRequest) -> Settings:
    """As `settings`, once for the embedded broker and once for Apache Kafka."""
    on_embedded = request.param == "embedded"
    return fresh(request.getfixturevalue("broker" if on_embedded else "kafka"), embedded=on_embedded)
