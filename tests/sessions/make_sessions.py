"""Records the sessions in this folder anew: real conversations, held through a real pipeline.

    python tests/sessions/make_sessions.py DATA [GROUP ...]

DATA holds `multiwoz/val.jsonl.gz` and `tiage/dev.jsonl` (SOURCES.md says where they are from). Conversations are picked
by a fixed seed and played ten times as fast as in life by the demo's VoiceEngine, in groups: each has its own rules,
and a simulated provider that is well or in trouble. Without a GROUP all are recorded. Times, and so the recordings,
differ from run to run.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import sys
import tempfile
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from openai import AsyncOpenAI

from contextengine.adapters.simulators.openai_realtime import Fault, FaultKind, RealtimeSimulator
from contextengine.broker import EmbeddedBroker
from contextengine.demo.processes import Part
from contextengine.demo.run import RULES, _say
from contextengine.demo.timing import PEOPLE, Conversation, Turn
from contextengine.demo.voice_engine import Call
from contextengine.replay.recorder import record
from contextengine.replay.recording import write
from contextengine.replay.span import Span
from contextengine.schemas.events import (
    ASSISTANT,
    ATTACH,
    HAND_OFF,
    USER,
    ContextRequested,
    ConversationEvent,
    ErrorOccurred,
    SessionStarted,
    StreamStateChanged,
    ToolCallEnded,
    ToolCallStarted,
    TopicChanged,
)
from contextengine.schemas.injection import InjectionAttempt, Verdict
from contextengine.settings import PREFIX, Settings, load
from contextengine.streaming.injections import Injections
from contextengine.topics import admin
from contextengine.topics.publisher import Publisher

HERE: Final = Path(__file__).parent
SEED: Final = 4
SPEED: Final = 10.0
TURNS: Final = 16
OUTCOMES_S: Final = 3.0
"""How long the last attempts of a group may take."""
REPORTS_S: Final = 14.0
"""As long as that a hand-off that nobody reports on is waited for."""
BEFORE_A_MINUTE_S: Final = 3.0
"""The calls of a monitored group begin so long before a minute of the wall clock does; each lasts longer."""
NOWHERE: Final = "carrier_pigeon"
CROWD: Final = "rules:\n" + "".join(
    f"  - {{name: guest-{number:02}, when: {{conversation_reaches: 20 s}}, place: silence, quiet: 1 h, ttl: 1 h,"
    f" inject: {{information: {{guest: '{number}'}}}}}}\n"
    for number in range(66)
)
TROUBLE: Final = [
    Fault(FaultKind.REFUSE),
    Fault(FaultKind.LOSE),
    Fault(FaultKind.REFUSE, code="invalid_value", error_type="invalid_request_error"),
    Fault(FaultKind.SLOW, latency_ms=400),
    Fault(FaultKind.DROP_UNACKED),
    Fault(FaultKind.REFUSE, latency_ms=200),
    Fault(FaultKind.DROP_UNSEEN),
    Fault(FaultKind.MUTE),
    Fault(FaultKind.NONSENSE),
]
TOOL: Final = {"tool": "look_up", "tool_call_id": "call_1"}
TOOL_AGAIN: Final = {"tool": "look_up", "tool_call_id": "call_2"}
MONITORED: Final[list[tuple[type[ConversationEvent], dict[str, Any]]]] = [
    (TopicChanged, {"topic": "offer"}),
    (ContextRequested, {"request_id": "request-1", "query": "what is the goal?"}),
    (TopicChanged, {"topic": "payment"}),
    (ToolCallStarted, TOOL),
    (ToolCallEnded, TOOL | {"failed": True}),
    (TopicChanged, {"topic": "offer"}),
    (ErrorOccurred, {"stage": "response", "code": "timeout", "message": "the model did not answer"}),
    (TopicChanged, {"topic": "payment"}),
    (ToolCallStarted, TOOL_AGAIN),
    (ToolCallEnded, TOOL_AGAIN),
    (TopicChanged, {"topic": "offer"}),
    (StreamStateChanged, {"state": "slow", "latency_ms": 2_500}),
    (StreamStateChanged, {"state": "well", "latency_ms": 80}),
]
"""What a monitor tells of a call beside its VoiceEngine, one after the other."""
MONITOR_S: Final = 0.3


@dataclass(frozen=True)
class Group:
    """Conversations under the same rules, and how they reach their provider."""

    name: str
    rules: str
    conversations: list[Conversation]
    faults: list[Fault] = field(default_factory=list)
    route: str = ATTACH
    monitored: bool = False


class Troubled(RealtimeSimulator):
    """Its faults are for what is put into a call, not for what is said in it."""

    def _create_item(self, call: Any, socket: Any, event: dict[str, Any]) -> None:
        if "id" in event["item"]:
            super()._create_item(call, socket, event)
            return
        kept, self.faults = self.faults, deque()
        super()._create_item(call, socket, event)
        self.faults = kept


class Rerouted:
    """A publisher whose sessions say that their contexts go by another route."""

    def __init__(self, publisher: Publisher, route: str) -> None:
        self.flush = publisher.flush
        self._publisher, self._route = publisher, route

    def session(self, name: str) -> SimpleNamespace:
        """As the publisher's."""
        publish = self._publisher.session(name).publish

        def rerouted(kind: type, **fields: Any) -> None:
            publish(kind, **(fields | {"route": self._route} if kind is SessionStarted else fields))

        return SimpleNamespace(publish=rerouted)


