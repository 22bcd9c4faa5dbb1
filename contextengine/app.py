"""Where the rooms meet: the worker's Faust app, and the process around it.

`build_app` builds and starts nothing; importing this module starts nothing either.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import faust
from aiokafka.errors import KafkaError
from faust.auth import Credentials
from faust.types import TP
from msgspec import Struct

from contextengine import __version__
from contextengine.agents.lag import PartitionLag
from contextengine.agents.outbox import Outbox
from contextengine.agents.rule_sets import RuleSets
from contextengine.agents.sessions import SessionsAgent
from contextengine.agents.timers import Timers
from contextengine.agents.transport import FAUST_SETTINGS, QUEUED_BATCHES, BatchTopic, install
from contextengine.errors import BrokerUnavailable, ConfigurationError, ContextEngineError, LogReplaced
from contextengine.monitoring.health import Health, silence
from contextengine.monitoring.metrics import PARTITIONS_HALTED
from contextengine.rulefile import parse_rules, rules_hash
from contextengine.schemas.codec import Codec
from contextengine.schemas.events import PartitionAssigned, RulesChanged, SwitchesChanged, Tick
from contextengine.schemas.session import State, dump_state, load_state
from contextengine.settings import Settings
from contextengine.tables.live import LiveTable
from contextengine.topics import admin, rulebook
from contextengine.topics.broadcast import broadcast
from contextengine.topics.catalogue import SESSIONS_TABLE, Catalogue, catalogue
from contextengine.topics.registry import codec_of

log = logging.getLogger(__name__)

PARTITIONS_OWNED = "partitions owned and restored"
BROKER_ANSWERS = "the broker answers"
ALL_GO_ON = "every partition goes on"

CHECK_TOPICS_S = 30


class StateAsJson:
    """The codec of the sessions table, which writes states of one version."""

    decode = staticmethod(load_state)

    def __init__(self, version: int) -> None:
        self._version = version

    def encode(self, state: State) -> bytes:
        """See StateCodec."""
        return dump_state(state, self._version)


@dataclass(slots=True)
class Worker:
    """A worker's app, and what belongs to it."""

    app: faust.App
    agent: SessionsAgent
    rule_sets: RuleSets
    timers: Timers
    topics: Catalogue
    health: Health
    name: str
    lag: PartitionLag
    codec: Codec
    broker: str
    halted: dict[int, str] = field(default_factory=dict)

    async def take_over(self, partitions: Iterable[int]) -> None:
        """Mark each partition's log, check that it is the one we know, and wait for its timers again."""
        self.halted.clear()
        PARTITIONS_HALTED.set(0)
        self.health.meet(ALL_GO_ON)
        await self.check_topics()
        events = {number: TP(self.topics.events.name, number) for number in partitions}
        starts = await self.app.consumer.earliest_offsets(*events.values())
        for number, tp in events.items():
            generation = int(self.app.consumer_generation_id)
            assigned = PartitionAssigned(worker=self.name, generation=generation, engine=__version__)
            self.timers.own(number)
            offset, _ = await self.append(number, assigned)
            async with self.agent.lock(number):
                partition = self.agent.partition(number)
                self.agent.check_log(number, start=starts[tp], end=offset)
            newest = self.rule_sets
            if newest.version > partition.rules_version:
                await self.append(number, RulesChanged(version=newest.version, rules_hash=newest.latest))
            if newest.switches_version > partition.switches_version:
                await self.append(number, SwitchesChanged(version=newest.switches_version, off=newest.off))
            self.agent.rearm(number)
            self.lag.watch(number)
        # Durable before the first record: begun anew after a kill, a partition could be judged by other rules.
        await self.app.consumer.commit()
        self.health.meet(PARTITIONS_OWNED)

    async def check_topics(self) -> None:
        """Read the rules topic again, however long that takes.

        Raises ConfigurationError when a topic is gone, which may be why there are no partitions to take over, and
        LogReplaced when the events topic was made anew since this worker began.
        """
        log_id = self.rule_sets.log_id
        client = cast("Any", self.app.producer)._producer.client  # noqa: SLF001
        while True:
            try:
                await rulebook.must_exist(self.topics.events.name, client)
                await self.rule_sets.refresh()
                break
            except (BrokerUnavailable, KafkaError) as unanswered:
                log.warning("the topics cannot be checked, trying again: %s", unanswered)
                await asyncio.sleep(1)
        if self.rule_sets.log_id != log_id:
            raise LogReplaced(
                f"{self.topics.events.name}: its log id is {self.rule_sets.log_id or 'none'}, this worker began with"
                f" {log_id}: it was recreated. The worker says at its next start what to do"
            )

    async def let_go(self, partitions: Iterable[int]) -> None:
        """Somebody else may own these partitions soon."""
        self.health.miss(PARTITIONS_OWNED, "rebalancing")
        for number in partitions:
            self.timers.disown(number)
            self.lag.leave(number)

    def halt(self, partition: int, why: str) -> None:
        """The broker has refused a record of this partition, which goes no further until it is assigned anew."""
        self.halted[partition] = why
        PARTITIONS_HALTED.set(len(self.halted))
        told = "; ".join(f"partition {number}: {refusal}" for number, refusal in sorted(self.halted.items()))
        self.health.miss(ALL_GO_ON, f"halted, uncommitted: {told}; when that is mended, restart this worker")

    async def watch_broker(self) -> None:
        """Keep saying whether the worker's group answers its heartbeats, until cancelled."""
        why = ""
        while True:
            silent_s = cast("Any", self.app.consumer)._thread.silent_s()  # noqa: SLF001
            if silent_s < self.app.conf.broker_session_timeout:
                why = ""
                self.health.meet(BROKER_ANSWERS)
            elif silent_s < math.inf:
                why = why or silence(self.broker, silent_s)
                self.health.miss(BROKER_ANSWERS, why)
            await asyncio.sleep(1)

    async def watch_topics(self) -> None:
        """Check the topics twice a minute, until cancelled; the worker stops when they are not the ones it began with.

        An assignment checks them too, and may come a moment too early, or not at all: made anew at once, the events
        topic has as many partitions as before.
        """
        while True:
            await asyncio.sleep(CHECK_TOPICS_S)
            try:
                await self.check_topics()
            except ConfigurationError as replaced:
                await cast("Any", self.app.consumer)._fail("a check of the topics", replaced)  # noqa: SLF001

    async def append(self, partition: int, event: Struct, key: bytes | None = None) -> tuple[int, int]:
        """Append a record of our own to the events topic; its offset and append time, once acknowledged."""
        # Faust's own send would choose the partition by the key.
        producer = cast("Any", self.app.producer)._producer  # noqa: SLF001
        sent = await producer.send(self.topics.events.name, self.codec.encode(event), key=key, partition=partition)
        acknowledged = await sent
        self.timers.learn(partition, acknowledged.timestamp)
        return acknowledged.offset, acknowledged.timestamp


