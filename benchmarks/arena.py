"""What every benchmark has in common: the broker, the processes, how topics are filled, and how a result is told."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from apache_kafka import VERSION as KAFKA_VERSION
from apache_kafka import ApacheKafka

from contextengine.topics.catalogue import partition_for

PARTITIONS: Final = 12
LOGS: Final = Path(tempfile.gettempdir())

KeyAndValue = tuple[bytes, bytes]


def arguments(told: str | None, runs: int = 5) -> argparse.ArgumentParser:
    """The options that every benchmark has; its own may be added."""
    parser = argparse.ArgumentParser(description=told, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=runs, help=f"the median of so many is taken ({runs})")
    parser.add_argument("--broker", metavar="HOST:PORT", help="a running Kafka; without it, one is started")
    return parser


@contextlib.contextmanager
def broker(given: argparse.Namespace) -> Iterator[str]:
    """The address of the Kafka that was named, or of one that runs until the end of the block."""
    if given.broker:
        yield given.broker
        return
    say("starting Apache Kafka")
    with ApacheKafka() as kafka:
        yield kafka.bootstrap


def machine() -> str:
    """What the figures were measured on."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("faust-streaming", "aiokafka", "fastavro", "msgspec"))
    cores = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start"
    return (
        f"{platform.platform()}, {cores}, Python {platform.python_version()}, {packages}, Apache Kafka {KAFKA_VERSION}"
    )


def say(progress: str) -> None:
    """Progress, for whoever waits; tables go to the standard output."""
    print(f"{time.strftime('%H:%M:%S')} {progress}", file=sys.stderr, flush=True)


def floor(what: str, found: float, at_least: float | None = None, at_most: float | None = None) -> None:
    """Say whether a figure is what we hold ourselves to."""
    met = found >= at_least if at_least is not None else at_most is not None and found <= at_most
    asked = f"at least {at_least:g}" if at_least is not None else f"at most {at_most:g}"
    print(f"{'met    ' if met else 'NOT MET'} {what}: {found:.3g} ({asked})", flush=True)


def new_name() -> str:
    """A prefix that no topic on the broker has."""
    return f"bench-{uuid.uuid4().hex[:8]}"


def log_of(name: str) -> Path:
    """What a process has printed."""
    return LOGS / f"contextengine-bench-{name.replace(' ', '-')}.log"


@contextlib.contextmanager
def process(
    name: str, command: Sequence[str], environ: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is stopped (SIGTERM, at last SIGKILL) at the end of the block."""
    with log_of(name).open("wb") as out:
        running = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **(environ or {})})
    try:
        yield running
    finally:
        running.send_signal(signal.SIGTERM)
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


async def create_topics(address: str, *names: str, partitions: int = PARTITIONS) -> None:
    """Plain topics."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    await admin.create_topics([NewTopic(name, partitions, 1) for name in names])
    await admin.close()


async def fill(address: str, topic: str, records: Iterable[KeyAndValue], partitions: int = PARTITIONS) -> None:
    """Publish, each record into its key's partition, as fast as can be."""
    async with AIOKafkaProducer(bootstrap_servers=address, max_batch_size=2**18) as producer:
        batches = {number: producer.create_batch() for number in range(partitions)}
        sent = []
        for key, value in records:
            number = partition_for(key, partitions)
            if batches[number].append(key=key, value=value, timestamp=None) is None:
                sent.append(await producer.send_batch(batches[number], topic, partition=number))
                batches[number] = producer.create_batch()
                batches[number].append(key=key, value=value, timestamp=None)
        for number, batch in batches.items():
            if batch.record_count():
                sent.append(await producer.send_batch(batch, topic, partition=number))
        await asyncio.gather(*sent)


@contextlib.asynccontextmanager
async def group(address: str, name: str) -> AsyncIterator[AIOKafkaConsumer]:
    """A client that may ask what a consumer group has committed; it joins nothing."""
    consumer = AIOKafkaConsumer(bootstrap_servers=address, group_id=name, enable_auto_commit=False)
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


async def committed(consumer: AIOKafkaConsumer, topic: str, partitions: int = PARTITIONS) -> int:
    """How many records of a topic its group has committed."""
    tps = [TopicPartition(topic, number) for number in range(partitions)]
    return sum([await consumer.committed(tp) or 0 for tp in tps])


async def commit_rate(
    address: str, name: str, topic: str, events: int, workers: Sequence[subprocess.Popen[bytes]]
) -> float:
    """Records a second that a group commits, from its first commit to that of the last of `events`."""
    commits: list[tuple[float, int]] = []
    async with group(address, name) as consumer:
        while not commits or commits[-1][1] < events:
            if any(worker.poll() is not None for worker in workers):
                raise SystemExit(f"a worker of {name} has ended: see {LOGS}/contextengine-bench-*.log")
            now, done = time.monotonic(), await committed(consumer, topic)
            if done and (not commits or done > commits[-1][1]):
                commits.append((now, done))
            await asyncio.sleep(0.1)  # to ask costs the broker, and so the worker
    (began, first), (ended, last) = commits[0], commits[-1]
    return (last - first) / (ended - began)
