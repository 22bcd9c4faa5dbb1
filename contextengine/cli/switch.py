"""`contextengine switch`: stops a rule, a provider or everything, at once and everywhere."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from contextengine.cli.options import AsJson, Broker, Config, Prefix, examples, settings_from, write_json
from contextengine.schemas.events import EVERYTHING

app = typer.Typer(no_args_is_help=True)

RuleNames = Annotated[list[str] | None, typer.Option("--rule", metavar="NAME", help="A rule; may be repeated.")]
Providers = Annotated[list[str] | None, typer.Option("--provider", metavar="NAME", help="A provider; may be repeated.")]
Everything = Annotated[bool, typer.Option("--everything", help="All rules and all providers.")]


def register(root: typer.Typer) -> None:
    """Add the commands to the root."""
    root.add_typer(app, name="switch", help="Stop a rule, a provider or everything, at once; and let it go on.")


@app.command(
    epilog=examples("contextengine switch off --rule refund-policy", "contextengine switch off --everything"),
)
def off(
    rule: RuleNames = None,
    provider: Providers = None,
    everything: Everything = False,
    config: Config = None,
    broker: Broker = None,
    prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Inject nothing more of these rules, or into sessions of these providers.

    What waits for its moment is skipped when that comes; what is on its way to a provider arrives. Decisions say so.
    Rules and providers are not checked: one that does not exist yet can be switched off too.
    """
    from contextengine.topics.broadcast import switch  # noqa: PLC0415  help needs none

    names = _names(rule, provider, everything=everything)
    _show(asyncio.run(switch(settings_from(config, broker, prefix), off=names)), as_json=as_json)


@app.command(
    epilog=examples("contextengine switch on --rule refund-policy", "contextengine switch on --everything"),
)
def on(
    rule: RuleNames = None,
    provider: Providers = None,
    everything: Everything = False,
    config: Config = None,
    broker: Broker = None,
    prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Let these go on. `--everything` undoes `off --everything`; a rule that is off by itself stays off."""
    from contextengine.topics.broadcast import switch  # noqa: PLC0415  help needs none

    names = _names(rule, provider, everything=everything)
    _show(asyncio.run(switch(settings_from(config, broker, prefix), on=names)), as_json=as_json)


@app.command("list", epilog=examples("contextengine switch list", "contextengine switch list --json"))
def list_(config: Config = None, broker: Broker = None, prefix: Prefix = None, as_json: AsJson = False) -> None:
    """Show what is switched off."""
    from contextengine.topics.broadcast import switched_off  # noqa: PLC0415  help needs none

    _show(asyncio.run(switched_off(settings_from(config, broker, prefix))), as_json=as_json)


def _names(rules: list[str] | None, providers: list[str] | None, *, everything: bool) -> list[str]:
    names = [f"rule:{name}" for name in rules or ()] + [f"provider:{name}" for name in providers or ()]
    names += [EVERYTHING] if everything else []
    if not names:
        raise typer.BadParameter("say what: --rule NAME, --provider NAME or --everything")
    return names


def _show(names: list[str], *, as_json: bool) -> None:
    if as_json:
        write_json({"off": names})
    else:
        typer.echo("\n".join(f"off: {name}" for name in names) or "nothing is switched off")
