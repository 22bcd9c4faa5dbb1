"""`contextengine deadletters`: what could not be decoded, decided or delivered, and the way back."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import socket
import sys
from contextlib import aclosing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from contextengine.cli import letter_view
from contextengine.cli.options import (
    FOUND_PROBLEMS,
    INTERRUPTED,
    AsJson,
    Broker,
    Config,
    Prefix,
    examples,
    moment_ms,
    settings_from,
    stop_on_signals,
    write_json,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiokafka.structs import ConsumerRecord

    from contextengine.settings import Settings
    from contextengine.topics.dead_letters import DeadLetter, Selection
    from contextengine.topics.redrive import Redriven, Redriver

app = typer.Typer(no_args_is_help=True)

SHOWN_BYTES: Final = 1_024

SELECTION: Final = "Which letters"
Stage = Annotated[
    str | None,
    typer.Option("--stage", metavar="STAGE", help="decode, decide or deliver.", rich_help_panel=SELECTION),
]
ErrorClass = Annotated[
    str | None,
    typer.Option("--class", metavar="ERROR", help="The error's class, as `list` shows it.", rich_help_panel=SELECTION),
]
Provider = Annotated[str | None, typer.Option("--provider", metavar="NAME", rich_help_panel=SELECTION)]
Session = Annotated[str | None, typer.Option("--session", metavar="ID", rich_help_panel=SELECTION)]
Rule = Annotated[str | None, typer.Option("--rule", metavar="NAME", rich_help_panel=SELECTION)]
Since = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="TIME",
        help="Buried at that time or later: 2026-01-31T09:30 (UTC) or, ago, 30min, 2h, 7d.",
        rich_help_panel=SELECTION,
    ),
]
Until = Annotated[
    str | None, typer.Option("--until", metavar="TIME", help="Buried before that time.", rich_help_panel=SELECTION)
]
Places = Annotated[
    list[str] | None, typer.Argument(metavar="[PARTITION:OFFSET]...", help="These letters, as `list` names them.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


def register(root: typer.Typer) -> None:
    """Add the commands to the root."""
    root.add_typer(app, name="deadletters", help="See what could not be decoded or delivered, and send it back.")


@app.command(
    "list",
    epilog=examples(
        "contextengine deadletters list --since 2h",
        "contextengine deadletters list --group",
        "contextengine deadletters list --stage deliver --provider openai_realtime --json",
    ),
)
def list_(
    stage: Stage = None,
    error_class: ErrorClass = None,
    provider: Provider = None,
    session: Session = None,
    rule: Rule = None,
    since: Since = None,
    until: Until = None,
    group: Annotated[bool, typer.Option("--group", help="A line for each stage and class of error.")] = False,
    as_json: AsJson = False,
    config: Config = None,
    broker: Broker = None,
    prefix: Prefix = None,
) -> None:
    """List the dead letters, the oldest first: where each lies, what went wrong, what came of its redrives."""
    from contextengine.topics.dead_letters import survey  # noqa: PLC0415  help needs none

    settings = settings_from(config, broker, prefix)
    selection = _selection(None, stage, error_class, provider, session, rule, since, until)
    letters = asyncio.run(survey(settings, selection))
    if group:
        groups = list(letter_view.groups(letters))
        if as_json:
            write_json(groups)
        else:
            for each in groups:
                typer.echo(letter_view.group_lines(each))
    elif as_json:
        write_json([letter_view.told(letter) for letter in letters])
    else:
        for letter in letters:
            typer.echo(letter_view.lines(letter))
    if not letters and not as_json:
        typer.echo(f"no dead letters{' of that kind' if selection != _selection() else ''} in {settings.prefix}")


@app.command(
    epilog=examples("contextengine deadletters show 3:42", "contextengine deadletters show 3:42 --json | jq .value")
)
def show(
    place: Annotated[str, typer.Argument(metavar="PARTITION:OFFSET", help="The letter, as `list` names it.")],
    all_bytes: Annotated[bool, typer.Option("--all", help="Show all bytes of what cannot be decoded.")] = False,
    as_json: AsJson = False,
    config: Config = None,
    broker: Broker = None,
    prefix: Prefix = None,
) -> None:
    """Show a dead letter whole: its headers, its redrives, and its value, decoded as far as it can be."""
    settings = settings_from(config, broker, prefix)
    letter, record = asyncio.run(_one(settings, place))
    kind, value, raw = letter_view.decoded(settings, letter, record)
    others = {name: letter_view.text(text) for name, text in record.headers if not name.startswith("cx-")}
    if as_json:
        write_json(
            {**letter_view.told(letter), "headers": letter.told, "other_headers": others, "type": kind, "value": value}
        )
        return
    typer.echo(
        f"{letter.place}  buried {letter_view.clock(letter.buried_ms)} UTC, key {letter_view.text(record.key)!r}"
    )
    for name, text in {**{f"cx-{name}": text for name, text in letter.told.items()}, **others}.items():
        typer.echo(f"  {name:20} {text}")
    for told in letter_view.redrive_lines(letter):
        typer.echo(f"  {told}")
    typer.echo(f"{kind}, {len(raw)} bytes")
    if isinstance(value, dict):
        typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
    elif kind == "text":
        typer.echo(value)
    else:
        shown = raw if all_bytes else raw[:SHOWN_BYTES]
        typer.echo("\n".join(letter_view.hexdump(shown)))
        if len(shown) < len(raw):
            typer.echo(f"... and {len(raw) - len(shown)} bytes more; --all shows them")


@app.command(
    epilog=examples(
        "contextengine deadletters redrive 3:42",
        "contextengine deadletters redrive --stage deliver --since 2h --dry-run",
        "contextengine deadletters redrive --stage deliver --since 2h --rate 50 --yes",
    )
)
def redrive(
    places: Places = None,
    stage: Stage = None,
    error_class: ErrorClass = None,
    provider: Provider = None,
    session: Session = None,
    rule: Rule = None,
    since: Since = None,
    until: Until = None,
    everything: Annotated[bool, typer.Option("--all", help="All letters.", rich_help_panel=SELECTION)] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Also letters that were redriven before.", rich_help_panel=SELECTION)
    ] = False,
    rate: Annotated[float | None, typer.Option("--rate", metavar="N", min=0.1, help="At most N a second.")] = None,
    max_redrives: Annotated[
        int, typer.Option("--max-redrives", min=1, help="Refuse what was sent back so often already.")
    ] = 3,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
    config: Config = None,
    broker: Broker = None,
    prefix: Prefix = None,
) -> None:
    """Send dead letters back, once whatever was wrong is mended.

    Bytes that could not be decoded go back to where they were read; an event among them is dropped there as a duplicate
    when its producer has gone on by more than 64. A dead injection comes back as a new one, if its session goes on.
    What was redriven before is left alone, so a redrive that was stopped goes on when it is repeated. Exit code 1 if
    any letter was refused, or is gone.
    """
    from contextengine.engine.candidate import redriven_id  # noqa: PLC0415  help needs none
    from contextengine.topics.dead_letters import survey  # noqa: PLC0415
    from contextengine.topics.redrive import Redriver  # noqa: PLC0415

    settings = settings_from(config, broker, prefix)
    selection = _selection(places, stage, error_class, provider, session, rule, since, until)
    if selection == _selection() and not everything:
        raise typer.BadParameter("say which letters: PARTITION:OFFSET, a filter such as --stage, or --all")
    found = asyncio.run(survey(settings, selection))
    _must_be_there(selection, found)
    letters = [letter for letter in found if again or not letter.redrives]
    redriver = Redriver(settings, redriven_id, by=_who(), rate=rate, max_redrives=max_redrives)
    if len(found) > len(letters):
        typer.echo(f"{_letters(len(found) - len(letters))} redriven before: left alone without --again", err=True)
    if dry_run:
        _show_plan(redriver, letters, as_json=as_json)
        return
    fit = sum(not redriver.refusal(letter) for letter in letters)
    if fit > 1 and not yes:
        typer.confirm(f"Send back {_letters(fit)}?", abort=True, err=True)
    done = asyncio.run(_redrive(redriver, letters, fit))
    if as_json:
        refused = {str(place): why for place, why in done.refused.items()}
        write_json({"redriven": done.sent, "refused": refused, "gone": done.gone, "stopped": done.stopped})
    else:
        _show_done(done, len(letters))
    if done.stopped:
        raise typer.Exit(INTERRUPTED)
    if done.refused or done.gone:
        raise typer.Exit(FOUND_PROBLEMS)


@app.command(
    epilog=examples(
        "contextengine deadletters export > letters.jsonl",
        "contextengine deadletters export --class UndecodableRecord --output letters.jsonl",
    )
)
def export(
    places: Places = None,
    stage: Stage = None,
    error_class: ErrorClass = None,
    provider: Provider = None,
    session: Session = None,
    rule: Rule = None,
    since: Since = None,
    until: Until = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write there.", dir_okay=False)
    ] = None,
    config: Config = None,
    broker: Broker = None,
    prefix: Prefix = None,
) -> None:
    """Write dead letters as they lie there, a JSON object a line: keys, header values and values are base64."""
    from contextengine.topics.dead_letters import survey  # noqa: PLC0415  help needs none

    settings = settings_from(config, broker, prefix)
    selection = _selection(places, stage, error_class, provider, session, rule, since, until)
    letters = asyncio.run(survey(settings, selection))
    _must_be_there(selection, letters)
    with nullcontext(sys.stdout) if output is None else output.open("w", encoding="utf-8") as file:
        exported = asyncio.run(_export(settings, letters, file))
    typer.echo(f"exported {_letters(exported)}", err=True)


@app.command(epilog=examples("contextengine deadletters purge --before 7d --dry-run"))
def purge(
    before: Annotated[str, typer.Option("--before", metavar="TIME", help="2026-01-31T09:30 (UTC) or, ago, 7d.")],
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Also letters that were never redriven.")] = False,
    as_json: AsJson = False,
    config: Config = None,
    broker: Broker = None,
    prefix: Prefix = None,
) -> None:
    """Delete the dead letters before a time, for good.

    Kafka deletes nothing but the beginning of a partition, so there is no other filter than the time. Letters also go
    by themselves, 14 days after they were written.
    """
    from contextengine.topics import dead_letters  # noqa: PLC0415  help needs none

    settings = settings_from(config, broker, prefix)
    purges = asyncio.run(dead_letters.plan_purge(settings, moment_ms(before)))
    letters = sum(each.letters for each in purges)
    fresh = sum(each.never_redriven for each in purges)
    told = {
        "deleted": not dry_run,
        "letters": letters,
        "never_redriven": fresh,
        "ends": {each.partition: each.end for each in purges},
    }
    if not dry_run and purges:
        if fresh and not yes:
            typer.secho(f"{_letters(fresh)} of {letters} never redriven; --yes deletes them too", fg="red", err=True)
            raise typer.Exit(FOUND_PROBLEMS)
        asyncio.run(dead_letters.purge(settings, purges))
    if as_json:
        write_json(told)
    else:
        typer.echo(f"{'would delete' if dry_run else 'deleted'} {_letters(letters)}, {fresh} of them never redriven")


async def _one(settings: Settings, place: str) -> tuple[DeadLetter, ConsumerRecord]:
    from contextengine.topics.dead_letters import contents, survey  # noqa: PLC0415  help needs none

    selection = _selection([place])
    async with aclosing(contents(settings, await survey(settings, selection))) as lying:
        found = [each async for each in lying]
    _must_be_there(selection, [letter for letter, _ in found])
    return found[0]


async def _redrive(redriver: Redriver, letters: Sequence[DeadLetter], fit: int) -> Redriven:
    stop = stop_on_signals()
    with typer.progressbar(length=fit, label="sending back", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        return await redriver.redrive(letters, stop, lambda done: bar.update(done - bar.pos))


async def _export(settings: Settings, letters: Sequence[DeadLetter], file: Any) -> int:
    """Write the letters that are still there, and say how many are."""
    from contextengine.topics.dead_letters import contents  # noqa: PLC0415  help needs none

    count = 0
    async with aclosing(contents(settings, letters)) as lying:
        async for letter, record in lying:
            line = {
                **letter_view.told(letter),
                "key": letter_view.as_base64(record.key),
                "headers": [[name, letter_view.as_base64(text)] for name, text in record.headers],
                "value": letter_view.as_base64(record.value),
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
    return count


def _show_done(done: Redriven, count: int) -> None:
    for place, why in done.refused.items():
        typer.secho(f"{place} is not sent back: {why}", fg="red", err=True)
    told = f"sent back {_letters(done.sent)}"
    if done.gone:
        told += f"; {done.gone} were gone"
    if done.stopped:
        told += f"; stopped before the other {count - done.sent - len(done.refused)}, repeat the command to go on"
    typer.echo(told)


def _show_plan(redriver: Redriver, letters: Sequence[DeadLetter], *, as_json: bool) -> None:
    refused = {str(letter.place): why for letter in letters if (why := redriver.refusal(letter))}
    fit = [letter for letter in letters if str(letter.place) not in refused]
    if as_json:
        write_json({"would_redrive": [str(letter.place) for letter in fit], "refused": refused})
        return
    for letter in fit:
        typer.echo(letter_view.lines(letter))
    for place, why in refused.items():
        typer.secho(f"{place} would not be sent back: {why}", fg="red", err=True)
    typer.echo(f"would send back {_letters(len(fit))}")


def _selection(
    places: Sequence[str] | None = None,
    stage: str | None = None,
    error_class: str | None = None,
    provider: str | None = None,
    session: str | None = None,
    rule: str | None = None,
    since: str | None = None,
    until: str | None = None,
) -> Selection:
    from contextengine.schemas.dead_letter import Stage  # noqa: PLC0415  help needs none
    from contextengine.topics.dead_letters import Place, Selection  # noqa: PLC0415

    if stage is not None and stage not in list(Stage):
        raise typer.BadParameter(f"no stage {stage!r}; there are {', '.join(Stage)}")
    selection = Selection(
        stage=stage,
        error_class=error_class,
        provider=provider,
        session_id=session,
        rule=rule,
        since_ms=None if since is None else moment_ms(since),
        until_ms=None if until is None else moment_ms(until),
    )
    if not places:
        return selection
    try:
        return replace(selection, places=frozenset(Place.read(place) for place in places))
    except ValueError:
        raise typer.BadParameter(f"{' '.join(places)}: a letter is named PARTITION:OFFSET, such as 3:42") from None


def _must_be_there(selection: Selection, letters: Sequence[DeadLetter]) -> None:
    missing = (selection.places or frozenset()) - {letter.place for letter in letters}
    if missing:
        typer.secho(f"no such dead letter: {', '.join(map(str, sorted(missing)))}", fg="red", err=True)
        raise typer.Exit(FOUND_PROBLEMS)


def _letters(count: int) -> str:
    return letter_view.counted(count, "letter")


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may have no name for its user
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
