"""`contextengine worker`, `contextengine deliver` and `contextengine broker`: the processes of an installation."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contextengine.cli.options import Broker, Config, Prefix, examples, settings_from, stop_on_signals
from contextengine.monitoring.log import configure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from contextengine.monitoring.health import Health
    from contextengine.settings import Settings

log = logging.getLogger(__name__)

Rules = Annotated[
    Path | None,
    typer.Option("--rules", metavar="FILE|FOLDER", help="Put these rules in force, if they are not.", exists=True),
]
Port = Annotated[
    int | None,
    typer.Option("--port", help="Where /health and /metrics are served; 0 picks a free one.", min=0, max=65535),
]


def register(root: typer.Typer) -> None:
    """Add the commands to the root."""
    root.command(
        epilog=examples(
            "contextengine worker --rules rules.yaml",
            "contextengine worker --broker kafka:9092 --port 8801",
        )
    )(worker)
    root.command(
        epilog=examples(
            "CONTEXTENGINE_OPENAI_API_KEY_FILE=/run/secrets/openai contextengine deliver",
            "contextengine deliver --broker kafka:9092 --port 8802",
        )
    )(deliver)
    root.command(epilog=examples("contextengine broker", "contextengine broker --port 19092"))(broker)


def worker(
    rules: Rules = None, port: Port = None, config: Config = None, broker: Broker = None, prefix: Prefix = None
) -> None:
    """Decide what to inject: take events, keep every session's state, write attempts and outcomes.

    SIGTERM or Ctrl-C stops it in order: finish what is in hand, flush, commit, leave the group.
    """
    settings = settings_from(config, broker, prefix, worker_monitoring_port=port)
    text = None
    if rules is not None:
        from contextengine.rulefile import parse_rules, read_text  # noqa: PLC0415  help needs none

        text = read_text(rules)
        parse_rules(text, str(rules))  # tells every mistake before anything is started
    asyncio.run(_worker(settings, text))


def deliver(port: Port = None, config: Config = None, broker: Broker = None, prefix: Prefix = None) -> None:
    """Put injections in front of the providers' models, and report what became of each.

    SIGTERM or Ctrl-C stops it in order: let attempts end, report them, commit, leave the group.
    """
    settings = settings_from(config, broker, prefix, deliver_monitoring_port=port)
    asyncio.run(_deliver(settings))


def broker(
    port: Annotated[int, typer.Option(help="Where it answers; 0 picks a free one.", min=0, max=65535)] = 9092,
) -> None:
    """Run the embedded broker, for a machine without Kafka: everything is in memory, and gone when it stops."""
    asyncio.run(_broker(port))


async def _broker(port: int) -> None:
    from contextengine.broker import EmbeddedBroker  # noqa: PLC0415  help needs none
    from contextengine.errors import BrokerUnavailable  # noqa: PLC0415

    stop = stop_on_signals()
    with EmbeddedBroker(port) as running:
        typer.echo("Have the other commands use it, and stop it with Ctrl-C:")
        typer.echo(f"  export CONTEXTENGINE_BROKER={running.bootstrap} CONTEXTENGINE_EMBEDDED=true")
        while not stop.is_set():
            if not running.running:
                raise BrokerUnavailable("the embedded broker has ended, and what it held is gone; start it again")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.5)


async def _worker(settings: Settings, rules_text: str | None) -> None:
    from contextengine.app import build_app, run_worker  # noqa: PLC0415  only a worker loads Faust

    stop, built = stop_on_signals(), build_app(settings)
    async with _monitored(built.health, settings, settings.worker_monitoring_port):
        await run_worker(settings, rules_text, stop, built)


async def _deliver(settings: Settings) -> None:
    from contextengine import plugins  # noqa: PLC0415  help needs none
    from contextengine.adapters.consumer import PARTITIONS, deliver  # noqa: PLC0415
    from contextengine.monitoring.health import Health  # noqa: PLC0415

    stop, health = stop_on_signals(), Health(PARTITIONS)
    adapters = {name: plugins.load("adapters", name)(settings) for name in plugins.names("adapters")}
    async with _monitored(health, settings, settings.deliver_monitoring_port):
        await deliver(settings, adapters, health, stop)


@contextlib.asynccontextmanager
async def _monitored(health: Health, settings: Settings, port: int) -> AsyncIterator[None]:
    """Serve `health` and the metrics, and watch the event loop, for the length of the block."""
    from contextengine.monitoring.health import MonitoringServer  # noqa: PLC0415  help needs none

    configure(logging.INFO, "%(asctime)s %(levelname)s %(name)s: %(message)s")
    with MonitoringServer(health, settings.monitoring_host, port) as monitoring:
        log.info("serving /health and /metrics at http://%s:%d", settings.monitoring_host, monitoring.port)
        beating = asyncio.create_task(health.keep_beating())
        try:
            yield
        finally:
            beating.cancel()
