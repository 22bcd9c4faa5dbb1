"""How many events a second one worker commits: our batch fast path beside stock Faust and beside Quix Streams.

    python benchmarks/throughput.py [--runs 5] [--broker HOST:PORT] [--only NAME ...]

The work (work.py) is the same for all: decode an Avro event of 400 bytes, update the state of its session, emit an
Avro injection (for 1 event in 50, then for every event). "Committed" means that outputs, state and offset are
acknowledged by the broker; the rate is taken from the group's committed offsets, from the first commit to the last
event. A fresh worker process for each measurement, on a topic that was filled before; everybody in turn, then again,
and medians are compared.

    stock Faust           as its documentation shows it: a table entry and an awaited send for each event, Faust's own
                          settings (only its web server is off). What "times stock" is counted from.
    stock, our settings   the same with the settings that our worker gives Faust (transport.FAUST_SETTINGS)
    Quix Streams          as its documentation shows it (quix_worker.py), in an environment of its own
    fast path             our batches, live state and outputs in record batches, with our decoder and encoder
    with fastavro         the same with fastavro for both, which is what all the others have
    no-op ceiling         batches delivered and committed, nothing done
    real worker           `contextengine worker` with the demo's rules, on what a VoiceEngine publishes about a thousand
                          calls (calls.py); what is an output the rules say

All commit every half second, except stock Faust by its own settings (2.8 s).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import faust
from arena import (
    PARTITIONS,
    arguments,
    broker,
    commit_rate,
    create_topics,
    fill,
    floor,
    machine,
    new_name,
    process,
    say,
)
from calls import call_records
from faust.worker import Worker
from work import Event, Injection, Session, SessionCodec, conversation_event, decode, injection, judge

from contextengine.agents.outbox import Outbox
from contextengine.agents.transport import FAUST_SETTINGS, BatchTopic, install
from contextengine.demo.run import RULES
from contextengine.rulefile import parse_rules
from contextengine.schemas.decoder import decoder_of
from contextengine.schemas.encoder import encoder_of
from contextengine.settings import load
from contextengine.tables.live import LiveTable
from contextengine.topics import admin as topics

QUIX_VERSION: Final = "3.28.1"
EVENTS: Final = 1_200_000
"""On the topic; the fast ones take them all, because the first second of a worker is a slow one."""


@dataclass(frozen=True)
class Run:
    """What one worker is given; `name` is its group, and its Faust app's."""

    broker: str
    name: str
    events: str
    one_output_in: int

    @property
    def injections(self) -> str:
        """Where outputs go."""
        return f"{self.name}.injections"


@dataclass(frozen=True)
class Contestant:
    """A way to do the work, measured over so many `events`; `build` makes its Faust app, if it is one."""

    name: str
    events: int
    build: Callable[[Run], faust.App] | None = None


# The contestants


def stock_faust(run: Run, **settings: Any) -> faust.App:
    """Faust as its documentation shows it: a table entry and an awaited send for each event."""
    app = faust.App(
        run.name, broker=f"kafka://{run.broker}", datadir=tempfile.mkdtemp(), **{"web_enabled": False, **settings}
    )
    sessions = app.Table("sessions", key_type=bytes, value_type=bytes, partitions=PARTITIONS)
    outputs = app.topic(run.injections, key_serializer="raw", value_serializer="raw")
    codec = SessionCodec()

    @app.agent(app.topic(run.events, key_serializer="raw", value_serializer="raw"))
    async def work(stream: Any) -> None:
        async for event in stream.events():
            found = sessions.get(event.key)
            session = codec.decode(found) if found else Session()
            output = judge(decode(event.value), session, event.message.offset, run.one_output_in)
            sessions[event.key] = codec.encode(session)
            if output is not None:
                await outputs.send(key=event.key, value=output, partition=event.message.partition)

    return app


def stock_with_our_settings(run: Run) -> faust.App:
    """The same, with what our worker sets."""
    return stock_faust(run, **FAUST_SETTINGS)


