"""`contextengine audit`: is everything there that must be, and nothing else?"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Final

import typer

from contextengine.cli.options import (
    FOUND_PROBLEMS,
    INTERRUPTED,
    AsJson,
    Broker,
    Config,
    Prefix,
    examples,
    settings_from,
    unless_stopped,
    write_json,
)
from contextengine.cli.record import Partition, Session, Since, Until, span

if TYPE_CHECKING:
    from contextengine.replay.report import Report

Show = Annotated[int, typer.Option("--show", min=0, metavar="N", help="Show so many findings; --json has all.")]
COUNTS: Final = (
    *("events", "sessions", "decisions", "injections", "attempts", "outcomes", "open", "verdicts", "states"),
    *("undecodable", "dead_letters", "copies", "unjudged"),
)


def register(root: typer.Typer) -> None:
    """Add the command to the root."""
    root.command(
        epilog=examples(
            "contextengine audit",
            "contextengine audit --session s1",
            "contextengine audit --from 2h --json | jq .findings",
        )
    )(audit)


def audit(
    session: Session = None,
    since: Since = None,
    until: Until = None,
    partition: Partition = None,
    show: Show = 20,
    as_json: AsJson = False,
    config: Config = None,
    broker: Broker = None,
    prefix: Prefix = None,
) -> None:
    """Judge the events topic again, and compare all that was written: injections, outcomes, dead letters, states.

    Exit code 1 if anything is missing, differs, or is there without a reason, and also if there was nothing to judge:
    an unknown session, an empty range, events that no worker has judged. May run beside a live installation: what
    is open, or not judged yet, is counted and is no finding.
    """
    from contextengine.replay.audit import audit as made  # noqa: PLC0415  help needs none

    settings, meant = settings_from(config, broker, prefix), span(session, since, until, partition)
    report = asyncio.run(unless_stopped(made(settings, meant, progress=None if as_json else _tell)))
    if report is None:
        raise typer.Exit(INTERRUPTED)
    if as_json:
        import msgspec  # noqa: PLC0415  help needs none

        write_json(msgspec.to_builtins(report))
    else:
        _show(report, show)
    if not report.is_clean:
        raise typer.Exit(FOUND_PROBLEMS)


def _tell(partition: int, report: Report) -> None:
    typer.echo(f"partition {partition}: {report.events} events so far, {len(report.findings)} findings", err=True)


def _show(report: Report, show: int) -> None:
    for name in COUNTS:
        typer.echo(f"{name.replace('_', ' '):14}{getattr(report, name):>10,}")
    for session_id, why in report.unknown.items():
        typer.secho(f"session {session_id} could not be judged again: {why}", fg="yellow", err=True)
    for note in report.notes:
        typer.secho(note, fg="yellow", err=True)
    for finding in report.findings[:show]:
        typer.secho(str(finding), fg="red", err=True)
    if len(report.findings) > show:
        typer.secho(f"and {len(report.findings) - show} more; --json has all", fg="red", err=True)
    if report.findings:
        typer.echo(f"{len(report.findings)} findings")
    else:
        typer.echo("nothing is missing, nothing differs" if report.has_judged else "nothing was judged")
