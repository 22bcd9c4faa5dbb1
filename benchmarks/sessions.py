"""What ten thousand live sessions cost a worker, how fast their states are restored, and how soon another takes over.

    python benchmarks/sessions.py [--only memory restore takeover] [--broker HOST:PORT]

memory     a worker with 10,000 sessions of about 2 KB and 2,000 events/s: its resident memory, which part of the time
           it flushes (encodes states; batches wait so long), and from the begin of a flush to its commit
restore    a changelog of 200,000 records (50,000 keys, 300 bytes): from the assignment of its partitions to the end of
           the recovery; stock Faust and ours, into memory and into RocksDB
takeover   of two workers one is killed with -9 under 500 events/s: until the other has committed, in every partition,
           what was published after the kill
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import faust
from aiokafka import AIOKafkaProducer, TopicPartition
from arena import (
    PARTITIONS,
    KeyAndValue,
    arguments,
    broker,
    committed,
    create_topics,
    fill,
    floor,
    group,
    log_of,
    machine,
    new_name,
    process,
    say,
)
from faust.worker import Worker
from throughput import Run, batch_app

from contextengine.agents.transport import BatchConsumer
from contextengine.app import build_app, run_worker
from contextengine.demo.run import RULES
from contextengine.schemas.codec import encode
from contextengine.schemas.events import AudioChunkReceived, MessageCompleted, SessionStarted
from contextengine.schemas.session import STATE_HEADER, Session, dump_state
from contextengine.settings import load
from contextengine.topics import admin

SESSIONS: Final = 10_000
LINES: Final = 10
RATE: Final = 2_000
SECONDS: Final = 20
RECORDS, KEYS, BYTES = 200_000, 50_000, 300


def _common(number: int, seq: int) -> dict[str, Any]:
    at_ms = time.time_ns() // 1_000_000
    return {"session_id": f"session-{number:08d}", "producer": "bench", "incarnation": 1, "seq": seq, "at_ms": at_ms}


# Memory and flush share


def histories() -> Iterator[KeyAndValue]:
    """The start of every session and what has been said in it: states of about 2 KB."""
    said = "I have been waiting for the technician since nine o'clock, and nobody has called me back yet; why is that?"
    for seq in range(LINES + 1):
        for number in range(SESSIONS):
            common = _common(number, seq)
            if seq == 0:
                event: Any = SessionStarted(**common, provider="nobody", model="none", facts={"name": "Ada Lovelace"})
            else:
                event = MessageCompleted(**common, speaker="user", text=said)
            yield event.session_id.encode(), encode(event)


async def publish(address: str, topic: str, rate: int, seconds: float, first_seq: int, sessions: int) -> None:
    """Audio of all sessions in turns, evenly."""
    async with AIOKafkaProducer(bootstrap_servers=address) as producer:
        began, number = time.monotonic(), 0
        while number < rate * seconds:
            while number < (time.monotonic() - began) * rate:
                common = _common(number % sessions, first_seq + number // sessions)
                event = AudioChunkReceived(**common, speaker="user", duration_ms=200)
                await producer.send(topic, encode(event), event.session_id.encode())
                number += 1
            await asyncio.sleep(0.001)


async def worker(address: str, name: str) -> None:
    """A worker that prints, when it is stopped, which parts of the last 20 s it has flushed, and flushed or waited."""
    settings = load(environ={}, broker=address, prefix=name)
    stop, flushes = asyncio.Event(), list[tuple[float, float, float]]()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def timed(consumer: BatchConsumer, *given: Any) -> bool:
        began = time.monotonic()
        try:
            return await flush(consumer, *given)
        finally:
            flushes.append((began, consumer._owned.flush_s, time.monotonic() - began))  # noqa: SLF001

    flush, BatchConsumer._flush_and_commit = BatchConsumer._flush_and_commit, timed  # type: ignore[method-assign]  # noqa: SLF001
    await run_worker(settings, RULES.read_text(), stop, build_app(settings))
    recent = [of for of in flushes if of[0] > flushes[-1][0] - SECONDS]
    print(sum(flushed for _, flushed, _ in recent) / SECONDS, sum(took for _, _, took in recent) / SECONDS, flush=True)


async def memory(address: str) -> None:
    """See the module's docstring."""
    name = new_name()
    settings = load(environ={}, broker=address, prefix=name)
    events = f"{name}.events"
    await admin.apply(settings, log_id=name)
    say(f"{SESSIONS:,} sessions say {LINES} lines each")
    await fill(address, events, histories())
    command = [sys.executable, __file__, "--part", "worker", address, name]
    with process("sessions worker", command) as running:
        async with group(address, settings.worker_group) as client:
            while await committed(client, events) < SESSIONS * (LINES + 1):
                must_run(running.poll())
                await asyncio.sleep(0.2)
            say(f"{RATE:,} events/s for {SECONDS} s")
            await publish(address, events, RATE, SECONDS, LINES + 1, SESSIONS)
            status = Path(f"/proc/{running.pid}/status").read_text()  # noqa: ASYNC240
    told = log_of("sessions worker").read_text().split()
    (resident,) = [int(line.split()[1]) / 1_024 for line in status.splitlines() if line.startswith("VmHWM")]
    floor(f"{SESSIONS:,} sessions: resident memory at its most, MB", resident, at_most=400)
    floor(f"part of the time spent flushing, at {RATE:,} events/s", float(told[-2]), at_most=0.1)
    print(f"part of the time between a flush's begin and its commit, others going on: {float(told[-1]):.3f}")


