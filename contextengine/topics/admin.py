"""Makes the topics of the catalogue, and says where those on the broker differ.

Nothing relies on a broker that creates topics by itself: such a topic has the wrong number of partitions and the wrong
settings, and events in it are lost or out of order. For the same reason nothing here asks for a topic by its name.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from aiokafka import errors as kafka
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from contextengine.errors import ConfigurationError, TopicMismatch
from contextengine.topics import rulebook
from contextengine.topics.catalogue import catalogue
from contextengine.topics.errand import ANSWER_MS, errand

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from contextengine.settings import Settings
    from contextengine.topics.catalogue import Catalogue, Topic

MISSING: Final = "missing"
IGNORED_BY_EMBEDDED: Final = "the embedded broker repeats a topic's settings and acts on none of them"
AT_LEAST: Final = frozenset({"retention.ms", "min.compaction.lag.ms", "min.insync.replicas", "replication"})
"""Settings of which more does no harm; -1 is without end."""


@dataclass(frozen=True, slots=True)
class Found:
    """A topic as the broker has it; `config` holds what the broker reports, which may be little."""

    partitions: int
    replication: int
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting of a topic on the broker that is not what the catalogue says."""

    topic: str
    setting: str
    found: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.topic}: {self.setting} is {self.found}, should be {self.wanted}"


@dataclass(frozen=True, slots=True)
class Report:
    """How the topics are: `created` just now, `differences` left alone, and `notes` on what could not be checked."""

    created: tuple[str, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]


async def describe(settings: Settings) -> dict[str, Found]:
    """The topics of the catalogue that are on the broker, by name."""
    async with errand(admin_client(settings), settings) as admin:
        return await find(catalogue(settings), admin)


async def check(settings: Settings) -> Report:
    """Where the topics on the broker differ from the catalogue. Without differences a worker can start."""
    topics = catalogue(settings)
    found = await describe(settings)
    differences = list(compare(topics, found))
    if topics.rules.name in found and rulebook.LOG_ID not in await rulebook.read(settings):
        differences.append(Difference(topics.rules.name, rulebook.LOG_ID, MISSING, "there"))
    notes = [IGNORED_BY_EMBEDDED] if settings.embedded else list(unreported(topics, found))
    return Report((), tuple(differences), tuple(notes))


async def apply(settings: Settings, log_id: str) -> Report:
    """Create what is missing. What is there is never changed.

    `log_id` becomes the id of the events topic if this call creates it: something that was never used before.
    Raises TopicMismatch when partition counts are unequal or not those of the settings.
    """
    topics = catalogue(settings)
    async with errand(admin_client(settings), settings) as admin:
        found = await find(topics, admin)
        refuse_other_partitions(topics, found)
        created = await create([topic for topic in topics if topic.name not in found], admin)
        while not (await find(topics, admin)).keys() >= set(created):  # noqa: ASYNC110  the event is the broker's
            await asyncio.sleep(0.05)  # Kafka answers before it tells of a new topic
    if topics.events.name in created or not await has_log_id(settings):
        await rulebook.append(settings, rulebook.LOG_ID, log_id.encode())
    return replace(await check(settings), created=created)


def admin_client(settings: Settings) -> AIOKafkaAdminClient:
    """A client that gives up on a silent broker."""
    return AIOKafkaAdminClient(**settings.kafka_client(), request_timeout_ms=ANSWER_MS)


async def find(topics: Catalogue, admin: AIOKafkaAdminClient) -> dict[str, Found]:
    """Which of `topics` the broker has, and how."""
    wanted = {topic.name for topic in topics}
    present = {
        topic["topic"]: topic["partitions"] for topic in await admin.describe_topics() if topic["topic"] in wanted
    }
    if not present:
        return {}
    found: dict[str, Found] = {}
    for response in await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in present]):
        for code, message, _, name, entries in response.resources:
            error = kafka.for_code(code)
            if error is kafka.UnknownTopicOrPartitionError:
                continue  # it is just being deleted
            if error is not kafka.NoError:
                raise ConfigurationError(f"topic {name}: its settings cannot be read: {message or error.description}")
            replication = min(len(partition["replicas"]) for partition in present[name])
            found[name] = Found(len(present[name]), replication, {entry[0]: entry[1] for entry in entries})
    return found


async def create(missing: list[Topic], admin: AIOKafkaAdminClient) -> tuple[str, ...]:
    """Create topics, and return the names of those that nobody else has created meanwhile."""
    if not missing:
        return ()
    response = await admin.create_topics(
        [NewTopic(topic.name, topic.partitions, topic.replication, topic_configs=topic.config()) for topic in missing]
    )
    errors = {name: (kafka.for_code(code), message) for name, code, message in response.topic_errors}
    for name, (error, message) in errors.items():
        if error not in (kafka.NoError, kafka.TopicAlreadyExistsError):
            raise ConfigurationError(f"topic {name} cannot be created: {message or error.description}")
    return tuple(name for name, (error, _) in errors.items() if error is kafka.NoError)


def refuse_other_partitions(topics: Catalogue, found: Mapping[str, Found]) -> None:
    """Raise TopicMismatch for the first topic with a partition count that is not the catalogue's."""
    for topic in topics:
        if topic.name in found and found[topic.name].partitions != topic.partitions:
            raise TopicMismatch(
                topic.name,
                "partitions",
                found[topic.name].partitions,
                f"{topic.partitions} (partitions do not grow in place, since a session would change its partition: "
                "set partitions to what the topics have, or drain to a new prefix)",
            )


def compare(topics: Catalogue, found: Mapping[str, Found]) -> Iterator[Difference]:
    """Where `found` differs from `topics`. A setting that the broker does not report is no difference."""
    for topic in topics:
        there = found.get(topic.name)
        if there is None:
            yield Difference(topic.name, "topic", MISSING, "there")
            continue
        if there.partitions != topic.partitions:
            yield Difference(topic.name, "partitions", str(there.partitions), str(topic.partitions))
        has = {"replication": str(there.replication), **there.config}
        for setting, wanted in {"replication": str(topic.replication), **topic.config()}.items():
            if setting in has and not suffices(setting, has[setting], wanted):
                yield Difference(topic.name, setting, has[setting], wanted)


def unreported(topics: Catalogue, found: Mapping[str, Found]) -> Iterator[str]:
    """Which settings this broker says nothing about, so that nobody can check them."""
    for topic in topics:
        if topic.name in found and (silent := topic.config().keys() - found[topic.name].config.keys()):
            yield f"{topic.name}: {', '.join(sorted(silent))}: not reported by this broker"


def suffices(setting: str, found: str, wanted: str) -> bool:
    """Whether a topic with `found` behaves as one with `wanted`."""
    if setting in AT_LEAST:
        return found == "-1" or int(found) >= int(wanted)
    return found == wanted


async def has_log_id(settings: Settings) -> bool:
    """Whether the events topic has its id, or gets it within two seconds from whoever is just creating it."""
    for _ in range(10):
        if rulebook.LOG_ID in await rulebook.read(settings):
            return True
        await asyncio.sleep(0.2)
    return False
