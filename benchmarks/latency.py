"""How long it takes from an event to the provider, beside a bare aiokafka chain of the same two hops, in the same run.

    python benchmarks/latency.py [--runs 3] [--seconds 20] [--rates 200 2000] [--broker HOST:PORT]

What is said in a call carries the time at which it was published. One event in 20 is such a message; the rest is
folded audio. Ours: this process publishes, `contextengine worker` decides, `contextengine deliver` sends, a simulator
of OpenAI Realtime (a process too) notes when the frame arrives. The bare chain: this process publishes the same events,
a process with an aiokafka consumer and producer passes the messages on, another one receives them. Then from the
trigger to the acknowledgement in the call: the answer's time in the attempt's verdict. No client lingers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError
from arena import PARTITIONS, arguments, broker, create_topics, floor, machine, new_name, process, say

from contextengine.adapters.simulators.openai_realtime import RealtimeSimulator
from contextengine.broker import free_port
from contextengine.schemas.codec import decode, encode
from contextengine.schemas.events import AudioChunkReceived, ConversationEvent, MessageCompleted, SessionStarted
from contextengine.schemas.injection import AttemptVerdict, InjectionAttempt
from contextengine.settings import load
from contextengine.topics import admin
from contextengine.topics.catalogue import catalogue

if TYPE_CHECKING:
    from contextengine.adapters.simulators.openai_realtime import Call

SESSIONS: Final = 100
ONE_MESSAGE_IN: Final = 20
WARM_UP_S: Final = 4
FLOORS: Final = {200: 1.5, 2_000: 4.0}
RULES: Final = """
rules:
  - name: echo
    when:
      keyword: [published]
    inject:
      information:
        said: "{{ said }}"
    trust: untrusted
    cooldown: 1 s
