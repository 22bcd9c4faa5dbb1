"""What several commands share: options, examples, settings, and the way to stop."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias, TypeVar

import typer

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from contextengine.settings import Settings

T = TypeVar("T")

FOUND_PROBLEMS: Final = 1
MISCONFIGURED: Final = 2
NO_BROKER: Final = 3
INTERRUPTED: Final = 130

EXIT_CODES: Final = (
    "\b\nExit codes: 0 all is well, or it was stopped in order; 1 problems were found;\n"
    "2 wrong usage or configuration; 3 no broker answers; 130 interrupted."
)
UNITS: Final = {"s": "seconds", "min": "minutes", "h": "hours", "d": "days"}
STOPPING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Broker: TypeAlias = Annotated[
    str | None,
    typer.Option("--broker", metavar="HOST:PORT", help="Where Kafka answers.", rich_help_panel="Settings"),
]
Prefix: TypeAlias = Annotated[
    str | None,
    typer.Option("--prefix", help="What the names of topics and groups begin with.", rich_help_panel="Settings"),
]
Config: TypeAlias = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings in TOML.", dir_okay=False, rich_help_panel="Settings"),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Write JSON, for a script.")]


def moment_ms(written: str) -> int:
    """Unix milliseconds of a time: ISO 8601, UTC unless it says otherwise, or how long ago it was."""
    if ago := re.fullmatch(r"(\d{1,6}) ?(s|min|h|d)", written):
        at = datetime.now(UTC) - timedelta(**{UNITS[ago[2]]: int(ago[1])})
    else:
        try:
            at = datetime.fromisoformat(written)
        except ValueError:
            raise typer.BadParameter(f"{written!r} is no time: 2026-01-31T09:30 or, ago, 30min, 2h, 7d") from None
    return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1_000)


def examples(*commands: str) -> str:
    """The end of a command's help: how it is used, and what it leaves."""
    return "\n\n".join(["\b\nExample:\n" + "\n".join(f"  {command}" for command in commands), EXIT_CODES])


def write_json(value: object) -> None:
    """Write a result for a script."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def settings_from(config: Path | None, broker: str | None, prefix: str | None, **given: Any) -> Settings:
    """The settings in force with these options."""
    from contextengine.settings import load  # noqa: PLC0415  help needs none

    return load(config, broker=broker, prefix=prefix, **given)


async def unless_stopped(work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; None when a signal came first, and `work` was cancelled and has cleaned up."""
    stopping, working = asyncio.create_task(stop_on_signals().wait()), asyncio.create_task(work)
    await asyncio.wait([stopping, working], return_when=asyncio.FIRST_COMPLETED)
    if working.done():
        stopping.cancel()
        return working.result()
    working.cancel()
    await asyncio.wait([working])
    return None


def stop_on_signals() -> asyncio.Event:
    """An event that the first of SIGINT, SIGTERM and SIGHUP sets; a second one ends the process as usual."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def set_once() -> None:
        stop.set()
        for number in STOPPING:
            loop.remove_signal_handler(number)

    for number in STOPPING:
        loop.add_signal_handler(number, set_once)
    return stop
