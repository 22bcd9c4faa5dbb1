"""`contextengine record`: a session, or a part of the log, into a file that can be replayed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contextengine.cli.options import (
    INTERRUPTED,
    AsJson,
    Broker,
    Config,
    Prefix,
    examples,
    moment_ms,
    settings_from,
    unless_stopped,
    write_json,
)

if TYPE_CHECKING:
    from contextengine.replay.recording import Recording
    from contextengine.replay.span import Edge, Span

Session = Annotated[str | None, typer.Option("--session", metavar="ID", help="Only this session.")]
Since = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="OFFSET|TIME",
        help="Begin here: an offset, or a time: 2026-01-31T09:30 (UTC) or, ago, 30min, 2h, 7d.",
    ),
]
Until = Annotated[str | None, typer.Option("--to", metavar="OFFSET|TIME", help="End just before this.")]
Partition = Annotated[int | None, typer.Option("--partition", min=0, metavar="N", help="Only this partition.")]
Out = Annotated[
    Path,
    typer.Option(
        "--out", metavar="FILE", help="JSON lines; gzipped, if it ends in .gz.", dir_okay=False, writable=True
    ),
]
Redact = Annotated[
    bool, typer.Option("--redact", help="Without what people said, and without names; it still replays.")
]


def register(root: typer.Typer) -> None:
    """Add the command to the root."""
    root.command(
        epilog=examples(
            "contextengine record --session s1 --out s1.jsonl",
            "contextengine record --from 2026-01-31T14:00 --to 2026-01-31T15:00 --out hour.jsonl.gz",
        )
    )(record)


def record(
    out: Out,
    session: Session = None,
    since: Since = None,
    until: Until = None,
    partition: Partition = None,
    redact: Redact = False,
    as_json: AsJson = False,
    config: Config = None,
    broker: Broker = None,
    prefix: Prefix = None,
) -> None:
    """Record a session, or a part of the events topic, with all that it was judged from and all that followed.

    Without options, all that is there. Events that no worker has judged yet are left out.
    """
    from contextengine.replay.recorder import record as made  # noqa: PLC0415  help needs none
    from contextengine.replay.recording import write  # noqa: PLC0415

    settings, meant = settings_from(config, broker, prefix), span(session, since, until, partition)
    if not out.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {out.parent}", param_hint="--out")
    found = asyncio.run(unless_stopped(made(settings, meant, progress=None if as_json else _tell)))
    if found is None:
        raise typer.Exit(INTERRUPTED)
    recording, unjudged = found
    if redact:
        from contextengine.replay.redaction import redacted  # noqa: PLC0415  help needs none

        recording = redacted(recording)
    write(recording, out)
    summary = _summary(recording) | {"unjudged": unjudged, "file": str(out), "bytes": out.stat().st_size}
    if as_json:
        write_json(summary)
        return
    typer.echo("{file}: {sessions} sessions, {records} records, {outputs} outputs ({bytes:,} bytes)".format(**summary))
    for name, why in recording.header.incomplete.items():
        typer.secho(f"session {name} cannot be replayed: {why}", fg="yellow", err=True)
    if unjudged:
        typer.secho(f"{unjudged} events are not judged yet, and left out", fg="yellow", err=True)


def span(session: str | None, since: str | None, until: str | None, partition: int | None) -> Span:
    """The part of the events topic that these options mean."""
    from contextengine.replay.span import Span  # noqa: PLC0415  help needs none

    if session is not None and partition is not None:
        raise typer.BadParameter("a --session says its partition; leave --partition out")
    return Span(_edge(since), _edge(until), partition=partition, session_id=session)


def _edge(written: str | None) -> Edge:
    from contextengine.replay.span import Edge  # noqa: PLC0415  help needs none

    if written is None:
        return Edge()
    return Edge(offset=int(written)) if written.isdecimal() else Edge(time_ms=moment_ms(written))


def _tell(partition: int, recording: Recording) -> None:
    typer.echo(f"partition {partition}: {len(recording.records)} records so far", err=True)


def _summary(recording: Recording) -> dict[str, object]:
    from contextengine.replay.recording import sessions_of  # noqa: PLC0415  help needs none

    return {
        "sessions": len(sessions_of(recording)),
        "records": len(recording.records),
        "outputs": sum(len(of.outputs) for of in recording.records),
        "incomplete": recording.header.incomplete,
    }
