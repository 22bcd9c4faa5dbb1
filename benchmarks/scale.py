"""How the work scales: with workers, sessions, rules and the size of an event.

    python benchmarks/scale.py [--only workers sessions rules size] [--broker HOST:PORT]

workers    1, 2 and 3 `contextengine worker` on 12 partitions: committed events/s together. More workers than cores, and
           the broker beside them, share what the machine has: read it with the number of cores in the first line.
sessions   100, 1,000 and 10,000 sessions: processor time for an event (decode and decide, in this process, no broker)
rules      10, 100 and 1,000 rules that listen to words (and 1 in 10 to silence): the same
size       messages of 100, 400, 4,000 and 40,000 characters: the same
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final

from arena import arguments, broker, commit_rate, fill, machine, new_name, process, say
from calls import SAID, TURNS, call_records, event_of

from contextengine.demo.run import RULES
from contextengine.engine.decide import decide
from contextengine.engine.rules import RuleSet
from contextengine.rulefile import parse_rules
from contextengine.schemas.codec import decode, encode
from contextengine.schemas.session import Partition, Session
from contextengine.settings import load
from contextengine.topics import admin

EVENTS: Final = 60_000
DEMO: Final = parse_rules(RULES.read_text(), str(RULES))


async def with_workers(address: str, count: int) -> float:
    """Committed events/s of so many workers together."""
    name, events = new_name(), 200_000 * count
    settings = load(environ={}, broker=address, prefix=name)
    await admin.apply(settings, log_id=name)
    await fill(address, f"{name}.events", call_records(events, DEMO))
    command = [sys.executable, "-m", "contextengine", "worker", "--rules", str(RULES), "--port", "0"]
    command += ["--broker", address, "--prefix", name]
    with ExitStack() as running:
        workers = [running.enter_context(process(f"worker {number}", command)) for number in range(count)]
        return await commit_rate(address, settings.worker_group, f"{name}.events", events, workers)


def cost(values: Sequence[bytes], rules: RuleSet) -> float:
    """Microseconds of processor time to decode and decide an event, the best of three."""
    best = float("inf")
    for _ in range(3):
        sessions: dict[str, Session] = {}
        partition, now_ms = Partition(0), 1_700_000_000_000
        began = time.process_time()
        for number, value in enumerate(values):
            event: Any = decode(value)
            session = sessions.get(event.session_id)
            if session is None:
                session = sessions[event.session_id] = Session(event.session_id)
            decide(session, partition, event, now_ms + number // 50, rules)
        best = min(best, time.process_time() - began)
    return best / len(values) * 1e6


def calls(sessions: int, said: Sequence[str] = SAID) -> list[bytes]:
    """Events of so many calls, in turns."""
    return [
        encode(event_of(f"session-{n % sessions:08d}", n // sessions, said[(n // sessions + n) % len(said)]))
        for n in range(EVENTS)
    ]


def with_rules(count: int) -> RuleSet:
    """So many rules, of which a call fires as few as ever."""
    told = ""
    for number in range(count):
        when = "silence: 40 s" if number % 10 == 0 else f"keyword: [topic{number}, {number} o clock]"
        told += f"  - name: rule-{number}\n    when:\n      {when}\n"
        told += f"    inject:\n      strategy:\n        tone: number {number}\n"
    return parse_rules(f"rules:\n{told}", "made")


def main() -> None:
    """See the module's docstring."""
    parser = arguments(__doc__, runs=1)
    measured = ("workers", "sessions", "rules", "size")
    parser.add_argument("--only", nargs="+", choices=measured, default=measured)
    given = parser.parse_args()
    print(machine())
    if "workers" in given.only:
        with broker(given) as address:
            for count in (1, 2, 3):
                say(f"{count} workers")
                print(
                    f"{count} workers: {asyncio.run(with_workers(address, count)):,.0f} committed events/s", flush=True
                )
    if "sessions" in given.only:
        for sessions in (100, 1_000, 10_000):
            print(f"{sessions:,} sessions: {cost(calls(sessions), DEMO):.1f} us an event", flush=True)
    if "rules" in given.only:
        for rules in (10, 100, 1_000):
            print(f"{rules:,} rules: {cost(calls(1_000), with_rules(rules)):.1f} us an event", flush=True)
    if "size" in given.only:
        share = sum(kind.__name__ == "MessageCompleted" for kind, _ in TURNS) / len(TURNS)
        for characters in (100, 400, 4_000, 40_000):
            said = ["word " * (characters // 5)]
            each = cost(calls(1_000, said)[: EVENTS // 2], DEMO)
            print(f"messages of {characters:,} characters ({share:.0%} of events): {each:.1f} us an event", flush=True)


if __name__ == "__main__":
    main()
