"""`contextengine replay`: recordings through the engine again, or to a broker."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from contextengine.replay.exact import Replayed
    from contextengine.settings import Settings

Files = Annotated[
    list[Path], typer.Argument(metavar="FILE|FOLDER", help="Recordings, and folders of them.", exists=True)
]
Accept = Annotated[
    bool, typer.Option("--accept", help="Rewrite the files: what follows now is what must follow from now on.")
]
Publish = Annotated[
    bool, typer.Option("--publish", help="Hold the conversations once more, at the broker of the settings.")
]
Speed = Annotated[
    float,
    typer.Option("--speed", min=0, max=100, help="With --publish: 1 the recording's own time, 10 faster, 0 at once."),
]
As = Annotated[
    str, typer.Option("--as", metavar="PREFIX", help="With --publish: what to put before the sessions' names.")
]


def register(root: typer.Typer) -> None:
    """Add the command to the root."""
    root.command(
        epilog=examples(
            "contextengine replay s1.jsonl",
            "contextengine replay tests/sessions --accept",
            "contextengine replay s1.jsonl --publish --speed 10 --as again-",
        )
    )(replay)


def replay(
    files: Files,
    accept: Accept = False,
    publish: Publish = False,
    speed: Speed = 1.0,
    as_: As = "",
    as_json: AsJson = False,
    config: Config = None,
    broker: Broker = None,
    prefix: Prefix = None,
) -> None:
    """Judge recordings again, without a broker; exit with 1 where something else follows than what is recorded.

    Each stops at its first divergence; where the engine itself fails is one, and cannot be accepted. With --publish its
    conversations go to a broker instead, without the ticks and answers of then; contexts go where the recorded calls
    say, so use a test installation.
    """
    from contextengine.replay.recording import files_in  # noqa: PLC0415  help needs none

    if accept and publish:
        raise typer.BadParameter("--accept and --publish do not go together")
    found = files_in(files)
    if publish:
        _publish(found, settings_from(config, broker, prefix), speed, as_, as_json)
    elif accept:
        _accept(found, as_json)
    else:
        _compare(found, as_json)


def _compare(files: list[Path], as_json: bool) -> None:
    from contextengine.replay.exact import cautions, replay  # noqa: PLC0415  help needs none
    from contextengine.replay.recording import read  # noqa: PLC0415

    results: list[dict[str, Any]] = []
    for file in files:
        recording = read(file)
        notes, done = cautions(recording), replay(recording)
        results.append(_told(file, notes, done))
        if not as_json:
            _show(file, notes, done)
    if as_json:
        write_json(results)
    if any(result["divergence"] is not None for result in results):
        raise typer.Exit(FOUND_PROBLEMS)


def _told(file: Path, notes: list[str], done: Replayed) -> dict[str, Any]:
    import msgspec  # noqa: PLC0415  help needs none

    told: dict[str, Any] = msgspec.to_builtins(done)
    return {"file": str(file), **told, "cautions": notes}


def _show(file: Path, notes: list[str], done: Replayed) -> None:
    for note in notes:
        typer.secho(f"{file}: {note}", fg="yellow", err=True)
    if done.divergence is not None:
        typer.secho(f"{file}: {done.divergence}", fg="red", err=True)
        return
    typer.echo(
        f"{file}: the same; {done.sessions} sessions, {done.events} events, {done.decisions} decisions,"
        f" {done.injections} injections, {done.outcomes} outcomes"
    )


def _accept(files: list[Path], as_json: bool) -> None:
    from contextengine.errors import EngineDefect  # noqa: PLC0415  help needs none
    from contextengine.replay.exact import accepted, replay  # noqa: PLC0415
    from contextengine.replay.recording import read, write  # noqa: PLC0415

    rewritten: list[str] = []
    defects: dict[str, str] = {}
    for file in files:
        recording = read(file)
        if replay(recording).divergence is None and recording.header.lines is not None:
            continue
        try:
            write(accepted(recording), file)
        except EngineDefect as defect:
            defects[str(file)] = str(defect)
            typer.secho(f"{file}: not rewritten: {defect}", fg="red", err=True)
            continue
        rewritten.append(str(file))
        if not as_json:
            typer.echo(f"{file}: rewritten")
    if as_json:
        write_json({"files": len(files), "rewritten": rewritten, "defects": defects})
    else:
        typer.echo(f"{len(rewritten)} of {len(files)} recordings rewritten")
    if defects:
        raise typer.Exit(FOUND_PROBLEMS)


def _publish(files: list[Path], settings: Settings, speed: float, prefix: str, as_json: bool) -> None:
    from contextengine.replay.publishing import publish  # noqa: PLC0415  help needs none
    from contextengine.replay.recording import read  # noqa: PLC0415

    recordings = [read(file) for file in files]
    done = asyncio.run(unless_stopped(publish(recordings, settings, speed=speed, prefix=prefix)))
    if done is None:
        raise typer.Exit(INTERRUPTED)
    if as_json:
        write_json({"events": done.events, "sessions": sorted(done.sessions), "without_start": sorted(done.headless)})
        return
    typer.echo(f"{done.events} events of {len(done.sessions)} sessions published to {settings.prefix}.events")
    for name in sorted(done.headless):
        typer.secho(f"session {name} has no start in there: nothing will be injected into it", fg="yellow", err=True)
