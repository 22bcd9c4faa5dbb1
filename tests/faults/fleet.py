"""An installation under load: its processes, a simulated provider, conversations, and a judge of what came of them.

    async with Fleet(kafka, tmp_path, workers=3) as fleet:
        async with fleet.under(Load(sessions=40, events_per_s=100, seconds=10)) as load:
            await asyncio.sleep(3)
            fleet.workers[0].kill()
            await fleet.workers[0].start()
        proof = await verify(fleet, load)

Workers and delivery consumers are real processes; the provider and the conversations live in the test's own process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final, Self
from urllib.request import urlopen

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from broker_log import read, read_raw, until

from contextengine.adapters.simulators.openai_realtime import RealtimeSimulator
from contextengine.app import publish_rules
from contextengine.broker import free_port
from contextengine.errors import UndecodableRecord
from contextengine.replay.audit import Report, audit
from contextengine.schemas.codec import decode
from contextengine.schemas.events import (
    ATTACH,
    USER,
    ConversationEvent,
    MessageCompleted,
    SessionEnded,
    SessionStarted,
    TurnEnded,
    TurnStarted,
)
from contextengine.schemas.injection import InjectionAttempt, Outcome
from contextengine.settings import Settings, load
from contextengine.topics import admin
from contextengine.topics.catalogue import Topic, catalogue
from contextengine.topics.publisher import Publisher

PROVIDER: Final = "openai_realtime"
READY_S: Final = 60.0
STOP_S: Final = 30.0
RULES: Final = """
rules:
  - name: at-once
    when: {keyword: ping}
    inject: {information: {answer: "pong {{ session.messages }}"}}
    criticality: critical
    ttl: 10 min
    timeout: 10 s
  - name: in-silence
    when: {keyword: pang}
    inject: {information: {answer: "pung {{ session.messages }}"}}
    place: silence
    quiet: 100 ms
    fallback: 2 s
    criticality: critical
    ttl: 10 min
    timeout: 10 s
  - name: now-and-then
    when: {every: 5 s}
    inject: {strategy: {minutes: "{{ session.minutes }} {{ session.messages }}"}}
    criticality: critical
    ttl: 10 min
    timeout: 10 s
"""
"""Rules that fire on events and on timers, often. No context may expire because a test keeps the fleet down."""
WORDS: Final = ("ping", "and so on", "pang", "and so on")


@dataclass(frozen=True, slots=True)
class Load:
    """How much is said, and for how long at least; by default the base load of the fault tests."""

    sessions: int = 200
    events_per_s: int = 200
    seconds: float = 60


class Provider(RealtimeSimulator):
    """The simulated provider; it counts what it is sent, and tells `on_create` of each item that it acknowledges."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.created: Counter[str] = Counter()
        """How often each item was asked to be created."""
        self.on_create: Callable[[str], None] = lambda _: None

    def _create_item(self, call: Any, socket: Any, event: Any) -> None:
        self.created[event["item"]["id"]] += 1
        super()._create_item(call, socket, event)
        self.on_create(event["item"]["id"])