def _credentials(settings: Settings) -> Credentials | None:
    """How Faust's own clients talk to the broker."""
    client = settings.kafka_client()
    context = client["ssl_context"]
    if "sasl_oauth_token_provider" in client:
        return faust.OAuthCredentials(oauth_cb=client["sasl_oauth_token_provider"], ssl_context=context)
    if "sasl_mechanism" in client:
        return faust.SASLCredentials(
            mechanism=client["sasl_mechanism"],
            username=client["sasl_plain_username"],
            password=client["sasl_plain_password"],
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context is not None else None


def build_app(settings: Settings) -> Worker:
    """The worker that these settings ask for; `worker.app.start()` starts it, in the running event loop."""
    topics, codec = catalogue(settings), codec_of(settings)
    name = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    app = faust.App(
        settings.worker_group,
        broker=[f"kafka://{address}" for address in settings.kafka_client()["bootstrap_servers"]],
        broker_credentials=_credentials(settings),
        autodiscover=False,
        datadir=str(settings.data_dir),
        topic_partitions=settings.partitions,
        broker_session_timeout=settings.session_timeout_ms / 1_000,
        broker_heartbeat_interval=settings.session_timeout_ms / 4_000,
        **{**FAUST_SETTINGS, "broker_commit_interval": settings.commit_interval_ms / 1_000},
    )
    table: LiveTable[State] = LiveTable(
        app,
        SESSIONS_TABLE,
        StateAsJson(settings.state_version),
        store=f"{settings.state_store}://",
        partitions=settings.partitions,
    )
    outbox = Outbox(app, {topic.name: topic.max_message_bytes for topic in topics})
    rule_sets = RuleSets(lambda: rulebook.read(settings), parse_rules)

    async def publish_tick(partition: int, tick: Tick) -> int:
        _, append_ms = await worker.append(partition, tick, tick.session_id.encode())
        return append_ms

    def is_armed(partition: int, session_id: str, timer: str, due_ms: int) -> bool:
        return agent.is_armed(partition, session_id, timer, due_ms)

    timers = Timers(publish_tick, is_armed)
    lag = PartitionLag(app, topics.events.name, timers.now_ms)
    agent = SessionsAgent(
        topics, table, outbox, rule_sets, timers, lag, codec, group=settings.worker_group, worker=name
    )
    health = Health(PARTITIONS_OWNED, BROKER_ANSWERS, ALL_GO_ON)
    worker = Worker(app, agent, rule_sets, timers, topics, health, name, lag, codec, settings.broker)
    events = app.topic(topics.events.name, key_serializer="raw", value_serializer="raw", maxsize=QUEUED_BATCHES)
    app.agent(events, name="sessions")(agent.run)
    app.task(timers.run)
    app.task(worker.watch_broker)
    app.task(worker.watch_topics)
    install(
        app,
        BatchTopic(
            topics.events.name,
            table,
            outbox,
            on_assigned=worker.take_over,
            on_revoked=worker.let_go,
            on_halted=worker.halt,
        ),
        idempotent=not settings.embedded,
    )
    return worker


async def run_worker(settings: Settings, rules_text: str | None, stop: asyncio.Event, worker: Worker) -> None:
    """Run a worker until `stop`: then finish what is in hand, flush, commit and leave the group.

    `rules_text` is put in force if it is not the newest rule set. Raises what made the worker stop by itself.
    """
    differences = (await admin.check(settings)).differences
    if differences:
        told = "\n".join(str(difference) for difference in differences)
        raise ConfigurationError(f"{told}\nrun `contextengine topics apply` first")
    if rules_text is not None:
        await publish_rules(settings, rules_text)
    await worker.rule_sets.refresh()
    if worker.rule_sets.latest:
        await worker.rule_sets.of(worker.rule_sets.latest)
    else:
        log.warning("no rules are in force, so nothing is injected: give this or another worker --rules FILE")
    await worker.app.start()
    try:
        await worker.app.wait(stop.wait())
    finally:
        await worker.app.stop()
    reason = worker.app.crash_reason
    if reason is not None:
        raise (
            reason if isinstance(reason, ContextEngineError) else ContextEngineError(f"the worker stopped: {reason!r}")
        )


async def publish_rules(settings: Settings, text: str) -> None:
    """Put a rule set in force in every partition. RulesInvalid when it is none.

    It is stored unless it is the newest already, and broadcast in any case: whoever was interrupted between the two is
    finished by the next one, and a partition that knows it ignores it.
    """
    parse_rules(text, "rules")
    name = rules_hash(text)
    latest, version = rulebook.newest(await rulebook.read(settings))
    if latest != name:
        version = await rulebook.append(settings, name, text.encode())
    await broadcast(settings, RulesChanged(version=version, rules_hash=name))
