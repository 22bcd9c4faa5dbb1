"""`contextengine demo`: four calls get their context, on this machine, in about a minute."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Annotated

import typer

from contextengine.cli.options import FOUND_PROBLEMS, INTERRUPTED, Config, examples, unless_stopped, write_json

Speed = Annotated[float, typer.Option("--speed", min=0.5, max=6, help="How many times as fast as in life.")]
Broker = Annotated[
    str | None, typer.Option("--broker", metavar="HOST:PORT", help="Use this Kafka, not an embedded broker.")
]
Rules = Annotated[
    Path | None,
    typer.Option("--rules", metavar="FILE|FOLDER", help="Your rules, not the demo's.", exists=True),
]
Picture = Annotated[Path | None, typer.Option("--picture", metavar="SVG", hidden=True, help="Take a picture.")]
AsJson = Annotated[bool, typer.Option("--json", help="Show nothing on the way; write the summary as JSON.")]


def register(root: typer.Typer) -> None:
    """Add the command to the root."""
    root.command(
        epilog=examples(
            "contextengine demo",
            "contextengine demo --rules my-rules.yaml",
            "contextengine demo --broker kafka:9092 --speed 4 --json",
        )
    )(demo)


def demo(
    speed: Speed = 2.0,
    broker: Broker = None,
    rules: Rules = None,
    as_json: AsJson = False,
    picture: Picture = None,
    config: Config = None,
) -> None:
    """Watch four calls get their context, on this machine, in about a minute.

    Three conversations that people wrote and one that was written for this run at the same time, with timing made from
    speaking rate, against a simulator of OpenAI Realtime. Nothing leaves this machine. Ctrl-C stops everything.
    """
    import msgspec  # noqa: PLC0415  help needs none
    from rich.console import Console  # noqa: PLC0415

    from contextengine.demo.run import Wanted, run  # noqa: PLC0415
    from contextengine.demo.screens import Lines, Nothing, Screen  # noqa: PLC0415
    from contextengine.demo.view import summary_table  # noqa: PLC0415
    from contextengine.rulefile import parse_rules, read_text  # noqa: PLC0415

    if rules is not None:
        parse_rules(read_text(rules), str(rules))  # tells every mistake before anything is started
    console = Console()
    if picture is not None or (console.is_terminal and not as_json):
        watcher: Nothing = Screen(console if console.is_terminal else Console(file=io.StringIO()), picture)
    else:
        watcher = Nothing() if as_json else Lines(console)
    summary = asyncio.run(unless_stopped(run(Wanted(speed, broker, config, rules), watcher)))
    if summary is None:
        raise typer.Exit(INTERRUPTED)
    if as_json:
        write_json(msgspec.to_builtins(summary))
    else:
        console.print(summary_table(summary), soft_wrap=not console.is_terminal)
    if summary.problems:
        raise typer.Exit(FOUND_PROBLEMS)
