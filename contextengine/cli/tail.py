"""`contextengine tail`: shows a topic's records as they come."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contextengine.cli.options import Broker, Config, Prefix, examples, settings_from, unless_stopped

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from contextengine.topics.tail import Seen

Topic = Annotated[
    str,
    typer.Argument(
        metavar="TOPIC",
        help="events, injections, attempts, results, decisions, dead, retry_1s, rules or sessions_changelog.",
    ),
]
FromStart = Annotated[bool, typer.Option("--from-start", help="Begin with the first record, not with the next one.")]
ToEnd = Annotated[bool, typer.Option("--to-end", help="Stop at the end, do not wait for more. Implies --from-start.")]
Session = Annotated[str | None, typer.Option("--session", metavar="ID", help="Only this session's records.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Stop after so many records.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Write a JSON object for each record, one a line.")]


def register(root: typer.Typer) -> None:
    """Add the command to the root."""
    root.command(
        epilog=examples(
            "contextengine tail decisions --session s1",
            "contextengine tail results --to-end --json | jq .value.outcome",
        )
    )(tail)


def tail(
    topic: Topic,
    from_start: FromStart = False,
    to_end: ToEnd = False,
    session: Session = None,
    limit: Limit = None,
    as_json: JsonLines = False,
    config: Config = None,
    broker: Broker = None,
    prefix: Prefix = None,
) -> None:
    """Show the records of a topic as they come, decoded, until Ctrl-C."""
    from contextengine.topics.tail import follow, topic_named  # noqa: PLC0415  help needs none

    settings = settings_from(config, broker, prefix)
    records = follow(settings, [topic_named(settings, topic)], from_start=from_start or to_end, to_end=to_end)
    asyncio.run(unless_stopped(_show(records, session, limit, json_line if as_json else line)))


async def _show(
    records: AsyncGenerator[Seen], session: str | None, limit: int | None, told: Callable[[Seen], str]
) -> None:
    shown = 0
    async with aclosing(records):
        async for seen in records:
            if session in (None, seen.key):
                typer.echo(told(seen))
                shown += 1
            if shown == limit:
                return


def json_line(seen: Seen) -> str:
    """The record as one line of JSON."""
    kind, value = seen.told()
    return json.dumps(
        {
            "topic": seen.topic,
            "partition": seen.partition,
            "offset": seen.offset,
            "appended_ms": seen.appended_ms,
            "key": seen.key,
            "headers": seen.headers,
            "type": kind,
            "value": value,
        },
        ensure_ascii=False,
    )


def line(seen: Seen) -> str:
    """The record for people, on one line: time (UTC), place, key, kind and what it says; of a decision, one a fact."""
    kind, value = seen.told()
    at = datetime.fromtimestamp(seen.appended_ms / 1_000, UTC).strftime("%H:%M:%S.%f")[:-3]
    if kind == "DecisionMade":
        minutes, seconds = divmod(value["elapsed_ms"] // 1_000, 60)
        about = f"{at} {seen.key:20} {minutes}:{seconds:02} {value['event']}"
        return "\n".join(f"{about}  {fact}" for fact in decided(value))
    if isinstance(value, dict):
        value = " ".join(f"{name}={_short(part)}" for name, part in value.items() if part and name != "session_id")
    headers = "".join(f" {name}={value}" for name, value in seen.headers.items())
    return f"{at} {seen.partition}:{seen.offset:<6} {seen.key:20} {kind:20} {_short(value)}{headers}"


def decided(decision: dict[str, Any]) -> Iterator[str]:
    """What a decision says, a fact at a time: which rules fired and on what, what became of each, what was sent."""
    on = {
        fired["rule"]: ", ".join(f"{name} {seen}" for name, seen in fired["evidence"].items())
        for fired in decision["fired"]
    }
    for accepted in decision["accepted"]:
        yield _fact(
            accepted["rule"],
            on,
            f"goes in at {accepted['placement']} as {accepted['injection_id']}: {accepted['text']}",
        )
    for suppressed in decision["suppressed"]:
        yield _fact(suppressed["rule"], on, f"held back by {suppressed['filter']}: {suppressed['reason']}")
    for injection_id in decision["released"]:
        yield f"sends {injection_id}"
    if not (decision["accepted"] or decision["suppressed"] or decision["released"]):
        yield "an injection has ended or waits for another attempt (`tail results`)"


def _fact(rule: str, on: dict[str, str], what: str) -> str:
    fired = f" fired on {on[rule]};" if on.get(rule) else ""
    return " ".join(f"{rule}{fired} {what}".split())


def _short(value: Any) -> str:
    """A value on one line; what is not there says nothing."""
    if value is None:
        return ""
    return value if isinstance(value, str) and "\n" not in value else json.dumps(value, ensure_ascii=False)
