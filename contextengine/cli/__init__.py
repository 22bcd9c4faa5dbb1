"""The `contextengine` command.

Each command imports what it needs when it runs: help is fast, and only `worker` loads Faust.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated, Final

import typer

from contextengine import __version__
from contextengine.cli import (
    audit,
    deadletters,
    demo,
    publish,
    record,
    replay,
    rules,
    serve,
    simulate,
    switch,
    tail,
    topics,
    why,
)
from contextengine.cli.options import FOUND_PROBLEMS, MISCONFIGURED, NO_BROKER, examples
from contextengine.errors import BrokerUnavailable, ConfigurationError, ContextEngineError, RegistryUnavailable
from contextengine.monitoring.log import configure

EPILOG: Final = examples("contextengine demo", "contextengine COMMAND --help") + (
    "\n\n\b\nEvery setting can be given in the environment (CONTEXTENGINE_BROKER) or in a\n"
    "TOML file (--config); an option wins over both."
)

app = typer.Typer(
    help="Puts the right context in front of a live conversation's model at the right moment.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
demo.register(app)
serve.register(app)
simulate.register(app)
switch.register(app)
topics.register(app)
publish.register(app)
tail.register(app)
deadletters.register(app)
rules.register(app)
record.register(app)
replay.register(app)
audit.register(app)
why.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"contextengine {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[  # main() acts on it, wherever it stands
        bool, typer.Option("--debug", help="Show where an error comes from. May stand anywhere.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Declare the options that belong to no command."""


def main() -> None:
    """Run the command line: an error of ours becomes a line or two on stderr, and an exit code that means something."""
    configure(logging.WARNING, "%(levelname)s %(name)s: %(message)s")
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments, prog_name="contextengine")
    except (ContextEngineError, ExceptionGroup) as raised:
        error = _ours(raised)
        if error is None or "--debug" in sys.argv:
            raise
        told = "\n".join([str(error), *getattr(raised, "__notes__", [])])
        typer.secho(f"error: {told}", err=True, fg="red")
        raise SystemExit(exit_code(error)) from None


def exit_code(error: ContextEngineError) -> int:
    """What the command's exit code says about `error`."""
    if isinstance(error, BrokerUnavailable | RegistryUnavailable):
        return NO_BROKER
    return MISCONFIGURED if isinstance(error, ConfigurationError) else FOUND_PROBLEMS


def _ours(raised: Exception) -> ContextEngineError | None:
    """The first error of ours in what was raised; tasks raise theirs in groups."""
    if isinstance(raised, ExceptionGroup):
        return next((found for error in raised.exceptions if (found := _ours(error)) is not None), None)
    return raised if isinstance(raised, ContextEngineError) else None