"""
STAMP: Final = re.compile(rb"published at (\d+)")


class Arrivals:
    """When what was published has arrived: latencies in ms, written to a file when the process is stopped."""

    def __init__(self) -> None:
        self._latencies: list[tuple[int, float]] = []

    def note(self, data: bytes) -> None:
        """Something arrives now."""
        stamp = STAMP.search(data)
        if stamp:
            self._latencies.append((int(stamp[1]), (time.time_ns() - int(stamp[1])) / 1e6))

    async def until_stopped(self, file: str) -> None:
        """Wait for SIGTERM, then write."""
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()
        Path(file).write_text(json.dumps(self._latencies))  # noqa: ASYNC240  nothing else is left to do


# The processes beside this one


class WatchedSimulator(RealtimeSimulator):
    """A simulator that notes when a frame arrives."""

    arrivals = Arrivals()

    def _receive(self, call: Call, socket: Any, data: str | bytes) -> None:
        self.arrivals.note(data.encode() if isinstance(data, str) else data)
        super()._receive(call, socket, data)


async def simulator(port: str, file: str) -> None:
    """A provider."""
    async with WatchedSimulator(port=int(port), any_call=True) as provider:
        await provider.arrivals.until_stopped(file)


async def relay(address: str, events: str, passed_on: str) -> None:
    """The first hop of the bare chain: every message, as it comes."""
    async with (
        AIOKafkaConsumer(events, bootstrap_servers=address, group_id=f"{events}-relay") as consumer,
        AIOKafkaProducer(bootstrap_servers=address, acks="all", enable_idempotence=True) as producer,
    ):
        async for record in consumer:
            if STAMP.search(record.value):
                await producer.send(passed_on, record.value, record.key, record.partition)


async def sink(address: str, passed_on: str, file: str) -> None:
    """The second hop."""
    arrivals = Arrivals()

    async def receive() -> None:
        async with AIOKafkaConsumer(passed_on, bootstrap_servers=address, group_id=f"{passed_on}-sink") as consumer:
            async for record in consumer:
                arrivals.note(record.value)

    receiving = asyncio.create_task(receive())
    await arrivals.until_stopped(file)
    receiving.cancel()


# The load


def _common(session: int, seq: int) -> dict[str, Any]:
    at_ms = time.time_ns() // 1_000_000
    known = {"session_id": f"call-{session}", "producer": "bench", "incarnation": 1, "seq": seq, "at_ms": at_ms}
    return {**known, "speaker": "user"}


def message(session: int, seq: int) -> ConversationEvent:
    """What carries the time."""
    return MessageCompleted(**_common(session, seq), text=f"published at {time.time_ns()}")


def event_at(number: int) -> ConversationEvent:
    """The n-th event of all calls together; one in 20 is a message."""
    session, seq = number % SESSIONS, number // SESSIONS + 2
    if (number + seq) % ONE_MESSAGE_IN:
        return AudioChunkReceived(**_common(session, seq), duration_ms=200, energy=0.4, chunks=10)
    return message(session, seq)


async def publish(address: str, topic: str, rate: int, seconds: float) -> None:
    """So many events a second, evenly."""
    async with AIOKafkaProducer(bootstrap_servers=address) as producer:
        for number in range(SESSIONS):
            session_id = f"call-{number}"
            start = SessionStarted(
                session_id=session_id,
                producer="bench",
                incarnation=1,
                seq=0,
                at_ms=time.time_ns() // 1_000_000,
                provider="openai_realtime",
                model="gpt-realtime",
                call_id=f"rtc_{number}",
            )
            await producer.send_and_wait(topic, encode(start), session_id.encode())
        for number in range(SESSIONS):  # so that every call is joined before the clock counts
            await producer.send(topic, encode(message(number, 1)), f"call-{number}".encode())
        began, number = time.monotonic(), 0
        while number < rate * seconds:
            while number < (time.monotonic() - began) * rate:
                event = event_at(number)
                await producer.send(topic, encode(event), event.session_id.encode())
                number += 1
            await asyncio.sleep(0.001)


async def ours(address: str, rate: int, seconds: float) -> tuple[list[float], list[float]]:
    """Latencies of the product, in ms: to the provider, and to the acknowledgement in the call."""
    name, folder, port = new_name(), Path(tempfile.mkdtemp()), free_port(0)
    rules = folder / "rules.yaml"
    rules.write_text(RULES)
    settings = load(environ={}, broker=address, prefix=name)
    await admin.apply(settings, log_id=name)
    environ = {
        "CONTEXTENGINE_BROKER": address,
        "CONTEXTENGINE_PREFIX": name,
        "CONTEXTENGINE_OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1",
        "CONTEXTENGINE_OPENAI_API_KEY": "simulated",
        "CONTEXTENGINE_DATA_DIR": str(folder / "data"),
    }
    product = [sys.executable, "-m", "contextengine"]
    with (
        process("simulator", [sys.executable, __file__, "--part", "simulator", str(port), str(folder / "arrived")]),
        process("worker", [*product, "worker", "--rules", str(rules), "--port", "0"], environ),
        process("deliver", [*product, "deliver", "--port", "0"], environ),
    ):
        await members(address, settings.worker_group, settings.deliver_group)
        await publish(address, catalogue(settings).events.name, rate, WARM_UP_S + seconds)
        await asyncio.sleep(2)
    arrived = settled(json.loads((folder / "arrived").read_text()))
    topics = catalogue(settings)
    texts: dict[tuple[str, int], bytes] = {}
    async for record in read(address, topics.injections.name):
        if isinstance(record, InjectionAttempt):
            texts[record.injection.injection_id, record.attempt] = record.injection.context.render().encode()
    acknowledged = []
    async for record in read(address, topics.attempts.name):
        if isinstance(record, AttemptVerdict) and record.answered_ms:
            stamp = STAMP.search(texts.get((record.injection_id, record.attempt), b""))
            if stamp:
                acknowledged.append((int(stamp[1]), record.answered_ms - int(stamp[1]) / 1e6))
    return arrived, settled(acknowledged)


async def bare(address: str, rate: int, seconds: float) -> list[float]:
    """Latencies of two hops of aiokafka, in ms."""
    name, file = new_name(), Path(tempfile.mkdtemp()) / "arrived"
    events, passed_on = f"{name}.events", f"{name}.passed-on"
    await create_topics(address, events, passed_on)
    part = [sys.executable, __file__, "--part"]
    with (
        process("relay", [*part, "relay", address, events, passed_on]),
        process("sink", [*part, "sink", address, passed_on, str(file)]),
    ):
        await members(address, f"{events}-relay", f"{passed_on}-sink")
        await publish(address, events, rate, WARM_UP_S + seconds)
        await asyncio.sleep(1)
    return settled(json.loads(file.read_text()))


async def members(address: str, *groups: str) -> None:
    """Wait until each of the groups is in balance, and a little longer: a worker restores first."""
    client = AIOKafkaAdminClient(bootstrap_servers=address)
    await client.start()
    try:
        for name in groups:
            while not await in_balance(client, name):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
    finally:
        await client.close()
    await asyncio.sleep(3)


async def in_balance(client: AIOKafkaAdminClient, group: str) -> bool:
    """Whether a group has all its members."""
    try:
        return bool((await client.describe_consumer_groups([group]))[0].groups[0][2] == "Stable")
    except GroupCoordinatorNotAvailableError:  # a new Kafka makes its offsets topic first
        return False


async def read(address: str, topic: str) -> AsyncIterator[Any]:
    """Every record of a topic."""
    async with AIOKafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest") as consumer:
        tps = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        consumer.assign(tps)
        ends = await consumer.end_offsets(tps)
        while any([await consumer.position(tp) < ends[tp] for tp in tps]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    if record.value:
                        yield decode(record.value)


def settled(arrived: list[tuple[int, float]]) -> list[float]:
    """The latencies of what was published after the warm-up."""
    first = min(published for published, _ in arrived)
    return [latency for published, latency in arrived if published > first + WARM_UP_S * 1e9]


def percentiles(latencies: Sequence[float]) -> tuple[float, float]:
    """The median and the 99th percentile."""
    cuts = statistics.quantiles(latencies, n=100)
    return cuts[49], cuts[98]


def measure(address: str, rates: Sequence[int], runs: int, seconds: float) -> None:
    """Each rate, ours and the bare chain in turn; the medians of the runs' percentiles."""
    print(
        f"{machine()}\np50 / p99 in ms, median of {runs} runs of {seconds:g} s; 1 event in {ONE_MESSAGE_IN} a message\n"
    )
    print(f"{'events/s':>10}{'bare chain':>20}{'event to provider':>20}{'p99, times bare':>18}{'to acknowledged':>20}")
    for rate in rates:
        found: dict[str, list[tuple[float, float]]] = {"bare": [], "ours": [], "acknowledged": []}
        for number in range(runs):
            say(f"{rate} events/s, run {number + 1}: the bare chain, then ours")
            found["bare"].append(percentiles(asyncio.run(bare(address, rate, seconds))))
            arrived, acknowledged = asyncio.run(ours(address, rate, seconds))
            found["ours"].append(percentiles(arrived))
            found["acknowledged"].append(percentiles(acknowledged))
            say(", ".join(f"{name} {of[-1][0]:.1f} / {of[-1][1]:.1f}" for name, of in found.items()))
        medians = {name: [statistics.median(of) for of in zip(*all_of, strict=True)] for name, all_of in found.items()}
        cells = {name: f"{p50:.1f} / {p99:.1f}" for name, (p50, p99) in medians.items()}
        times = medians["ours"][1] / medians["bare"][1]
        print(f"{rate:>10,}{cells['bare']:>20}{cells['ours']:>20}{times:>18.1f}{cells['acknowledged']:>20}", flush=True)
        if rate in FLOORS:
            floor(f"p99 from event to provider at {rate} events/s, times the bare chain's", times, at_most=FLOORS[rate])


def main() -> None:
    """See the module's docstring."""
    parser = arguments(__doc__, runs=3)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rates", type=int, nargs="+", default=list(FLOORS))
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        part, *rest = given.part
        asyncio.run({"simulator": simulator, "relay": relay, "sink": sink}[part](*rest))
        return
    with broker(given) as address:
        measure(address, given.rates, given.runs, given.seconds)


if __name__ == "__main__":
    main()
