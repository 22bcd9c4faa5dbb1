"""`contextengine why`: why a rule fired on an event of a session, or why it did not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from contextengine.cli.options import (
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
    from contextengine.replay.recording import Recording
    from contextengine.replay.why import Occasion, Why
    from contextengine.settings import Settings

Session = Annotated[str, typer.Argument(metavar="SESSION", help="The session's id.")]
Event = Annotated[
    str | None,
    typer.Option("--event", metavar="SEQ", help="What each rule made of this event: its seq, or its whole position."),
]
Rule = Annotated[str | None, typer.Option("--rule", metavar="NAME", help="What this rule made of each event.")]
From = Annotated[
    Path | None,
    typer.Option("--recording", metavar="FILE", help="Ask a recording, not a broker.", exists=True, dir_okay=False),
]
SAID_CHARACTERS: Final = 40


def register(root: typer.Typer) -> None:
    """Add the command to the root."""
    root.command(
        epilog=examples(
            "contextengine why s1",
            "contextengine why s1 --event 12",
            "contextengine why s1 --rule emergency --recording s1.jsonl",
        )
    )(why)


def why(
    session: Session,
    event: Event = None,
    rule: Rule = None,
    recording: From = None,
    as_json: AsJson = False,
    config: Config = None,
    broker: Broker = None,
    prefix: Prefix = None,
) -> None:
    """Tell why rules fired in a session, and what came of it; with --event or --rule also why they did not.

    Worked out anew from the events and the rules that were in force, oldest first. Events that no worker has judged
    yet are left out.
    """
    from contextengine.replay.recording import read  # noqa: PLC0415  help needs none
    from contextengine.replay.why import why as asked  # noqa: PLC0415

    if recording is None:
        found, unjudged = _recorded(settings_from(config, broker, prefix), session)
    else:
        found, unjudged = read(recording), 0
    told = asked(found, session, event=event, rule=rule)
    if unjudged:
        told.notes.append(f"{unjudged} events of its partition are not judged yet, and left out")
    if as_json:
        import msgspec  # noqa: PLC0415  help needs none

        write_json(msgspec.to_builtins(told))
        return
    for note in told.notes:
        typer.secho(note, fg="yellow", err=True)
    _show(told, every_kind=event is not None)


def _recorded(settings: Settings, session: str) -> tuple[Recording, int]:
    """What the broker has of the session, as far as it is judged, and how many events are not."""
    from contextengine.replay.recorder import record  # noqa: PLC0415  help needs none
    from contextengine.replay.span import Span  # noqa: PLC0415

    found = asyncio.run(unless_stopped(record(settings, Span(session_id=session))))
    if found is None:
        raise typer.Exit(INTERRUPTED)
    return found


def _show(told: Why, *, every_kind: bool) -> None:
    """The answers for people, one a line."""
    from contextengine.engine.explain import in_call  # noqa: PLC0415  help needs none
    from contextengine.replay.why import Kind  # noqa: PLC0415

    shown = [answer for answer in told.answers if every_kind or answer.kind is not Kind.DOES_NOT_LISTEN]
    events = [_event(answer.on) for answer in shown]
    wide, rules = max(map(len, events), default=0), max((len(answer.rule) for answer in shown), default=0)
    for answer, event in zip(shown, events, strict=True):
        text = " ".join(str(answer).split())
        typer.echo(f"{in_call(answer.on.elapsed_ms)}  {event:{wide}}  {answer.rule:{rules}}  {text}")
    hidden = len(told.answers) - len(shown)
    also = f", {hidden} of them of kinds that the rule does not listen to" if hidden else ""
    typer.echo(f"{told.session_id}: {len(shown)} answers, {told.events} events{also}")


def _event(on: Occasion) -> str:
    """An event for people: its kind and seq and the beginning of what was said, or its position."""
    if on.seq is None:
        return on.position or on.event
    said = " ".join(on.said.split())
    short = said if len(said) <= SAID_CHARACTERS else f"{said[: SAID_CHARACTERS - 1]}…"
    return f"{on.event} {on.seq}{f' {short!r}' if said else ''}"