def picked(data: Path) -> list[list[Conversation]]:
    """A list from each corpus, in an order that the seed gives."""
    multiwoz = _read(data / "multiwoz" / "val.jsonl.gz", "multiwoz", "MultiWOZ 2.1, val", {"U": USER, "S": ASSISTANT})
    tiage = _read(data / "tiage" / "dev.jsonl", "tiage", "TIAGE, dev", {"A": USER, "B": ASSISTANT})
    return [random.Random(SEED).sample(corpus, len(corpus)) for corpus in (multiwoz, tiage)]  # noqa: S311


def _read(file: Path, corpus: str, source: str, speakers: dict[str, str]) -> list[Conversation]:
    lines = (gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()).splitlines()
    return [
        Conversation(
            name=f"{corpus}-{told['id'].lower()}",
            origin=PEOPLE,
            source=f"{source}, dialogue {told['id']}",
            licence="MIT",
            facts={"goal": "what the person came for"},
            turns=[Turn(speakers[turn["sp"]], turn["text"]) for turn in told["turns"]],
        )
        for told in map(json.loads, lines)
        if len(told["turns"]) <= TURNS
    ]


def groups(data: Path) -> list[Group]:
    """Who is played how."""
    multiwoz, tiage = (iter(corpus) for corpus in picked(data))

    def some(number: int) -> list[Conversation]:
        return [next(corpus) for _ in range(number) for corpus in (multiwoz, tiage)]

    rich, trouble, brain = [(HERE / "rules" / f"{name}.yaml").read_text() for name in ("rich", "trouble", "brain")]
    return [
        Group("demo", RULES.read_text(), some(5)),
        Group("rich", rich, some(5)),
        Group("trouble", trouble, some(4), faults=TROUBLE * 40),
        Group("handoff", trouble, some(2), route=HAND_OFF),
        Group("nowhere", rich, some(1)[:1], route=NOWHERE),
        Group("crowd", CROWD, some(1)[1:]),
        Group("brain", brain, some(2), monitored=True),
    ]


