"""How many events a second one worker commits: the batch fast path beside stock Faust, on an Apache Kafka.

    python benchmarks/throughput.py [--runs 3] [--broker HOST:PORT] [--only NAME]

The work is the same for all: decode an Avro event of 400 bytes, update the state of its session, emit an Avro
injection (for 1 event in 50, then for every event), commit every half second. "Committed" means that outputs, state and
offset are acknowledged by the broker. Each run has fresh topics, filled before its worker starts, and a fresh worker
process with the same Faust settings (FAUST_SETTINGS, which do stock Faust good too); the rate is taken from the group's
committed offsets, from the first commit to the last event.

"real decide" is the product's own worker with the demo's rules, on the events that a VoiceEngine publishes about a
thousand calls: folded audio, edges of speech, messages.

Without `--broker` it fetches and starts Apache Kafka itself (Java 17, the first time Maven: see apache_kafka.py).
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import fastavro
import faust
import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from apache_kafka import VERSION as KAFKA_VERSION
from apache_kafka import ApacheKafka
from faust.worker import Worker

from contextengine.agents.outbox import Outbox
from contextengine.agents.transport import FAUST_SETTINGS, BatchTopic, install
from contextengine.demo.run import RULES
from contextengine.schemas.codec import encode
from contextengine.schemas.events import (
    AudioChunkReceived,
    ConversationEvent,
    GenerationStarted,
    MessageCompleted,
    PlaybackEnded,
    PlaybackStarted,
    ResponseCompleted,
    ResponseStarted,
    SessionStarted,
    TurnEnded,
    TurnStarted,
)
from contextengine.settings import load
from contextengine.tables.live import LiveTable
from contextengine.topics import admin as topics

PARTITIONS: Final = 12
SESSIONS: Final = 1_000

EVENT: Final = fastavro.parse_schema(
    {
        "name": "Event",
        "type": "record",
        "fields": [
            {"name": "session_id", "type": "string"},
            {"name": "seq", "type": "long"},
            {"name": "at_ms", "type": "long"},
            {"name": "kind", "type": "string"},
            {"name": "speaker", "type": "string"},
            {"name": "text", "type": "string"},
            {"name": "confidence", "type": "double"},
            {"name": "attributes", "type": {"type": "map", "values": "string"}},
        ],
    }
)
INJECTION: Final = fastavro.parse_schema(
    {
        "name": "Injection",
        "type": "record",
        "fields": [
            {"name": "id", "type": "string"},
            {"name": "session_id", "type": "string"},
            {"name": "deadline_ms", "type": "long"},
            {"name": "text", "type": "string"},
        ],
    }
)


@dataclass(frozen=True)
class Run:
    """What one worker is given."""

    broker: str
    prefix: str
    one_output_in: int

    @property
    def topics(self) -> tuple[str, str, str]:
        """Events, injections and the changelog."""
        return f"{self.prefix}.events", f"{self.prefix}.injections", f"{self.prefix}-sessions-changelog"


@dataclass(frozen=True)
class Contestant:
    """A way to do the work. `events` are enough for several seconds; `event` makes the n-th one's key and value.

    `build` makes its Faust app; None is the product's own worker.
    """

    name: str
    events: int
    build: Callable[[Run], faust.App] | None
    event: Callable[[int], tuple[bytes, bytes]]


# The work


class Session(msgspec.Struct):
    """What is kept of a session."""

    offset: int = -1
    events: int = 0
    last_ms: int = 0
    by_kind: dict[str, int] = {}
    recent: list[str] = []


class SessionCodec:
    """A session as JSON."""

    _decoder = msgspec.json.Decoder(Session)

    def encode(self, session: Session) -> bytes:
        """See StateCodec."""
        return msgspec.json.encode(session)

    def decode(self, body: bytes) -> Session:
        """See StateCodec."""
        return self._decoder.decode(body)


def avro(schema: Any, record: dict[str, Any]) -> bytes:
    """A record in Avro."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, record)
    return out.getvalue()


def conversation_event(number: int) -> tuple[bytes, bytes]:
    """Some sentences of a call, 400 bytes."""
    session_id = f"session-{number % SESSIONS:08d}"
    record = {
        "session_id": session_id,
        "seq": number // SESSIONS,
        "at_ms": 1_700_000_000_000 + number,
        "kind": ("transcript", "silence", "tool", "turn")[number % 4],
        "speaker": "caller",
        "text": "I have been waiting for the technician since nine o'clock, and nobody has called me back yet. " * 3,
        "confidence": 0.93,
        "attributes": {"language": "en-GB", "channel": "telephone", "region": "eu-west-1", "codec": "opus"},
    }
    return session_id.encode(), avro(EVENT, record)


