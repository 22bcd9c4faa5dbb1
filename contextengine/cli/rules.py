"""`contextengine rules`: tells every mistake in rules, and what they do to written and to recorded calls."""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from contextengine.cli.options import FOUND_PROBLEMS, AsJson, examples, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from contextengine.engine.rules import Rule, RuleSet
    from contextengine.replay.counterfactual import Comparison, Difference, Fate, Trial
    from contextengine.testing.scenarios import Judgement, Scenario

app = typer.Typer(no_args_is_help=True)

SCENARIOS: Final = ".test.yaml"
"""How the name of a file of scenarios ends; what is before is the name of the rules that they try."""


def register(root: typer.Typer) -> None:
    """Add the commands to the root."""
    root.add_typer(app, name="rules", help="Check and try rules before they are put in force.")


@app.command(epilog=examples("contextengine rules check rules.yaml", "contextengine rules check rules/ --strict"))
def check(
    path: Annotated[
        Path, typer.Argument(metavar="FILE|FOLDER", help="Rules in YAML, or a folder of such files.", exists=True)
    ],
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 on a warning too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tell every mistake in rules with its line, or what they say, with a warning of what they cannot mean.

    Warnings are of rules that can never fire, that another one is always before, and that contradict each other.
    """
    from contextengine.engine.rule_check import findings  # noqa: PLC0415  help needs none
    from contextengine.errors import RulesInvalid  # noqa: PLC0415
    from contextengine.rulefile import parse_and_place, read_text  # noqa: PLC0415

    try:
        rules, places = parse_and_place(read_text(path), str(path))
    except RulesInvalid as invalid:
        if as_json:
            write_json({"problems": invalid.problems})
        else:
            for problem in invalid.problems:
                typer.secho(problem, fg="red", err=True)
        raise typer.Exit(FOUND_PROBLEMS) from None
    found = findings(rules)
    if as_json:
        warnings = [{"place": places[finding.rule]} | asdict(finding) for finding in found]
        write_json({"hash": rules.rules_hash, "rules": [_told(rule) for rule in rules.rules], "warnings": warnings})
    else:
        typer.echo(f"{path}: {_number(len(rules.rules), 'rule')}, hash {rules.rules_hash}")
        for told in map(_told, rules.rules):
            shadow = "  (on trial: injects nothing)" if told["shadow"] else ""
            typer.echo(f"  {told['name']:32} {told['when']:24} {told['criticality']:10} {told['place']}{shadow}")
        for finding in found:
            warning = f"{places[finding.rule]}: {finding.kind}: {finding.rule}: {finding.told}"
            typer.secho(warning, fg="yellow", err=True)
    if strict and found:
        raise typer.Exit(FOUND_PROBLEMS)


@app.command(
    name="test",
    epilog=examples(
        "contextengine rules test orders.test.yaml",
        "contextengine rules test rules/*.test.yaml --rules rules/",
    ),
)
def hold(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Scenarios in YAML.", exists=True, dir_okay=False)
    ],
    rules: Annotated[
        Path | None,
        typer.Option(
            "--rules",
            metavar="FILE|FOLDER",
            help="The rules that they try. Default: orders.yaml for orders.test.yaml.",
            exists=True,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Hold the written conversations in memory, and tell where something else went in than was expected."""
    from contextengine.errors import RulesInvalid  # noqa: PLC0415  help needs none
    from contextengine.rulefile import parse_rules, read_text  # noqa: PLC0415
    from contextengine.testing.scenarios import judge, parse_scenarios  # noqa: PLC0415

    tried: list[tuple[Path, RuleSet, list[Scenario]]] = []
    problems: list[str] = []
    for file in files:
        path = rules or _rules_beside(file)
        try:
            rule_set = parse_rules(read_text(path), str(path))
            tried.append((file, rule_set, parse_scenarios(read_text(file), str(file), rule_set)))
        except RulesInvalid as invalid:
            problems += invalid.problems
    if problems:
        raise RulesInvalid(list(dict.fromkeys(problems)))
    judged = [(file, one, judge(one, rule_set)) for file, rule_set, scenarios in tried for one in scenarios]
    failed = [one.name for _, one, judgements in judged if any(each.problems for each in judgements)]
    if as_json:
        write_json([{"file": str(file)} | _judged_as_json(one, judgements) for file, one, judgements in judged])
    else:
        for file, one, judgements in judged:
            typer.echo("\n".join(_judged_as_lines(file, one, judgements)))
        typer.echo(f"{_number(len(judged), 'scenario')}, {len(failed)} failed")
    if failed:
        raise typer.Exit(FOUND_PROBLEMS)


def _rules_beside(file: Path) -> Path:
    if not file.name.endswith(SCENARIOS):
        raise typer.BadParameter(f"which rules {file} tries is not known, its name ends in no {SCENARIOS}: say --rules")
    beside = file.with_name(file.name.removesuffix(SCENARIOS) + ".yaml")
    if not beside.exists():
        raise typer.BadParameter(f"there is no {beside}, whose rules {file} would try: say --rules FILE")
    return beside


def _judged_as_json(scenario: Scenario, judgements: list[Judgement]) -> dict[str, object]:
    passed = not any(judgement.problems for judgement in judgements)
    return {"scenario": scenario.name, "passed": passed, "steps": [asdict(judgement) for judgement in judgements]}


def _judged_as_lines(file: Path, scenario: Scenario, judgements: list[Judgement]) -> Iterator[str]:
    failed = any(judgement.problems for judgement in judgements)
    yield f"{'FAILED' if failed else 'passed'}  {file}: {scenario.name}"
    for judgement in judgements:
        if judgement.problems:
            yield from (f"  {problem}" for problem in judgement.problems)
            for one in judgement.happened:
                told = one.reason or " / ".join(line for line in one.text.splitlines() if line)
                yield f"    {_clock(one.elapsed_ms)} {one.event}: {one.rule} {one.became}: {told}"
            if not judgement.happened:
                yield "    nothing happened before it"


@app.command(epilog=examples("contextengine rules schema > rules.schema.json"))
def schema() -> None:
    """Write the JSON Schema of rules files, with all installed strategies: editors complete and check with it.

    A file names its schema in its first line: # yaml-language-server: $schema=rules.schema.json
    """
    from contextengine import plugins  # noqa: PLC0415  help needs none
    from contextengine.rules_schema import schema_text  # noqa: PLC0415

    typer.echo(schema_text(plugins.names("strategies")), nl=False)


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
    rules: Annotated[Path, typer.Option("--rules", metavar="FILE|FOLDER", help="The other rules.", exists=True)],
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


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


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