def batch_app(run: Run, store: str = "memory://") -> tuple[faust.App, LiveTable[Session], Outbox]:
    """An app to which batches are delivered."""
    app = faust.App(run.name, broker=f"kafka://{run.broker}", datadir=tempfile.mkdtemp(), **FAUST_SETTINGS)
    sessions: LiveTable[Session] = LiveTable(app, "sessions", SessionCodec(), store=store, partitions=PARTITIONS)
    outbox = Outbox(app)

    async def nothing(partitions: frozenset[int]) -> None:
        """No timers to arm."""

    install(app, BatchTopic(run.events, sessions, outbox, nothing, nothing))
    return app, sessions, outbox


def fast_path(run: Run) -> faust.App:
    """Batches, live state, outputs in record batches."""
    read, write = decoder_of(Event), encoder_of(Injection)
    return fast_path_with(run, read, lambda name, session, due_ms, text: write(Injection(name, session, due_ms, text)))


def fast_path_with_fastavro(run: Run) -> faust.App:
    """The same, with everybody's codec."""
    return fast_path_with(run, lambda value, _: (decode(value), 0), injection)


def fast_path_with(
    run: Run, read: Callable[[bytes, int], tuple[Event, int]], write: Callable[[str, str, int, str], bytes]
) -> faust.App:
    """The fast path with this codec."""
    app, sessions, outbox = batch_app(run)
    injections, one_output_in = run.injections, run.one_output_in

    @app.agent(app.topic(run.events, key_serializer="raw", value_serializer="raw"))
    async def work(stream: Any) -> None:
        async for batch in stream.events():
            partition = batch.message.partition
            async with sessions.lock(partition):
                for record in batch.value:
                    session = sessions.get(partition, record.key) or Session()
                    if record.offset <= session.offset:
                        continue
                    event, _ = read(record.value, 0)
                    output = judge(event, session, record.offset, one_output_in, write)
                    sessions.put(partition, record.key, session, record.offset)
                    if output is not None:
                        outbox.add(injections, partition, record.key, output)
                    if outbox.is_due(partition):
                        await outbox.send(partition)
                await outbox.send(partition)

    return app


def ceiling(run: Run) -> faust.App:
    """Batches delivered and committed, nothing done."""
    app, _, _ = batch_app(run)

    @app.agent(app.topic(run.events, key_serializer="raw", value_serializer="raw"))
    async def work(stream: Any) -> None:
        async for _ in stream.events():
            pass

    return app


STOCK, QUIX, FAST, NO_OP, REAL = "stock Faust", "Quix Streams", "fast path", "no-op ceiling", "real worker"
CONTESTANTS: Final[Sequence[Contestant]] = [
    Contestant(STOCK, 25_000, stock_faust),
    Contestant("stock, our settings", 20_000, stock_with_our_settings),
    Contestant(QUIX, 400_000),
    Contestant(FAST, EVENTS, fast_path),
    Contestant("with fastavro", EVENTS, fast_path_with_fastavro),
    Contestant(NO_OP, EVENTS, ceiling),
    Contestant(REAL, 310_000),
]


