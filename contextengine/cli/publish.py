"""`contextengine publish`: a conversation's events from the command line, a file or the keyboard."""

from __future__ import annotations

import asyncio
import difflib
import json
import sys
import threading
import time
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from contextengine.cli.options import (
    FOUND_PROBLEMS,
    AsJson,
    Broker,
    Config,
    Prefix,
    examples,
    settings_from,
    write_json,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from contextengine.schemas.events import ConversationEvent
    from contextengine.settings import Settings

GIVEN_BY_THE_PUBLISHER: Final = frozenset({"session_id", "producer", "incarnation", "seq"})

Session = Annotated[str | None, typer.Option("--session", metavar="ID", help="The session that it happens in.")]
Say = Annotated[list[str] | None, typer.Option("--say", metavar="TEXT", help="Somebody says this. Repeatable.")]
Speaker = Annotated[str, typer.Option("--speaker", help="Who says it: user or assistant.")]
Type = Annotated[str | None, typer.Option("--type", metavar="EVENT", help="Publish one event of this type.")]
Field = Annotated[
    list[str] | None, typer.Option("--field", metavar="NAME=VALUE", help="A field of that event. Repeatable.")
]
File = Annotated[
    typer.FileText | None,
    typer.Option("--file", metavar="FILE", help="Publish each line, an event in JSON; - is the standard input."),
]


class Wanted(NamedTuple):
    """An event to publish."""

    session_id: str
    event: type[ConversationEvent]
    at_ms: int | None
    fields: dict[str, Any]


class CannotBePublished(ValueError):
    """What is wrong with an event that somebody wrote."""


def register(root: typer.Typer) -> None:
    """Add the command to the root."""
    root.command(
        epilog=examples(
            'contextengine publish --session s1 --say "I would like to book a table"',
            "contextengine publish --session s1 --type SessionStarted \\",
            "    --field provider=openai_realtime --field model=gpt-realtime \\",
            "    --field call_id=rtc_1 --field facts.name=Ada",
            "contextengine publish --file events.jsonl",
            "contextengine publish --session s1   # and type what the user says",
        )
    )(publish)


def publish(
    session: Session = None,
    say: Say = None,
    speaker: Speaker = "user",
    type_: Type = None,
    field: Field = None,
    file: File = None,
    as_json: AsJson = False,
    config: Config = None,
    broker: Broker = None,
    prefix: Prefix = None,
) -> None:
    """Publish events of a conversation, as a VoiceEngine would.

    A line of a file is {"type": "MessageCompleted", "session_id": "s1", "speaker": "user", "text": "Hello"}, or one
    that `contextengine tail events --json` wrote. Nothing is published if one of them is wrong.
    """
    settings = settings_from(config, broker, prefix)
    if file is not None and (session or say or type_ or field):
        raise typer.BadParameter("--file goes alone: its lines say everything")
    if file is None and session is None:
        raise typer.BadParameter("say which --session, or give a --file")
    if field and type_ is None:
        raise typer.BadParameter("--field belongs to a --type")
    try:
        if file is not None:
            events = _each(from_lines(file, file.name))
        elif type_ is not None:
            events = _each([from_fields(session or "", type_, _pairs(field or []), strict=False)])
        elif say:
            events = _each([message(session or "", speaker, text) for text in say])
        else:
            events = _typed(session or "", speaker)
    except CannotBePublished as problems:
        typer.secho(str(problems), fg="red", err=True)
        raise typer.Exit(FOUND_PROBLEMS) from None
    count = asyncio.run(_publish(settings, events))
    if as_json:
        write_json({"topic": f"{settings.prefix}.events", "published": count})
    else:
        typer.echo(f"published {count} {'event' if count == 1 else 'events'} to {settings.prefix}.events")


async def _publish(settings: Settings, events: AsyncIterator[Wanted]) -> int:
    from aiokafka import AIOKafkaProducer  # noqa: PLC0415  help needs none

    from contextengine.errors import BrokerUnavailable  # noqa: PLC0415
    from contextengine.topics.catalogue import catalogue  # noqa: PLC0415
    from contextengine.topics.errand import errand  # noqa: PLC0415
    from contextengine.topics.publisher import Publisher  # noqa: PLC0415
    from contextengine.topics.rulebook import must_exist  # noqa: PLC0415

    async with errand(AIOKafkaProducer(**settings.kafka_client()), settings) as asking:
        await must_exist(catalogue(settings).events.name, asking.client)  # the publisher itself would wait for it
    count = 0
    async with Publisher(settings, name="cli") as publisher:
        async for wanted in events:
            publisher.session(wanted.session_id).publish(wanted.event, at_ms=wanted.at_ms, **wanted.fields)
            count += 1
    if lost := sum(publisher.dropped.values()):
        raise BrokerUnavailable(f"{lost} of {count} events were not acknowledged: {dict(publisher.dropped)}")
    return count


async def _each(events: Iterable[Wanted]) -> AsyncIterator[Wanted]:
    for wanted in events:
        yield wanted


async def _typed(session_id: str, speaker: str) -> AsyncIterator[Wanted]:
    """What somebody types, a message a line, until the end of the input."""
    if sys.stdin.isatty():
        typer.echo(f"Type what the {speaker} says, a line each; Ctrl-D ends it.", err=True)
    loop = asyncio.get_running_loop()
    typed: asyncio.Queue[str | None] = asyncio.Queue()

    def read() -> None:
        with open(0, encoding="utf-8", errors="replace", closefd=False) as lines:
            for line in lines:
                loop.call_soon_threadsafe(typed.put_nowait, line)
        loop.call_soon_threadsafe(typed.put_nowait, None)

    # Nothing can end a thread that reads from a terminal; a daemon does not keep the process from ending.
    threading.Thread(target=read, daemon=True).start()
    while (line := await typed.get()) is not None:
        if line.strip():
            yield message(session_id, speaker, line.strip())


def message(session_id: str, speaker: str, text: str) -> Wanted:
    """Somebody has said `text`."""
    return from_fields(session_id, "MessageCompleted", {"speaker": speaker, "text": text})


def from_lines(lines: Iterable[str], source: str) -> list[Wanted]:
    """The events in JSON lines, without those of the engine's own. CannotBePublished tells every mistake."""
    from contextengine.schemas.codec import EVENTS  # noqa: PLC0415  help needs none
    from contextengine.schemas.events import CONVERSATION_EVENTS  # noqa: PLC0415

    own = {event.__name__ for event in EVENTS if event not in CONVERSATION_EVENTS}
    events: list[Wanted] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            written = json.loads(line)
            if not isinstance(written, dict) or not isinstance(written.get("type"), str):
                raise CannotBePublished('no object with a "type"')
            kind = written.pop("type")
            if kind in own:
                continue
            fields = written["value"] if isinstance(written.get("value"), dict) else written
            events.append(from_fields(str(fields.pop("session_id", "")), kind, fields))
        except ValueError as problem:  # json.JSONDecodeError and CannotBePublished are
            problems.append(f"{source}:{number}: {problem}")
    if problems:
        raise CannotBePublished("\n".join(problems))
    return events


def from_fields(session_id: str, kind: str, fields: dict[str, Any], *, strict: bool = True) -> Wanted:
    """The event of this type with these fields; `strict` False reads numbers from text.

    Times that are not given are now. CannotBePublished says what is wrong.
    """
    import msgspec  # noqa: PLC0415  help needs none

    from contextengine.schemas.events import CONVERSATION_EVENTS  # noqa: PLC0415

    if not session_id:
        raise CannotBePublished("no session_id")
    events = {event.__name__: event for event in CONVERSATION_EVENTS}
    if kind not in events:
        raise CannotBePublished(f"no event {kind!r}{_meant(kind, events)}")
    event = events[kind]
    names = [field for field in event.__struct_fields__ if field not in GIVEN_BY_THE_PUBLISHER]
    for name in fields:
        if name not in names and name not in GIVEN_BY_THE_PUBLISHER:
            raise CannotBePublished(f"{kind} has no field {name!r}{_meant(name, names)}")
    at_ms = fields.get("at_ms")
    if "known_ms" in names:
        fields = {"known_ms": at_ms or time.time_ns() // 1_000_000, **fields}
    whole = {"at_ms": 0, **fields, "session_id": session_id, "producer": "", "incarnation": 0, "seq": 0}
    try:
        record = msgspec.convert(whole, event, strict=strict)
    except msgspec.ValidationError as invalid:
        raise CannotBePublished(f"{kind}: {invalid}") from None
    return Wanted(
        session_id,
        event,
        record.at_ms if at_ms is not None else None,
        {name: getattr(record, name) for name in names if name in fields and name != "at_ms"},
    )


def _pairs(written: Iterable[str]) -> dict[str, Any]:
    """`name=value` pairs; `facts.name=Ada` fills a mapping."""
    fields: dict[str, Any] = {}
    for pair in written:
        name, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"{pair!r} is not NAME=VALUE")
        outer, dot, inner = name.partition(".")
        if dot:
            fields.setdefault(outer, {})[inner] = value
        else:
            fields[name] = value
    return fields


def _meant(found: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(found, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
