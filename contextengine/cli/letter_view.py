"""How a dead letter looks: for people, in lines that cut nothing, and for scripts."""

from __future__ import annotations

import base64
import time
from collections import defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aiokafka.structs import ConsumerRecord

    from contextengine.settings import Settings
    from contextengine.topics.dead_letters import DeadLetter

ROW_BYTES: Final = 16


def decoded(settings: Settings, letter: DeadLetter, record: ConsumerRecord) -> tuple[str, Any, bytes]:
    """What kind of thing the value is, what it says, and the bytes of it that there are."""
    from contextengine.errors import UndecodableRecord  # noqa: PLC0415  help needs none
    from contextengine.topics.dead_letters import unpacked  # noqa: PLC0415
    from contextengine.topics.registry import codec_of  # noqa: PLC0415
    from contextengine.topics.tail import Seen  # noqa: PLC0415

    try:
        value = unpacked(record.value, letter.told.get("encoding"))
    except UndecodableRecord as undecodable:
        return f"packed ({undecodable})", None, record.value or b""
    seen = Seen(letter.told["topic"], *letter.place, letter.buried_ms, letter.session_id, {}, value, codec_of(settings))
    return *seen.told(), value or b""


def told(letter: DeadLetter) -> dict[str, Any]:
    """A letter in JSON's terms."""
    return {
        "letter": str(letter.place),
        "buried_ms": letter.buried_ms,
        "stage": letter.told["stage"],
        "class": letter.told["class"],
        "message": letter.told["message"],
        "session_id": letter.session_id,
        "provider": letter.provider,
        "rule": letter.rule,
        "injection_id": letter.told.get("injection-id", ""),
        "attempts": int(letter.told.get("attempt", 0)),
        "read_from": {name: letter.told[name] for name in ("topic", "partition", "offset", "timestamp-ms")},
        "size": letter.size,
        "sent_back": letter.sent_back,
        "redrives": [asdict(redrive) for redrive in letter.redrives],
    }


def lines(letter: DeadLetter) -> str:
    """A letter for people, in a few lines that cut nothing."""
    why = letter.told
    about = f"session {letter.session_id}" if letter.session_id else "no session"
    if letter.rule:
        about += f", rule {letter.rule}, {letter.provider}, attempt {why.get('attempt')} of {why.get('max-attempts')}"
    else:
        about += f", {letter.size} bytes from {why['topic']} {why['partition']}:{why['offset']}"
    head = f"{letter.place!s:>8}  {clock(letter.buried_ms)}  {why['stage']:8} {why['class']}"
    return "\n".join([head, *(f"{'':10}{line}" for line in (about, _one_line(why["message"]), *redrive_lines(letter)))])


def redrive_lines(letter: DeadLetter) -> Iterator[str]:
    """How often it was sent back, before it lay here and since, and what came of it."""
    if letter.told["redrives"] != "0":
        origin = f", from {letter.told['letter']}" if "letter" in letter.told else ""
        yield f"had been sent back {letter.told['redrives']}x before{origin}"
    if letter.redrives:
        last = letter.redrives[-1]
        yield f"redriven {len(letter.redrives)}x, last {clock(last.at_ms)} by {last.by}: {last.outcome}"


def groups(letters: Sequence[DeadLetter]) -> Iterator[dict[str, Any]]:
    """The letters by stage and class, the largest group first."""
    groups: defaultdict[tuple[str, str], list[DeadLetter]] = defaultdict(list)
    for letter in letters:
        groups[letter.told["stage"], letter.told["class"]].append(letter)
    for (stage, error_class), members in sorted(groups.items(), key=lambda group: -len(group[1])):
        yield {
            "stage": stage,
            "class": error_class,
            "letters": len(members),
            "redriven": sum(bool(letter.redrives) for letter in members),
            "sessions": len({letter.session_id for letter in members}),
            "providers": sorted({letter.provider for letter in members if letter.provider}),
            "first_ms": members[0].buried_ms,
            "last_ms": members[-1].buried_ms,
            "last_letter": str(members[-1].place),
            "last_message": members[-1].told["message"],
        }


def group_lines(group: dict[str, Any]) -> str:
    """A group for people."""
    about = ", ".join([counted(group["sessions"], "session"), *group["providers"]])
    return (
        f"{group['letters']:>8}  {group['stage']:8} {group['class']}, {group['redriven']} redriven\n"
        f"{'':10}{about}, {clock(group['first_ms'])} to {clock(group['last_ms'])}\n"
        f"{'':10}the last, {group['last_letter']}: {_one_line(group['last_message'])}"
    )


def hexdump(data: bytes) -> Iterator[str]:
    """The bytes, a row of sixteen a line, and beside them what of it is readable."""
    for at in range(0, len(data), ROW_BYTES):
        row = data[at : at + ROW_BYTES]
        readable = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        yield f"{at:08x}  {row.hex(' '):{3 * ROW_BYTES - 1}}  {readable}"


def counted(count: int, what: str) -> str:
    """So many of them."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def clock(ms: int) -> str:
    """A time for people, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(ms / 1_000))


def text(data: bytes | None) -> str:
    """Bytes that should be text."""
    return (data or b"").decode(errors="backslashreplace")


def as_base64(data: bytes | None) -> str | None:
    """Bytes for JSON."""
    return None if data is None else base64.b64encode(data).decode()


def _one_line(message: str) -> str:
    return " ".join(message.split())