def must_run(status: int | None) -> None:
    """End the benchmark if the worker has."""
    if status is not None:
        raise SystemExit(f"the worker ended with {status}: see its log in the folder of temporary files")


# Restore


def states() -> Iterator[KeyAndValue]:
    """A changelog, in an order that every key's versions follow each other."""
    empty = len(dump_state(Session("session-00000000")))
    for number in range(RECORDS):
        session_id = f"session-{number % KEYS:08d}"
        state = dump_state(Session(session_id, digest="d" * max(0, BYTES - STATE_HEADER.size - empty)))
        yield session_id.encode(), STATE_HEADER.pack(number, 1) + state


def restoring(kind: str, store: str, address: str, name: str) -> faust.App:
    """An app that prints how long its recovery takes, and stops."""
    if kind == "stock":
        app = faust.App(name, broker=f"kafka://{address}", datadir=tempfile.mkdtemp(), web_enabled=False)
        app.Table("sessions", key_type=bytes, value_type=bytes, partitions=PARTITIONS, store=f"{store}://")
    else:
        app, _, _ = batch_app(Run(address, name, f"{name}.events", 1), store=f"{store}://")
    began = [0.0]

    @app.agent(app.topic(f"{name}.events", key_serializer="raw", value_serializer="raw"))
    async def work(stream: Any) -> None:
        async for _ in stream:
            pass

    @app.on_partitions_assigned.connect
    async def assigned(*_: Any, **__: Any) -> None:
        began[0] = began[0] or time.monotonic()

    @app.on_rebalance_complete.connect
    async def complete(*_: Any, **__: Any) -> None:
        os.write(1, f"restored {time.monotonic() - began[0]}\n".encode())  # Faust takes what is printed for a log
        os._exit(0)

    return app


async def restore(address: str) -> None:
    """See the module's docstring."""
    name = new_name()
    await create_topics(address, f"{name}.events", f"{name}-sessions-changelog")
    await fill(address, f"{name}-sessions-changelog", states())
    took: dict[tuple[str, str], float] = {}
    for store in ("memory", "rocksdb"):
        for kind in ("ours", "stock"):
            say(f"restoring {RECORDS:,} records into {store}, {kind}")
            log = f"restore {kind} {store}"
            with process(log, [sys.executable, __file__, "--part", "restore", kind, store, address, name]) as running:
                await asyncio.to_thread(running.wait, 300)
            told = log_of(log).read_text()
            took[kind, store] = float(told.rpartition("restored ")[2].split()[0])
            await asyncio.sleep(1)
    for store, times in (("memory", 20), ("rocksdb", 12)):
        ours, stock = took["ours", store], took["stock", store]
        print(f"{RECORDS:,} records into {store}: {ours:.2f} s, stock Faust {stock:.1f} s")
        floor(f"restore into {store}, times as fast as stock Faust", stock / ours, at_least=times)


# Takeover


async def takeover(address: str) -> None:
    """See the module's docstring."""
    name = new_name()
    settings = load(environ={}, broker=address, prefix=name)
    events = f"{name}.events"
    await admin.apply(settings, log_id=name)
    command = [sys.executable, "-m", "contextengine", "worker", "--rules", str(RULES), "--port", "0"]
    command += ["--broker", address, "--prefix", name]
    with process("takeover first", command) as first, process("takeover second", command) as second:
        publishing = asyncio.create_task(publish(address, events, 500, 45, 0, 200))
        await asyncio.sleep(18)
        must_run(first.poll() or second.poll())
        say("kill -9")
        first.kill()
        killed = time.monotonic()
        async with group(address, settings.worker_group) as client:
            tps = [TopicPartition(events, number) for number in range(PARTITIONS)]
            await asyncio.sleep(1)
            ends = await client.end_offsets(tps)
            behind = set(tps)
            while behind:
                must_run(second.poll())
                behind = {tp for tp in behind if (await client.committed(tp) or 0) < ends[tp]}
                await asyncio.sleep(0.05)
        took = time.monotonic() - killed
        publishing.cancel()
    timeout_s = settings.session_timeout_ms / 1_000
    print(f"takeover after kill -9: every partition is committed beyond the kill after {took:.1f} s")
    floor(f"takeover, seconds (session timeout {timeout_s:g} s)", took, at_most=15)


PARTS: Final = {"memory": memory, "restore": restore, "takeover": takeover}


def main() -> None:
    """See the module's docstring."""
    parser = arguments(__doc__, runs=1)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        part, *rest = given.part
        if part == "worker":
            asyncio.run(worker(*rest))
        else:
            Worker(restoring(*rest), loglevel="WARNING").execute_from_commandline()
        return
    print(machine())
    with broker(given) as address:
        for name in given.only:
            asyncio.run(PARTS[name](address))


if __name__ == "__main__":
    main()