class Process:
    """`contextengine worker` or `contextengine deliver`, which may be killed and started again."""

    def __init__(self, kind: str, name: str, environ: Mapping[str, str], folder: Path) -> None:
        self.kind, self.name = kind, name
        self.environ = dict(environ)
        self.log = folder / f"{name}.log"
        self.popen: subprocess.Popen[bytes] | None = None
        self._folder = folder
        self._port = 0

    async def start(self, **environ: str) -> Self:
        """Start it, and wait until it is ready; `environ` are settings (`commit_interval_ms="50"`) from now on."""
        self.launch(**environ)
        await self.ready()
        return self

    def launch(self, **environ: str) -> None:
        """Start it, and wait for nothing."""
        assert self.popen is None or self.popen.poll() is not None, f"{self.name} runs"
        self.environ |= {f"CONTEXTENGINE_{name.upper()}": value for name, value in environ.items()}
        self._port = free_port(0)
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "contextengine", self.kind, "--port", str(self._port)],
                env=self.environ,
                stdout=log,
                stderr=log,
                cwd=self._folder,
            )

    async def ready(self, within_s: float = READY_S) -> None:
        """Wait until it says that it is ready."""
        await until(self._says_ready, within_s)

    async def _says_ready(self) -> bool:
        assert self.runs, f"{self.name} ended with {self.status}; its log ends:\n{self.last_words}"
        try:
            return await asyncio.to_thread(self._get, "/health/ready") is not None
        except OSError:
            return False

    def _get(self, path: str) -> str:
        with urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=2) as answer:
            return answer.read().decode()

    async def is_ready(self) -> bool:
        """Whether it says now that it is ready."""
        return self.runs and await self._says_ready()

    async def metric(self, name: str) -> float:
        """A metric, summed over its labels."""
        lines = (await asyncio.to_thread(self._get, "/metrics")).splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    def kill(self) -> None:
        """As `kill -9`."""
        assert self.popen is not None
        self.popen.kill()
        self.popen.wait()

    def freeze(self) -> None:
        """It stands still, as if its machine slept."""
        assert self.popen is not None
        self.popen.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on where it stood, and knows nothing of the time in between."""
        assert self.popen is not None
        self.popen.send_signal(signal.SIGCONT)

    async def stop(self) -> int:
        """Have it end in order; its exit status."""
        assert self.popen is not None
        self.popen.terminate()
        return await asyncio.to_thread(self.popen.wait, STOP_S)

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.popen is not None and self.popen.poll() is None

    @property
    def status(self) -> int | None:
        """Its exit status, once it has ended."""
        return None if self.popen is None else self.popen.poll()

    @property
    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""

    @property
    def said(self) -> str:
        """All of its log."""
        return self.log.read_text(errors="replace")

    @property
    def memory_mib(self) -> float:
        """Its resident memory."""
        assert self.popen is not None
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def patch(self, source: str) -> None:
        """Have Python run `source` in this process before anything else, from its next start on; "" undoes it."""
        folder = self._folder / f"{self.name}-patch"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(source)
        self.environ["PYTHONPATH"] = str(folder)


class Fleet:
    """Topics of their own on `broker`, the rules in force, `workers` and `delivers` ready, and the provider.

    `through` has the addresses at which others than this class see the broker: of "worker", "deliver", or "load" (the
    publisher of the conversations). `patches` are what the first workers are patched with; `settings` are those of
    every process.
    """

    def __init__(
        self,
        broker: str,
        folder: Path,
        *,
        workers: int = 3,
        delivers: int = 1,
        rules: str = RULES,
        patches: Sequence[str] = (),
        through: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.folder, self.rules, self._patches = folder, rules, patches
        self.through = dict(through or {})
        self.settings: Settings = load(
            environ={}, broker=broker, prefix=f"fault-{uuid.uuid4().hex[:8]}", **({"partitions": 12} | settings)
        )
        self.provider = Provider()
        self.workers: list[Process] = []
        self.delivers: list[Process] = []
        self._wanted = {"worker": workers, "deliver": delivers}

    async def __aenter__(self) -> Self:
        await self.provider.__aenter__()
        try:
            await admin.apply(self.settings, uuid.uuid4().hex)
            await publish_rules(self.settings, self.rules)
            started = [self.add(kind) for kind, wanted in self._wanted.items() for _ in range(wanted)]
            for process, source in zip(started, self._patches, strict=False):
                process.patch(source)
            for process in started:
                process.launch()
            await asyncio.gather(*(process.ready() for process in started))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self.processes:
            if process.runs:
                process.kill()
        await self.provider.__aexit__()

    @property
    def processes(self) -> list[Process]:
        """All of them."""
        return self.workers + self.delivers

    def add(self, kind: str) -> Process:
        """One more worker or deliver, not started."""
        others = self.workers if kind == "worker" else self.delivers
        process = Process(kind, f"{kind}-{len(others)}", self._environ(kind), self.folder)
        others.append(process)
        return process

    def _environ(self, kind: str) -> dict[str, str]:
        own = {
            name: value
            for name, value in self.settings.model_dump(exclude_defaults=True, exclude_none=True).items()
            if name != "broker"
        }
        own |= {
            "broker": self.through.get(kind, self.settings.broker),
            "data_dir": self.folder / "data",
            "openai_base_url": self.provider.base_url,
            "openai_api_key": "simulated",
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CONTEXTENGINE_")}
        return inherited | {f"CONTEXTENGINE_{name.upper()}": str(value) for name, value in own.items()}

    @asynccontextmanager
    async def under(self, load: Load) -> AsyncIterator[Conversations]:
        """Conversations go on beside the block, and at least as long as the load says; the broker has them then."""
        settings = self.settings.model_copy(update={"broker": self.through.get("load", self.settings.broker)})
        async with Publisher(settings, name="test", close_ms=60_000) as publisher:
            conversations = Conversations(load, publisher, self.provider)
            conversations.begin()
            talking = asyncio.create_task(conversations.talk())
            try:
                yield conversations
                conversations.may_end = True
                await talking
            finally:
                talking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await talking
            assert await publisher.flush(60_000) == 0, "the broker does not have every event"
        assert not publisher.dropped, f"the publisher dropped events: {publisher.dropped}"

    async def drained(self, within_s: float = 60.0) -> float:
        """Wait until everything that is in the log is worked off and committed; how long that took (s)."""
        began = time.monotonic()
        topics = catalogue(self.settings)
        admin_client = AIOKafkaAdminClient(**self.settings.kafka_client())
        consumer = AIOKafkaConsumer(**self.settings.kafka_client())
        await admin_client.start()
        await consumer.start()

        async def end(topic: Topic) -> dict[TopicPartition, int]:
            partitions = [TopicPartition(topic.name, number) for number in range(topic.partitions)]
            return dict(await consumer.end_offsets(partitions))

        async def lag(group: str, topic: Topic) -> int:
            ends = await end(topic)
            committed = await admin_client.list_consumer_group_offsets(group, partitions=list(ends))
            return sum(last - max(0, committed[tp].offset) for tp, last in ends.items())

        async def is_drained() -> bool:
            for process in self.processes:
                assert process.status in (None, -signal.SIGKILL, 0), f"{process.name}: {process.last_words}"
            ends = await end(topics.events)
            deliver = self.settings.deliver_group
            groups = [(self.settings.worker_group, topics.events)]
            if self.delivers:
                groups += [(deliver, topics.injections), (f"{deliver}-1000ms", topics.retry_1s)]
            for group, topic in groups:
                if await lag(group, topic):
                    return False
            return await end(topics.events) == ends

        try:
            await until(is_drained, within_s)
        finally:
            await consumer.stop()
            await admin_client.close()
        return time.monotonic() - began


class Conversations:
    """What is said to the fleet: each session says its lines at an even pace, and ends."""

    def __init__(self, load: Load, publisher: Publisher, provider: Provider) -> None:
        self.load = load
        self.publisher = publisher
        self.may_end = False
        self._provider = provider
        self._sessions = [publisher.session(f"session-{number}") for number in range(load.sessions)]

    @property
    def published(self) -> dict[str, int]:
        """How many events each session has published."""
        return {session.session_id: session.next_seq for session in self._sessions}

    def begin(self) -> None:
        """Every conversation starts."""
        for session in self._sessions:
            call_id = f"rtc_{session.session_id}"
            self._provider.open_call(call_id)
            session.publish(SessionStarted, provider=PROVIDER, model="gpt-realtime", route=ATTACH, call_id=call_id)

    async def talk(self) -> None:
        """Everybody talks for as long as the load says, goes on until `may_end`, then hangs up."""
        began = time.monotonic()
        least = self.load.events_per_s * self.load.seconds
        for number in count():
            if number >= least and self.may_end:
                break
            ahead_s = began + number / self.load.events_per_s - time.monotonic()
            if ahead_s > 0.005:
                await asyncio.sleep(ahead_s)
            line, person = divmod(number, self.load.sessions)
            session, (message, act) = self._sessions[person], divmod(line, 3)
            if act == 0:
                session.publish(TurnStarted, speaker=USER, known_ms=0)
            elif act == 1:
                session.publish(MessageCompleted, speaker=USER, text=WORDS[message % len(WORDS)])
            else:
                session.publish(TurnEnded, speaker=USER, known_ms=0)
        for session in self._sessions:
            session.publish(SessionEnded, reason="hangup")


@dataclass(slots=True)
class Proof:
    """What a log and a provider prove."""

    report: Report
    """What the audit counted."""
    attempt_copies: int = 0
    """Attempts in the log that were there before."""
    sends: int = 0
    send_copies: int = 0
    """Items that the provider was asked to create and had been asked for before."""
    belied: int = 0
    """Contexts that the provider has, of injections whose outcome is another than delivered."""
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.report.events} events, {self.injections} injections, {self.attempt_copies} attempts twice,"
            f" {self.send_copies} sent twice"
        )

    @property
    def injections(self) -> int:
        """How many contexts were accepted."""
        return self.report.injections


async def verify(fleet: Fleet, *loads: Conversations, within_s: float = 60.0) -> Proof:
    """Wait until the fleet has worked off its log, then prove it: nothing lost, one outcome each, no order broken.

    And every state equals a replay of its session's events. Asserts that there is nothing wrong.
    """
    await fleet.drained(within_s)
    while (report := await audit(fleet.settings)).unjudged:
        await fleet.drained(within_s)  # a rebalance has marked the log meanwhile
    proof = Proof(report, problems=[str(finding) for finding in report.findings])
    proof.problems += [f"{session_id}: {why}" for session_id, why in report.unknown.items()]
    if report.open:
        proof.problems.append(f"{report.open} injections have not ended")
    await _judge_events(fleet.settings, loads, proof)
    await _judge_provider(fleet, proof)
    assert not proof.problems, "\n".join([f"{len(proof.problems)} problems", *proof.problems[:20]])
    return proof


async def _judge_events(settings: Settings, loads: tuple[Conversations, ...], proof: Proof) -> None:
    """Every event that was published is in the log, in its place; a copy may follow."""
    seqs: dict[str, list[int]] = defaultdict(list)
    for record in await read_raw(settings, catalogue(settings).events):
        with contextlib.suppress(UndecodableRecord):
            event = decode(record.value)
            if isinstance(event, ConversationEvent):
                seqs[event.session_id].append(event.seq)
    for session_id, published in (of for conversations in loads for of in conversations.published.items()):
        if list(dict.fromkeys(seqs[session_id])) != list(range(published)):
            proof.problems.append(f"{session_id}: of {published} events the log has {seqs[session_id]}")


async def _judge_provider(fleet: Fleet, proof: Proof) -> None:
    """The provider has every context that was delivered, once, in the order in which the attempts were made."""
    settings, provider, topics = fleet.settings, fleet.provider, catalogue(fleet.settings)
    proof.sends = provider.created.total()
    proof.send_copies = proof.sends - len(provider.created)
    proof.problems += provider.violations
    written = [made for made in await read(settings, topics.injections) if isinstance(made, InjectionAttempt)]
    attempts: dict[tuple[str, int], InjectionAttempt] = {}
    for made in written:
        attempts.setdefault((made.injection.injection_id, made.attempt), made)
    results = await read(settings, topics.results)
    delivered = {result.injection_id for result in results if result.outcome is Outcome.DELIVERED}
    proof.attempt_copies = len(written) - len(attempts)
    wanted: dict[str, dict[str, None]] = defaultdict(dict)
    for made in attempts.values():
        if made.injection.injection_id in delivered:
            of_call = wanted[f"rtc_{made.session_id}"]
            of_call.pop(made.injection.injection_id, None)  # the attempt that was delivered is the last one
            of_call[made.injection.injection_id] = None
    for call_id, call in provider.calls.items():
        items = [item["id"] for item in call.items]
        proof.belied += len(set(items) - delivered)
        if [item for item in items if item in delivered] != list(wanted[call_id]):
            proof.problems.append(f"{call_id}: what was delivered is not there, or in another order")
