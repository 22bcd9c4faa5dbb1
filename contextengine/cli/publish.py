"""`contextengine publish`: a conversation's events from the command line, a file or the keyboard."""

from __future__ import annotations

import asyncio
import difflib
import json
import sys
import threading
import time
from enum import StrEnum
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

TOLD_PROBLEMS: Final = 20
PUBLISHER_BYTES: Final = 64
"""At most what the publisher adds to an event: its name, incarnation and seq."""
GIVEN_BY_THE_PUBLISHER: Final = frozenset({"session_id", "producer", "incarnation", "seq"})

Session = Annotated[str | None, typer.Option("--session", metavar="ID", help="The session that it happens in.")]
Say = Annotated[list[str] | None, typer.Option("--say", metavar="TEXT", help="Somebody says this. Repeatable.")]
Type = Annotated[str | None, typer.Option("--type", metavar="EVENT", help="Publish one event of this type.")]
Field = Annotated[
    list[str] | None, typer.Option("--field", metavar="NAME=VALUE", help="A field of that event. Repeatable.")
]
File = Annotated[
    typer.FileBinaryRead | None,
    typer.Option("--file", metavar="FILE", help="Publish each line, an event in JSON; - is the standard input."),
]


class Speaker(StrEnum):
    """Who says something."""

    USER = "user"
    ASSISTANT = "assistant"


Says = Annotated[Speaker, typer.Option("--speaker", help="Who says it.")]


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
    speaker: Says = Speaker.USER,
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
    that `contextengine tail events --json` wrote. Nothing is published if one of them is wrong. What `tail` wrote of
    the engine's own records (ticks, reports) is left out.
    """
    settings = settings_from(config, broker, prefix)
    if file is not None and (session or say or type_ or field):
        raise typer.BadParameter("--file goes alone: its lines say everything")
    if file is None and session is None:
        raise typer.BadParameter("say which --session, or give a --file")
    if field and type_ is None:
        raise typer.BadParameter("--field belongs to a --type")
    skipped = 0
    try:
        if file is not None:
            wanted, skipped = from_lines(file, file.name)
            events = _each(wanted)
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
        write_json({"topic": f"{settings.prefix}.events", "published": count, "skipped": skipped})
    else:
        left = f"; {skipped} of the engine's own (ticks, reports) left out: it makes them anew" if skipped else ""
        typer.echo(f"published {count} {'event' if count == 1 else 'events'} to {settings.prefix}.events{left}")


async def _publish(settings: Settings, events: AsyncIterator[Wanted]) -> int:
    from aiokafka import AIOKafkaProducer  # noqa: PLC0415  help needs none

    from contextengine.errors import BrokerUnavailable, RecordRefused  # noqa: PLC0415
    from contextengine.topics.catalogue import catalogue  # noqa: PLC0415
    from contextengine.topics.errand import errand  # noqa: PLC0415
    from contextengine.topics.publisher import Dropped, Publisher  # noqa: PLC0415
    from contextengine.topics.rulebook import must_exist  # noqa: PLC0415

    async with errand(AIOKafkaProducer(**settings.kafka_client()), settings) as asking:
        await must_exist(catalogue(settings).events.name, asking.client)  # the publisher itself would wait for it
    count = 0
    async with Publisher(settings, name="cli") as publisher:
        async for wanted in events:
            publisher.session(wanted.session_id).publish(wanted.event, at_ms=wanted.at_ms, **wanted.fields)
            count += 1
    if lost := publisher.dropped.total():
        reasons = ", ".join(f"{number} {reason}" for reason, number in publisher.dropped.items())
        silent = publisher.dropped.keys() <= {Dropped.CLOSED, Dropped.BUFFER_FULL}
        kind = BrokerUnavailable if silent else RecordRefused
        raise kind(f"{lost} of {count} events did not reach the broker: {reasons}")
    return count


async def _each(events: Iterable[Wanted]) -> AsyncIterator[Wanted]:
    for wanted in events:
        yield wanted


async def _typed(session_id: str, speaker: Speaker) -> AsyncIterator[Wanted]:
    """What somebody types, a message a line, until the end of the input; what cannot be published is told."""
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
            try:
                yield message(session_id, speaker, line.strip())
            except CannotBePublished as problem:
                typer.secho(str(problem), fg="red", err=True)


def message(session_id: str, speaker: Speaker, text: str) -> Wanted:
    """Somebody has said `text`."""
    if not text.strip():
        raise CannotBePublished("nothing is said: the text is empty")
    return from_fields(session_id, "MessageCompleted", {"speaker": speaker.value, "text": text})


def from_lines(lines: Iterable[bytes], source: str) -> tuple[list[Wanted], int]:
    """The events in JSON lines, and how many of the engine's own were left out.

    CannotBePublished tells the mistakes, each with its line.
    """
    from contextengine.schemas.codec import EVENTS  # noqa: PLC0415  help needs none
    from contextengine.schemas.events import CONVERSATION_EVENTS  # noqa: PLC0415

    own = {event.__name__ for event in EVENTS if event not in CONVERSATION_EVENTS}
    events: list[Wanted] = []
    left_out = 0
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
                left_out += 1
                continue
            fields = written["value"] if isinstance(written.get("value"), dict) else written
            events.append(from_fields(str(fields.pop("session_id", "")), kind, fields))
        except ValueError as problem:  # json.JSONDecodeError, UnicodeDecodeError and CannotBePublished are
            problems.append(f"{source}:{number}: {problem}")
    if problems:
        told = problems[:TOLD_PROBLEMS]
        more = [f"... and {len(problems) - len(told)} more"] if len(problems) > len(told) else []
        raise CannotBePublished("\n".join(told + more))
    return events, left_out


def from_fields(session_id: str, kind: str, fields: dict[str, Any], *, strict: bool = True) -> Wanted:
    """The event of this type with these fields; `strict` False reads numbers from text.

    Times that are not given are now. CannotBePublished says what is wrong.
    """
    import msgspec  # noqa: PLC0415  help needs none

    from contextengine.schemas.codec import encode  # noqa: PLC0415
    from contextengine.schemas.events import CONVERSATION_EVENTS  # noqa: PLC0415
    from contextengine.topics.catalogue import EVENT_BYTES, KEY_BYTES  # noqa: PLC0415

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
        size = len(encode(record)) + PUBLISHER_BYTES
    except (TypeError, ValueError) as invalid:  # msgspec.ValidationError and UnicodeEncodeError are
        raise CannotBePublished(f"{kind}: {invalid}") from None
    if size > EVENT_BYTES:
        raise CannotBePublished(f"{kind}: too large, {size} bytes; an event has at most {EVENT_BYTES}")
    if (size := len(session_id.encode())) > KEY_BYTES:
        raise CannotBePublished(f"{kind}: a session id of {size} bytes, it has at most {KEY_BYTES}")
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