def quix_python() -> str:
    """The interpreter of Quix Streams' own environment, which is made the first time."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "contextengine"
    home = cache / f"quixstreams-{QUIX_VERSION}"
    python, made = home / "bin" / "python", home / "made"
    if not made.exists():
        say(f"installing Quix Streams {QUIX_VERSION} into {home}")
        venv.create(home, with_pip=True, clear=True)
        ours = [f"{name}=={version(name)}" for name in ("fastavro", "msgspec")]
        subprocess.run([python, "-m", "pip", "install", "-q", f"quixstreams=={QUIX_VERSION}", *ours], check=True)
        made.touch()
    return str(python)


def command(contestant: Contestant, run: Run) -> list[str]:
    """What starts its worker."""
    if contestant.name == REAL:
        worker = [sys.executable, "-m", "contextengine", "worker", "--rules", str(RULES), "--port", "0"]
        return [*worker, "--broker", run.broker, "--prefix", run.name]
    given = [run.broker, run.name, run.events]
    if contestant.name == QUIX:
        script = str(Path(__file__).parent / "quix_worker.py")
        return [quix_python(), script, *given, run.injections, str(run.one_output_in)]
    return [sys.executable, __file__, "--worker", contestant.name, *given, str(run.one_output_in)]


# The measurement


async def measure(contestant: Contestant, run: Run) -> float:
    """Committed events a second of one fresh worker."""
    name = run.name
    if contestant.name == REAL:
        settings = load(environ={}, broker=run.broker, prefix=run.name)
        await topics.apply(settings, log_id=run.name)
        rules = parse_rules(RULES.read_text(), str(RULES))
        await fill(run.broker, run.events, call_records(contestant.events, rules))
        name = settings.worker_group
    elif contestant.name == QUIX:
        await create_topics(run.broker, run.injections)
    else:
        await create_topics(run.broker, run.injections, f"{run.name}-sessions-changelog")
    with process(contestant.name, command(contestant, run)) as worker:
        return await commit_rate(run.broker, name, run.events, contestant.events, [worker])


def race(address: str, runs: int, only: Sequence[str]) -> None:
    """Run everybody in turn, and print the medians."""
    contestants = [contestant for contestant in CONTESTANTS if not only or contestant.name in only]
    print(f"{machine()}, Quix Streams {QUIX_VERSION}\nCommitted events/s of one worker, median of {runs} (all runs)\n")
    events = new_name()
    say(f"filling a topic with {EVENTS:,} events")
    asyncio.run(create_topics(address, events))
    asyncio.run(fill(address, events, map(conversation_event, range(EVENTS))))
    rates: dict[tuple[str, int], list[float]] = defaultdict(list)
    for number in range(runs):
        for contestant in contestants:
            for one_output_in in (50,) if contestant.name in {NO_OP, REAL} else (50, 1):
                name = new_name()
                topic = f"{name}.events" if contestant.name == REAL else events
                rate = asyncio.run(measure(contestant, Run(address, name, topic, one_output_in)))
                say(f"round {number + 1}: {contestant.name}, 1 output in {one_output_in}: {rate:,.0f} events/s")
                rates[contestant.name, one_output_in].append(rate)
    print(f"{'':20}{'1 output in 50':>54}{'every event an output':>54}{'times stock':>16}")
    medians = {key: statistics.median(of) for key, of in rates.items()}
    for contestant in contestants:
        cells, ratios = [], []
        for one_output_in in (50, 1):
            key = (contestant.name, one_output_in)
            if key in rates:
                cells.append(f"{medians[key]:,.0f} ({', '.join(f'{rate:,.0f}' for rate in rates[key])})")
                if base := medians.get((STOCK, one_output_in)):
                    ratios.append(f"{medians[key] / base:.1f}")
        print(f"{contestant.name:20}{''.join(f'{cell:>54}' for cell in cells):108}{' / '.join(ratios):>16}")
    print()
    for what, ours, theirs, least in (
        ("fast path over stock Faust, 1 output in 50", (FAST, 50), (STOCK, 50), 35),
        ("fast path over stock Faust, every event an output", (FAST, 1), (STOCK, 1), 25),
        ("fast path over Quix Streams, 1 output in 50", (FAST, 50), (QUIX, 50), 3),
        ("fast path over Quix Streams, every event an output", (FAST, 1), (QUIX, 1), 3),
        ("fast path over the no-op ceiling", (FAST, 50), (NO_OP, 50), 0.33),
    ):
        if ours in medians and theirs in medians:
            floor(what, medians[ours] / medians[theirs], at_least=least)


def work(name: str, *run: str) -> None:
    """Be a contestant's worker."""
    build = next(contestant.build for contestant in CONTESTANTS if contestant.name == name)
    if build is not None:
        app = build(Run(*run[:3], one_output_in=int(run[3])))
        Worker(app, loglevel="WARNING").execute_from_commandline()


def main() -> None:
    """See the module's docstring."""
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", default=[], choices=[contestant.name for contestant in CONTESTANTS])
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(*given.worker)
        return
    with broker(given) as address:
        race(address, given.runs, given.only)


if __name__ == "__main__":
    main()