def judge(value: bytes, session: Session, offset: int, one_output_in: int) -> bytes | None:
    """Update a session by an event; an injection for some."""
    event: Any = fastavro.schemaless_reader(io.BytesIO(value), EVENT, None)
    session.offset = offset
    session.events += 1
    session.last_ms = event["at_ms"]
    session.by_kind[event["kind"]] = session.by_kind.get(event["kind"], 0) + 1
    session.recent = [*session.recent[-4:], event["text"][:40]]
    if session.events % one_output_in:
        return None
    text = "The technician is twelve minutes away; offer the caller a message when he arrives."
    return avro(
        INJECTION,
        {"id": uuid.uuid4().hex, "session_id": event["session_id"], "deadline_ms": session.last_ms, "text": text},
    )


# The contestants


def app_of(run: Run, **settings: Any) -> faust.App:
    """A Faust app with what all contestants have in common."""
    return faust.App(
        run.prefix, broker=f"kafka://{run.broker}", **{**FAUST_SETTINGS, "datadir": tempfile.mkdtemp(), **settings}
    )


def stock_faust(run: Run) -> faust.App:
    """Faust as its documentation shows it: a table entry and an awaited send for each event."""
    app = app_of(run)
    events, injections, _ = run.topics
    sessions = app.Table("sessions", key_type=bytes, value_type=bytes, partitions=PARTITIONS)
    outputs = app.topic(injections, key_serializer="raw", value_serializer="raw")
    codec = SessionCodec()

    @app.agent(app.topic(events, key_serializer="raw", value_serializer="raw"))
    async def work(stream: Any) -> None:
        async for event in stream.events():
            found = sessions.get(event.key)
            session = codec.decode(found) if found else Session()
            output = judge(event.value, session, event.message.offset, run.one_output_in)
            sessions[event.key] = codec.encode(session)
            if output is not None:
                await outputs.send(key=event.key, value=output, partition=event.message.partition)

    return app


def fast_path(run: Run) -> faust.App:
    """Batches, live state, outputs in record batches."""
    app = app_of(run)
    events, injections, _ = run.topics
    sessions: LiveTable[Session] = LiveTable(app, "sessions", SessionCodec())
    outbox = Outbox(app)

    async def nothing(partitions: frozenset[int]) -> None:
        """No timers to arm."""

    install(app, BatchTopic(events, sessions, outbox, nothing, nothing))

    @app.agent(app.topic(events, key_serializer="raw", value_serializer="raw"))
    async def work(stream: Any) -> None:
        async for event in stream.events():
            partition = event.message.partition
            async with sessions.lock(partition):
                for record in event.value:
                    session = sessions.get(partition, record.key) or Session()
                    if record.offset <= session.offset:
                        continue
                    output = judge(record.value, session, record.offset, run.one_output_in)
                    sessions.put(partition, record.key, session, record.offset)
                    if output is not None:
                        outbox.add(injections, partition, record.key, output)
                    if outbox.is_due(partition):
                        await outbox.send(partition)
                await outbox.send(partition)

    return app


def real_worker(run: Run) -> list[str]:
    """The worker as it ships, with the demo's rules; what is an output is for the rules to say."""
    command = [sys.executable, "-m", "contextengine", "worker", "--rules", str(RULES), "--port", "0"]
    return [*command, "--broker", run.broker, "--prefix", run.prefix]


SAID: Final = (
    "I would like to book a table for four on Friday evening.",
    "Nothing special, I went for a walk and then read a little.",
    "What time does the train to Cambridge leave in the morning?",
    "My dog was ill last week, but he is fine again.",
    "Thank you, that is all I need for today.",
)
TURNS: Final[Sequence[tuple[type[ConversationEvent], dict[str, Any]]]] = [
    (TurnStarted, {"speaker": "user", "known_ms": 0}),
    *[(AudioChunkReceived, {"speaker": "user", "duration_ms": 200, "energy": 0.4, "chunks": 10})] * 20,
    (TurnEnded, {"speaker": "user", "known_ms": 0}),
    (MessageCompleted, {"speaker": "user"}),
    (GenerationStarted, {"response_id": "r"}),
    (ResponseStarted, {"response_id": "r"}),
    (PlaybackStarted, {"response_id": "r"}),
    (MessageCompleted, {"speaker": "assistant"}),
    (ResponseCompleted, {"response_id": "r"}),
    (PlaybackEnded, {"response_id": "r"}),
]
"""A turn of a person and one of the model: four seconds of folded audio, two messages, seven edges."""


