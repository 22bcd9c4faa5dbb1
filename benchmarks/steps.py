"""Where each microsecond of an event goes: the product's own worker with the demo's rules, step by step.

    python benchmarks/steps.py [--events 200000] [--broker HOST:PORT]

The worker runs in this process twice on what a VoiceEngine publishes about a thousand calls (calls.py): once as it is,
for the rate and for the processor time of an event; once with a stopwatch around each step, which counts neither the
steps inside it nor what the stopwatch itself takes, nor the time that other processes had the processor for (as far as
can be told: their share is taken for the same in all steps).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest.mock import patch

from arena import arguments, broker, committed, fill, group, machine, new_name, say
from calls import call_records

from contextengine.agents import outbox, sessions
from contextengine.app import build_app, run_worker
from contextengine.demo.run import RULES
from contextengine.engine import decide
from contextengine.engine.lives import Lives
from contextengine.engine.rules import RuleSet
from contextengine.rulefile import parse_rules
from contextengine.schemas.codec import Codec
from contextengine.settings import load
from contextengine.tables import live
from contextengine.tables.live import LiveTable
from contextengine.tables.stores import MemoryStore
from contextengine.topics import admin

STEPS: Final[list[tuple[str, Any, str]]] = [
    ("decode", Codec, "decode"),
    ("is it an event of this partition", sessions, "event_in"),
    ("load the session", LiveTable, "get"),
    ("advance the session", decide, "advance"),
    ("which rules are concerned (words, phrases, emotion)", RuleSet, "concerned"),
    ("rules: their evidence", decide, "_evidence"),
    ("builders and filters", decide, "_consider"),
    ("lives: release what waits", Lives, "release"),
    ("lives: wait", Lives, "wait"),
    ("lives: judge a verdict", Lives, "judge"),
    ("timers of the session", decide, "_arm"),
    ("seal: digest and explanation", decide, "_seal"),
    ("decide, the rest", sessions, "decide"),
    ("store the session", sessions.SessionsAgent, "_store"),
    ("encode outputs", Codec, "encode"),
    ("outputs: collect", sessions.SessionsAgent, "_send"),
    ("outputs: record batches", outbox, "record_batches"),
    ("flush: encode the states", LiveTable, "snapshot"),
    ("flush: record batches", live, "record_batches"),
    ("flush: into the store", MemoryStore, "write"),
]


class Stopwatch:
    """The time of steps, each without the steps inside it."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._took: Counter[str] = Counter()
        self._inner_calls: Counter[str] = Counter()
        self._inside: list[list[Any]] = []
        self._elapsed = self._worked = 0

    def around(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed; what it yields is made at once."""

        def timed(*given: Any, **named: Any) -> Any:
            frame: list[Any] = [step, 0]
            outermost = not self._inside
            worked = time.thread_time_ns() if outermost else 0
            self._inside.append(frame)
            began = time.perf_counter_ns()
            try:
                found = function(*given, **named)
                return iter(list(found)) if isinstance(found, Iterator) else found
            finally:
                took = time.perf_counter_ns() - began
                self._inside.pop()
                self.calls[step] += 1
                self._took[step] += took - frame[1]
                if outermost:
                    self._elapsed += took
                    self._worked += time.thread_time_ns() - worked
                else:
                    self._inside[-1][1] += took
                    self._inner_calls[self._inside[-1][0]] += 1

        return timed

    def calibrated(self) -> dict[str, float]:
        """Nanoseconds of processor time for each step, without the stopwatch's own."""
        probe, count = Stopwatch(), 50_000
        nothing = probe.around("nothing", lambda: None)
        several = probe.around("several", lambda: [nothing() for _ in range(count)])
        several()
        inside, outside = probe._took["nothing"] / count, probe._took["several"] / count
        own_time = min(1.0, self._worked / self._elapsed)
        return {
            step: max(0.0, took * own_time - self.calls[step] * inside - self._inner_calls[step] * outside)
            for step, took in self._took.items()
        }


@contextmanager
def every_step(stopwatch: Stopwatch) -> Iterator[None]:
    """Time each of STEPS."""
    patches = [patch.object(owner, name, stopwatch.around(step, getattr(owner, name))) for step, owner, name in STEPS]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()


async def prepare(address: str, events: int) -> str:
    """Topics with so many events; their prefix."""
    name = new_name()
    await admin.apply(load(environ={}, broker=address, prefix=name), log_id=name)
    await fill(address, f"{name}.events", call_records(events, parse_rules(RULES.read_text(), str(RULES))))
    return name


async def run(address: str, name: str, events: int) -> tuple[float, float, float]:
    """Events a second; microseconds of processor time for an event, of the worker's and of the consumer's thread."""
    settings = load(environ={}, broker=address, prefix=name)
    stop, worker = asyncio.Event(), build_app(settings)
    running = asyncio.create_task(run_worker(settings, RULES.read_text(), stop, worker))
    async with group(address, settings.worker_group) as client:
        while not (first := await committed(client, f"{name}.events")):  # noqa: ASYNC110  it is in Kafka
            await asyncio.sleep(0.05)
        began = time.monotonic(), time.thread_time(), time.process_time()
        while (done := await committed(client, f"{name}.events")) < events:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        took = time.monotonic() - began[0]
        main = time.thread_time() - began[1]
        others = time.process_time() - began[2] - main
    stop.set()
    await running
    count = done - first
    return count / took, main / count * 1e6, others / count * 1e6


def main() -> None:
    """See the module's docstring."""
    parser = arguments(__doc__, runs=1)
    parser.add_argument("--events", type=int, default=200_000)
    given = parser.parse_args()
    with broker(given) as address:
        print(machine())
        say("the worker as it is")
        rate, in_main, in_consumer = asyncio.run(
            run(address, asyncio.run(prepare(address, given.events)), given.events)
        )
        say("the worker under the stopwatch")
        name, stopwatch = asyncio.run(prepare(address, given.events)), Stopwatch()
        with every_step(stopwatch):
            asyncio.run(run(address, name, given.events))
    print(f"\n{rate:,.0f} committed events/s; an event takes {in_main + in_consumer:.1f} us of processor time\n")
    print(f"{'step':55}{'us an event':>12}{'calls an event':>16}{'us a call':>12}")
    print(f"{'fetch and parse (a thread of its own)':55}{in_consumer:12.2f}")
    steps = stopwatch.calibrated()
    for step, _, _ in STEPS:
        each, calls = steps.get(step, 0.0) / given.events / 1_000, stopwatch.calls[step] / given.events
        print(f"{step:55}{each:12.2f}{calls:16.2f}{each / calls if calls else 0:12.2f}")
    rest = in_main - sum(steps.values()) / given.events / 1_000
    print(f"{'the rest: the loop over a batch, delivery, sending, asyncio':55}{rest:12.2f}")


if __name__ == "__main__":
    main()