async def hold(group: Group, broker: str, logs: Path) -> None:
    """Play a group's conversations, and record each."""
    async with AsyncExitStack() as stack:
        simulator = await stack.enter_async_context(Troubled(model_says=_say, faults=group.faults))
        client = await stack.enter_async_context(
            AsyncOpenAI(base_url=simulator.base_url, api_key="simulated", max_retries=0)
        )
        environ = {
            "PREFIX": f"sessions-{uuid.uuid4().hex[:8]}",
            "OPENAI_BASE_URL": simulator.base_url,
            "OPENAI_API_KEY": "simulated",
            "DATA_DIR": str(logs / "data"),
            "BROKER": broker,
            "EMBEDDED": "true",
        }
        environ = {f"{PREFIX}{name}": value for name, value in environ.items()}
        settings = load(environ=environ)
        await admin.apply(settings, log_id=uuid.uuid4().hex)
        rules = logs / f"{group.name}.yaml"
        rules.write_text(group.rules)
        async with _running(settings, environ, rules, logs):
            handing = asyncio.create_task(_hand_over(settings, client, group))
            if group.monitored:
                await asyncio.sleep((-BEFORE_A_MINUTE_S - time.time()) % 60)
            async with (
                Publisher(settings, "voice") as publisher,
                Publisher(settings, "monitor") as monitor,
                asyncio.TaskGroup() as playing,
            ):
                for conversation in group.conversations:
                    engine: Any = publisher if group.route == ATTACH else Rerouted(publisher, group.route)
                    playing.create_task(Call(conversation, engine, SPEED, lambda _: None).play(client))
                    if group.monitored:
                        playing.create_task(_monitor(conversation, monitor))
            await asyncio.sleep(REPORTS_S if group.route == HAND_OFF else OUTCOMES_S)
            handing.cancel()
            await asyncio.wait([handing])
        for conversation in group.conversations:
            recording, unjudged = await record(settings, Span(session_id=conversation.name))
            if unjudged or recording.header.incomplete:
                raise SystemExit(f"{conversation.name}: {unjudged} events not judged, {recording.header.incomplete}")
            write(recording, HERE / f"{group.name}-{conversation.name}.jsonl")


async def _monitor(conversation: Conversation, publisher: Publisher) -> None:
    """Tell of a call what its VoiceEngine does not."""
    session = publisher.session(conversation.name)
    for kind, fields in MONITORED:
        await asyncio.sleep(MONITOR_S)
        session.publish(kind, **fields)


@asynccontextmanager
async def _running(settings: Settings, environ: dict[str, str], rules: Path, logs: Path) -> AsyncIterator[None]:
    """A worker and a delivery consumer, as processes."""
    whole = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)} | environ
    parts = [
        Part("worker", ["--rules", str(rules)], whole, settings.monitoring_host, logs / "worker.log"),
        Part("deliver", [], whole, settings.monitoring_host, logs / "deliver.log"),
    ]
    async with AsyncExitStack() as stack:
        for part in parts:
            await stack.enter_async_context(part)
        await asyncio.gather(*(part.become_ready() for part in parts))
        yield


async def _hand_over(settings: Settings, client: AsyncOpenAI, group: Group) -> None:
    """Put what is handed off into the calls: every fourth fails, and of every seventh nobody says what became of it."""
    if group.route != HAND_OFF:
        return
    async with Injections(settings) as injections:
        for conversation in group.conversations:
            await injections.watch(conversation.name)
        numbers = count(1)
        async for attempt in injections:
            number = next(numbers)
            if number % 4 == 0:
                await injections.report(
                    attempt, Verdict.FAILED, transient=True, error_class="Busy", message="try later"
                )
            elif number % 7:
                await _put_in(client, attempt)
                await injections.report(attempt, Verdict.DELIVERED, role="system")


async def _put_in(client: AsyncOpenAI, attempt: InjectionAttempt) -> None:
    injection = attempt.injection
    said: Any = [{"type": "input_text", "text": injection.context.render()}]
    async with client.realtime.connect(call_id=attempt.destination.call_id or "") as leg:
        await leg.conversation.item.create(
            item={"type": "message", "role": "system", "id": injection.injection_id, "content": said}
        )


async def main(data: Path, names: list[str]) -> None:
    """Record the groups of these names anew, one after the other."""
    chosen = [group for group in groups(data) if group.name in names or not names]
    if unknown := set(names) - {group.name for group in chosen}:
        raise SystemExit(f"no such group: {', '.join(sorted(unknown))}")
    logs = Path(tempfile.mkdtemp(prefix="contextengine-sessions-"))
    with EmbeddedBroker() as broker:
        for group in chosen:
            for old in HERE.glob(f"{group.name}-*.jsonl*"):
                old.unlink()
            await hold(group, broker.bootstrap, logs)
            print(f"{group.name}: {len(group.conversations)} sessions recorded")  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:]))
