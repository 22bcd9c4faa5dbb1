"""`contextengine rules check`: tells every mistake in a rules file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contextengine.cli.options import FOUND_PROBLEMS, AsJson, examples, write_json

if TYPE_CHECKING:
    from contextengine.engine.rules import Rule

app = typer.Typer(no_args_is_help=True)

File = Annotated[Path, typer.Argument(metavar="FILE", help="Rules in YAML.", exists=True, dir_okay=False)]


def register(root: typer.Typer) -> None:
    """Add the commands to the root."""
    root.add_typer(app, name="rules", help="Check rules before they are put in force.")


@app.command(epilog=examples("contextengine rules check rules.yaml"))
def check(file: File, as_json: AsJson = False) -> None:
    """Tell every mistake in a rules file with its line, or what the file says. Exit code 1 if there are mistakes."""
    from contextengine.errors import RulesInvalid  # noqa: PLC0415  help needs none
    from contextengine.rulefile import parse_rules  # noqa: PLC0415  help needs none

    try:
        rules = parse_rules(file.read_text(encoding="utf-8"), str(file))
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


def _told(rule: Rule) -> dict[str, object]:
    return {
        "name": rule.name,
        "when": type(rule.when).__name__,
        "criticality": rule.criticality.value,
        "place": rule.place.value,
        "ttl_ms": rule.ttl_ms,
        "shadow": rule.shadow,
    }