def mixed_event(number: int) -> tuple[bytes, bytes]:
    """The sessions in turns, each with the events that a VoiceEngine publishes."""
    session_id, seq = f"session-{number % SESSIONS:08d}", number // SESSIONS
    common = {"session_id": session_id, "producer": "bench", "incarnation": 1, "seq": seq, "at_ms": 1_700_000_000_000}
    if seq == 0:
        event: ConversationEvent = SessionStarted(**common, provider="nobody", model="none")
    else:
        kind, fields = TURNS[(seq - 1) % len(TURNS)]
        said = {"text": SAID[(seq + number) % len(SAID)]} if kind is MessageCompleted else {}
        event = kind(**common, **fields, **said)
    return session_id.encode(), encode(event)


CONTESTANTS: Final[Sequence[Contestant]] = [
    Contestant("stock Faust", 40_000, stock_faust, conversation_event),
    Contestant("fast path", 400_000, fast_path, conversation_event),
    Contestant("real decide", 310_000, None, mixed_event),
]


# The measurement


async def measure(contestant: Contestant, run: Run) -> float:
    """Committed events a second of one fresh worker on fresh topics."""
    await fill(contestant, run)
    as_worker = ["--worker", contestant.name, "--prefix", run.prefix, "--one-output-in", str(run.one_output_in)]
    command = [sys.executable, __file__, "--broker", run.broker, *as_worker]
    group = run.prefix
    if contestant.build is None:
        command, group = real_worker(run), f"{run.prefix}-worker"
    quiet = subprocess.DEVNULL
    worker = subprocess.Popen(command, stdout=quiet, stderr=quiet)  # noqa: ASYNC220 - it starts once
    watcher = AIOKafkaConsumer(bootstrap_servers=run.broker, group_id=group, enable_auto_commit=False)
    await watcher.start()
    try:
        commits: list[tuple[float, int]] = []
        partitions = [TopicPartition(run.topics[0], number) for number in range(PARTITIONS)]
        while not commits or commits[-1][1] < contestant.events:
            if worker.poll() is not None:
                raise SystemExit(f"the worker of {contestant.name} ended")
            committed = sum([await watcher.committed(partition) or 0 for partition in partitions])
            if committed and (not commits or committed > commits[-1][1]):
                commits.append((time.monotonic(), committed))
            await asyncio.sleep(0.05)
    finally:
        await watcher.stop()
        worker.terminate()
        worker.wait()
    (began, first), (ended, last) = commits[0], commits[-1]
    return (last - first) / (ended - began)


async def fill(contestant: Contestant, run: Run) -> None:
    """Create the topics, and publish the events."""
    if contestant.build is None:
        await topics.apply(load(environ={}, broker=run.broker, prefix=run.prefix), log_id=run.prefix)
    else:
        admin = AIOKafkaAdminClient(bootstrap_servers=run.broker)
        await admin.start()
        await admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in run.topics])
        await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=run.broker, max_batch_size=2**18, linger_ms=20) as producer:
        for number in range(contestant.events):
            key, value = contestant.event(number)
            await producer.send(run.topics[0], value, key)


def race(broker: str, runs: int, only: str | None) -> None:
    """Run everybody in turn, and print the medians."""
    contestants = [c for c in CONTESTANTS if only in {None, c.name}]
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(", ".join(f"{name} {version(name)}" for name in ("faust-streaming", "aiokafka", "fastavro")), end=", ")
    print(f"Apache Kafka {KAFKA_VERSION}\nCommitted events/s of one worker, median of {runs} (all runs)\n")
    print(f"{'':24}{'1 output in 50':>34}{'every event an output':>34}{'ratio':>16}")
    baseline: list[float] = []
    for contestant in contestants:
        medians, cells = [], []
        for one_output_in in (50, 1) if contestant.build else (0,):
            rates = [
                asyncio.run(measure(contestant, Run(broker, f"bench-{uuid.uuid4().hex[:8]}", one_output_in)))
                for _ in range(runs)
            ]
            medians.append(statistics.median(rates))
            cells.append(f"{medians[-1]:,.0f} ({', '.join(f'{rate:,.0f}' for rate in rates)})")
        baseline = baseline or medians
        ratio = " / ".join(f"{median / base:.1f}" for median, base in zip(medians, baseline, strict=False))
        print(f"{contestant.name:24}{cells[0]:>34}{''.join(cells[1:]):>34}{ratio:>16}", flush=True)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--broker", help="a running Kafka; without it, one is started")
    parser.add_argument("--only", choices=[c.name for c in CONTESTANTS])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--prefix", help=argparse.SUPPRESS)
    parser.add_argument("--one-output-in", type=int, default=50, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        contestant = next(c for c in CONTESTANTS if c.name == given.worker)
        if contestant.build is not None:
            app = contestant.build(Run(given.broker, given.prefix, given.one_output_in))
            Worker(app, loglevel="WARNING").execute_from_commandline()
    elif given.broker:
        race(given.broker, given.runs, given.only)
    else:
        with ApacheKafka() as kafka:
            race(kafka.bootstrap, given.runs, given.only)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
