"""`contextengine rules`: tells every mistake in a rules file, and what other rules would do to recorded calls."""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contextengine.cli.options import FOUND_PROBLEMS, AsJson, examples, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from contextengine.engine.rules import Rule
    from contextengine.replay.counterfactual import Comparison, Difference, Fate, Trial

app = typer.Typer(no_args_is_help=True)

File = Annotated[Path, typer.Argument(metavar="FILE", help="Rules in YAML.", exists=True, dir_okay=False)]


def register(root: typer.Typer) -> None:
    """Add the commands to the root."""
    root.add_typer(app, name="rules", help="Check and try rules before they are put in force.")


@app.command(epilog=examples("contextengine rules check rules.yaml"))
def check(file: File, as_json: AsJson = False) -> None:
    """Tell every mistake in a rules file with its line, or what the file says. Exit code 1 if there are mistakes."""
    from contextengine.errors import RulesInvalid  # noqa: PLC0415  help needs none
    from contextengine.rulefile import parse_rules, read_text  # noqa: PLC0415  help needs none

    try:
        rules = parse_rules(read_text(file), str(file))
    except RulesInvalid as invalid:
        if as_json:
            write_json({"problems": invalid.problems})
        else:
            for problem in invalid.problems:
                typer.secho(problem, fg="red", err=True)
        raise typer.Exit(FOUND_PROBLEMS) from None
    if as_json:
        write_json({"hash": rules.rules_hash, "rules": [_told(rule) for rule in rules.rules]})
        return
    typer.echo(f"{file}: {len(rules.rules)} rule{'s' if len(rules.rules) != 1 else ''}, hash {rules.rules_hash}")
    for told in map(_told, rules.rules):
        shadow = "  (on trial: injects nothing)" if told["shadow"] else ""
        typer.echo(f"  {told['name']:32} {told['when']:24} {told['criticality']:10} {told['place']}{shadow}")


@app.command(
    name="try",
    epilog=examples(
        "contextengine rules try --recording call.jsonl --rules other.yaml",
        "contextengine rules try --recording recordings/ --rules other.yaml --fail-on-difference",
    ),
)
def try_(
    recording: Annotated[
        list[Path],
        typer.Option(
            "--recording", metavar="FILE|FOLDER", help="Recorded conversations; may be given again.", exists=True
        ),
    ],
    rules: Annotated[
        Path, typer.Option("--rules", metavar="FILE", help="The other rules.", exists=True, dir_okay=False)
    ],
    latency_ms: Annotated[
        int | None,
        typer.Option("--latency-ms", min=0, help="What an attempt takes that was never made. Default: the usual."),
    ] = None,
    fail_on_difference: Annotated[
        bool, typer.Option("--fail-on-difference", help="Exit with 1 when anything differs.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Tell what other rules would have injected into recorded conversations, beside what was injected."""
    from contextengine.replay.counterfactual import try_rules  # noqa: PLC0415  help needs none
    from contextengine.replay.recording import files_in, read  # noqa: PLC0415
    from contextengine.rulefile import parse_rules, read_text  # noqa: PLC0415

    text = read_text(rules)
    parse_rules(text, str(rules))  # tells every mistake with the file's name
    trial = try_rules(map(read, files_in(recording)), text, latency_ms)
    if as_json:
        write_json(_trial_as_json(trial))
    else:
        for line in _trial_as_lines(trial):
            typer.echo(line)
    if fail_on_difference and trial.differs:
        raise typer.Exit(FOUND_PROBLEMS)


def _trial_as_lines(trial: Trial) -> Iterator[str]:
    for session in trial.sessions:
        yield from _session_as_lines(session)
    for name, reason in trial.skipped.items():
        yield f"{name}: not tried: {reason}"
    total = Counter(one.change.value for session in trial.sessions for one in session.injections)
    yield f"{len(trial.sessions)} sessions, {total.total()} injections: {_counted(total)}"
    yield "What is recorded and what is modelled:"
    yield from (f"  {line}" for line in _model(trial))


def _session_as_lines(session: Comparison) -> Iterator[str]:
    changes = Counter(one.change.value for one in session.injections)
    yield f"{session.session_id}: {_counted(changes) or 'no injection, before or now'}"
    for one in session.injections:
        fate = one.either
        if one.change != "same":
            yield f"  {one.change.value:12} {_clock(fate.fired_ms)}  {fate.rule}  on {fate.event} {fate.position}"
            yield from (f"    {line}" for line in _difference_as_lines(one))
    for (named, rule), (before, now) in session.suppressed.items():
        yield f"  held back    {rule}  by {named}: {before} before, {now} now"


def _difference_as_lines(one: Difference) -> Iterator[str]:
    if one.before is not None and one.now is not None:
        moment = f"{_moment(one.before)}  ->  {_moment(one.now)}"
        outcome = f"{one.before.outcome}  ->  {one.now.outcome}"
        yield from (
            f"{name}: {told}" for name, told in (("moment", moment), ("outcome", outcome)) if name in one.changed
        )
        if "text" in one.changed:
            compared = difflib.ndiff(one.before.text.splitlines(), one.now.text.splitlines())
            yield from (line for line in compared if not line.startswith("?"))
    else:
        yield f"{_moment(one.either)}, {one.either.outcome}"
        yield from one.either.text.splitlines()


def _model(trial: Trial) -> Iterator[str]:
    yield "people and the model say what they said: they react to no context that they did not get"
    measured = {None: "as asked for", 0: "none is recorded"}
    source = measured.get(trial.measured, f"the median of {trial.measured} recorded ones")
    yield f"an attempt that was never made takes {trial.latency_ms} ms ({source})"
    answers: Counter[str] = sum((session.answers for session in trial.sessions), Counter())
    yield from (f"{count} {answer}" for answer, count in sorted(answers.items()))


def _trial_as_json(trial: Trial) -> dict[str, object]:
    return {
        "differs": trial.differs,
        "sessions": [
            {
                "session": session.session_id,
                "injections": [
                    {
                        "change": one.change.value,
                        "changed": one.changed,
                        "before": one.before and asdict(one.before),
                        "now": one.now and asdict(one.now),
                    }
                    for one in session.injections
                ],
                "suppressed": [
                    {"filter": named, "rule": rule, "before": before, "now": now}
                    for (named, rule), (before, now) in session.suppressed.items()
                ],
            }
            for session in trial.sessions
        ],
        "skipped": trial.skipped,
        "modelled": list(_model(trial)),
    }


def _moment(fate: Fate) -> str:
    return "never went out" if fate.sent_ms is None else f"{_clock(fate.sent_ms)} on {fate.sent_on}"


def _clock(elapsed_ms: int) -> str:
    return f"{elapsed_ms // 60_000:02}:{elapsed_ms % 60_000 / 1_000:04.1f}"


def _counted(changes: Counter[str]) -> str:
    return ", ".join(f"{count} {change}" for change, count in sorted(changes.items(), reverse=True))


def _told(rule: Rule) -> dict[str, object]:
    return {
        "name": rule.name,
        "when": type(rule.when).__name__,
        "criticality": rule.criticality.value,
        "place": rule.place.value,
        "ttl_ms": rule.ttl_ms,
        "shadow": rule.shadow,
    }
