"""Runs the demo: broker, topics, worker, delivery consumer, simulator and calls, and tells whoever watches.

Everything that it starts ends with it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
import time
import uuid
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from openai import AsyncOpenAI

from contextengine.adapters.simulators.openai_realtime import RealtimeSimulator
from contextengine.adapters.simulators.realtime_conversation import say_what_it_is_told
from contextengine.broker import EmbeddedBroker
from contextengine.demo.processes import Part
from contextengine.demo.story import Story
from contextengine.demo.summary import Summary, summarise
from contextengine.demo.timing import beats, conversations, time_scales
from contextengine.demo.view import Play
from contextengine.demo.voice_engine import Call
from contextengine.settings import PREFIX, Settings, load
from contextengine.topics import admin
from contextengine.topics.catalogue import catalogue
from contextengine.topics.publisher import Publisher
from contextengine.topics.tail import follow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from contextengine.adapters.simulators.realtime_conversation import Turn
    from contextengine.demo.screens import Nothing
    from contextengine.demo.timing import Conversation
    from contextengine.demo.voice_engine import Asked

RULES: Final = Path(__file__).parent / "rules.yaml"
EXPECTED: Final = ("stressed-about-startup", "refresh-every-ten-messages", "wrap-up-at-thirty-minutes")
"""The rules of the shipped file that every run must deliver: the three that the vision of this project names."""
PROMPTED: Final = "Take all the time you need. Shall we look at it together?"
"""What the simulated model says when a context asks it to speak."""
OUTCOMES_S: Final = 10.0
CHECK_S: Final = 0.1
LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@dataclass(frozen=True, slots=True)
class Wanted:
    """How to run the demo: `broker` None brings its own; `rules` None takes the shipped ones."""

    speed: float = 2.0
    broker: str | None = None
    config: Path | None = None
    rules: Path | None = None


async def run(wanted: Wanted, watcher: Nothing) -> Summary:
    """Run the demo to its end, and sum it up.

    Raises ContextEngineError, or a group with one, when it cannot go on. The logs of its processes are kept when
    anything went wrong; the error or the summary's last problem says where.
    """
    logs = Path(tempfile.mkdtemp(prefix="contextengine-demo-"))
    logging.basicConfig(filename=logs / "demo.log", level=logging.INFO, format=LOG_FORMAT, force=True)
    try:
        summary = await _Demo(wanted, watcher, logs).run()
    except Exception as failed:
        failed.add_note(f"logs: {logs}")
        raise
    except BaseException:
        shutil.rmtree(logs, ignore_errors=True)
        raise
    if summary.problems:
        return msgspec.structs.replace(summary, problems=[*summary.problems, f"logs: {logs}"])
    shutil.rmtree(logs, ignore_errors=True)
    return summary


class _Demo:
    def __init__(self, wanted: Wanted, watcher: Nothing, logs: Path) -> None:
        self._wanted, self._watcher, self._logs = wanted, watcher, logs
        self._story = Story()

    async def run(self) -> Summary:
        started = time.monotonic()
        problems: list[str] = []
        async with AsyncExitStack() as stack:
            simulator = await stack.enter_async_context(RealtimeSimulator(model_says=_say))
            environ = self._environ(simulator.base_url, stack)
            settings = load(environ=environ)
            self._watcher.stage(f"making the topics {settings.prefix}.*")
            await admin.apply(settings, log_id=uuid.uuid4().hex)
            self._watcher.stage("starting a worker and a delivery consumer")
            rules = self._wanted.rules or RULES
            parts = [
                Part("worker", ["--rules", str(rules)], environ, settings.monitoring_host, self._logs / "worker.log"),
                Part("deliver", [], environ, settings.monitoring_host, self._logs / "deliver.log"),
            ]
            for part in parts:
                await stack.enter_async_context(part)
            await asyncio.gather(*(part.become_ready() for part in parts))
            problems += await self._watch_calls(settings, simulator, parts)
            self._watcher.stage("stopping everything in order")
        problems += [f"{part.name} ended with status {part.status}" for part in parts if part.status]
        return summarise(
            self._story,
            seconds=time.monotonic() - started,
            prefix=settings.prefix,
            broker=settings.broker,
            expected=EXPECTED if rules == RULES else (),
            violations=simulator.violations,
            problems=problems,
        )

    def _environ(self, openai_base_url: str, stack: AsyncExitStack) -> dict[str, str]:
        """The settings of this run, for this process and the others; those of this machine count for its own Kafka."""
        replaced = PREFIX if self._wanted.broker is None else f"{PREFIX}OPENAI"
        environ = {name: value for name, value in os.environ.items() if not name.startswith(replaced)}
        own = {
            "PREFIX": f"demo-{uuid.uuid4().hex[:8]}",  # runs on the same Kafka have nothing in common
            "OPENAI_BASE_URL": openai_base_url,
            "OPENAI_API_KEY": "simulated",
            "DATA_DIR": str(self._logs / "data"),
        }
        if self._wanted.config is not None:
            own["CONFIG"] = str(self._wanted.config)
        if self._wanted.broker is not None:
            own["BROKER"] = self._wanted.broker
        else:
            self._watcher.stage("starting the embedded broker")
            own |= {"BROKER": stack.enter_context(EmbeddedBroker()).bootstrap, "EMBEDDED": "true"}
        return environ | {f"{PREFIX}{name}": value for name, value in own.items()}

    async def _watch_calls(self, settings: Settings, simulator: RealtimeSimulator, parts: Sequence[Part]) -> list[str]:
        """Play the calls, follow what comes of them until every injection has its outcome; returns problems."""
        calls = conversations()
        scales = time_scales(calls, self._wanted.speed)
        seconds = max(beats(call)[-1].at_ms / scales[call.name] for call in calls) / 1_000
        broker = f"{settings.broker}{' (embedded)' if settings.embedded else ''}"
        self._watcher.begins(self._story, Play(calls, scales, seconds, f"topics {settings.prefix}.* at {broker}"))
        following = asyncio.create_task(self._follow(settings))
        checking = asyncio.create_task(_check(parts))
        playing = asyncio.create_task(self._play(calls, scales, settings, simulator))
        try:
            await asyncio.wait([playing, following, checking], return_when=asyncio.FIRST_COMPLETED)
            for task in (following, checking):
                if task.done():
                    await task  # neither ends but by failing
            dropped = await playing
            deadline = time.monotonic() + OUTCOMES_S
            while not self._all_known(calls) and time.monotonic() < deadline:  # noqa: ASYNC110  the story is no task
                await asyncio.sleep(CHECK_S)
        finally:
            self._watcher.over()
            playing.cancel()
            following.cancel()
            checking.cancel()
            await asyncio.gather(playing, following, checking, return_exceptions=True)
        return [f"the publisher dropped {dropped} events"] if dropped else []

    def _all_known(self, calls: Sequence[Conversation]) -> bool:
        ended = sum(call.ended_ms > 0 for call in self._story.calls.values())
        return ended == len(calls) and not self._story.open_injections

    async def _play(
        self,
        calls: Sequence[Conversation],
        scales: dict[str, float],
        settings: Settings,
        simulator: RealtimeSimulator,
    ) -> int:
        """Play all calls at the same time; returns how many events were dropped."""
        client = AsyncOpenAI(base_url=simulator.base_url, api_key="simulated", max_retries=0)
        async with client, Publisher(settings, "demo") as publisher, asyncio.TaskGroup() as playing:
            for call in calls:
                playing.create_task(Call(call, publisher, scales[call.name], self._heard).play(client))
        return sum(publisher.dropped.values())

    def _heard(self, asked: Asked) -> None:
        self._watcher.tell(self._story.heard(asked))

    async def _follow(self, settings: Settings) -> None:
        topics = catalogue(settings)
        names = [
            topic.name for topic in (topics.events, topics.decisions, topics.attempts, topics.results, topics.dead)
        ]
        async with aclosing(follow(settings, names)) as records:
            async for seen in records:
                if seen.topic == topics.dead.name:
                    self._story.dead_letters += 1
                elif seen.value:  # a delivery consumer leaves empty marks
                    self._watcher.tell(self._story.observe(seen.record(), seen.appended_ms))


async def _check(parts: Sequence[Part]) -> None:
    """Raise PartFailed as soon as a process has ended."""
    while True:
        for part in parts:
            part.must_run()
        await asyncio.sleep(CHECK_S)


def _say(turn: Turn) -> str:
    return say_what_it_is_told(turn) if turn.metadata else PROMPTED
