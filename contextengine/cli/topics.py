"""`contextengine topics`: makes the topics, and says how they differ from what they must be."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from contextengine.cli.options import (
    FOUND_PROBLEMS,
    AsJson,
    Broker,
    Config,
    Prefix,
    examples,
    settings_from,
    write_json,
)

if TYPE_CHECKING:
    from contextengine.topics.admin import Report

app = typer.Typer(no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the commands to the root."""
    root.add_typer(app, name="topics", help="Make the topics, check them, list them.")


@app.command(epilog=examples("contextengine topics apply --broker kafka:9092", "contextengine topics apply --json"))
def apply(config: Config = None, broker: Broker = None, prefix: Prefix = None, as_json: AsJson = False) -> None:
    """Create the topics that are missing, and show what is not as it must be.

    What is there is never changed. Exit code 1 if differences remain.
    """
    from contextengine.topics import admin  # noqa: PLC0415  help needs none

    _show(asyncio.run(admin.apply(settings_from(config, broker, prefix), uuid.uuid4().hex)), as_json=as_json)


@app.command(epilog=examples("contextengine topics check && contextengine worker --rules rules.yaml"))
def check(config: Config = None, broker: Broker = None, prefix: Prefix = None, as_json: AsJson = False) -> None:
    """Show where the topics on the broker differ from what they must be. Exit code 1 if they do."""
    from contextengine.topics import admin  # noqa: PLC0415  help needs none

    _show(asyncio.run(admin.check(settings_from(config, broker, prefix))), as_json=as_json)


@app.command("list", epilog=examples("contextengine topics list", "contextengine topics list --json"))
def list_(config: Config = None, broker: Broker = None, prefix: Prefix = None, as_json: AsJson = False) -> None:
    """List the topics, with what each holds. Asks no broker."""
    from contextengine.topics.catalogue import catalogue  # noqa: PLC0415  help needs none

    topics = catalogue(settings_from(config, broker, prefix))
    if as_json:
        write_json([{**asdict(topic), "config": topic.config()} for topic in topics])
        return
    width = max(len(topic.name) for topic in topics)
    typer.echo(f"{'topic':{width}}  partitions  policy   holds")
    for topic in topics:
        typer.echo(f"{topic.name:{width}}  {topic.partitions:10}  {topic.cleanup:7}  {topic.holds}")


def _show(report: Report, *, as_json: bool) -> None:
    if as_json:
        write_json(asdict(report))
    else:
        for name in report.created:
            typer.echo(f"created {name}")
        for difference in report.differences:
            typer.secho(str(difference), fg="red")
        for note in report.notes:
            typer.secho(f"note: {note}", dim=True)
        if not report.differences:
            typer.echo("the topics are as they must be")
    if report.differences:
        raise typer.Exit(FOUND_PROBLEMS)
