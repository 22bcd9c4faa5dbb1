"""`contextengine simulate`: a provider to rehearse against, on this machine."""

from __future__ import annotations

import asyncio
import contextlib
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from contextengine.cli.options import examples, stop_on_signals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from contextengine.adapters.simulators.openai_realtime import RealtimeSimulator

LOOK_S: Final = 0.2


class Provider(StrEnum):
    """What can be simulated."""

    OPENAI_REALTIME = "openai_realtime"


Name = Annotated[Provider, typer.Argument(metavar="PROVIDER", help="openai_realtime")]
Port = Annotated[int, typer.Option("--port", help="Where it answers; 0 picks a free one.", min=0, max=65535)]


def register(root: typer.Typer) -> None:
    """Add the command to the root."""
    root.command(
        epilog=examples("contextengine simulate openai_realtime", "contextengine simulate openai_realtime --port 0")
    )(simulate)


def simulate(provider: Name, port: Port = 8803) -> None:  # noqa: ARG001  there is one so far
    """Simulate a provider for `contextengine deliver`, and show what is put into its calls, until Ctrl-C.

    It speaks the real protocol and refuses wrong frames. Every call that somebody joins is there. No key is needed, and
    nothing leaves this machine.
    """
    asyncio.run(_simulate(port))


async def _simulate(port: int) -> None:
    from contextengine.adapters.simulators.openai_realtime import RealtimeSimulator  # noqa: PLC0415  help needs none
    from contextengine.errors import ConfigurationError  # noqa: PLC0415

    stop = stop_on_signals()
    async with contextlib.AsyncExitStack() as stack:
        try:
            simulator = await stack.enter_async_context(RealtimeSimulator(port=port, any_call=True))
        except OSError as taken:
            raise ConfigurationError(f"port {port} is taken: {taken.strerror}; --port names another") from taken
        typer.echo("Have `contextengine deliver` use it, and stop it with Ctrl-C:")
        base_url, key = f"CONTEXTENGINE_OPENAI_BASE_URL={simulator.base_url}", "CONTEXTENGINE_OPENAI_API_KEY=simulated"
        typer.echo(f"  export {base_url} {key}")
        shown: set[tuple[str, str]] = set()
        while not stop.is_set():
            for line in _news(simulator, shown):
                typer.echo(line)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), LOOK_S)


def _news(simulator: RealtimeSimulator, shown: set[tuple[str, str]]) -> Iterator[str]:
    """What has been put into the calls since the last time, and what was wrong with frames."""
    for call in simulator.calls.values():
        if (call.call_id, "") not in shown:
            shown.add((call.call_id, ""))
            yield f"{call.call_id}: joined"
        for item in call.items:
            if (call.call_id, item["id"]) not in shown:
                shown.add((call.call_id, item["id"]))
                yield f"{call.call_id}: {item.get('role', item['type'])} item {item['id']}\n{_said(item)}"
    while simulator.violations:
        yield f"a wrong frame: {simulator.violations.pop(0)}"


def _said(item: dict[str, Any]) -> str:
    texts = [part.get("text") or part.get("transcript") or "" for part in item.get("content", [])]
    return "\n".join(f"  {line}" for text in texts for line in text.splitlines())
