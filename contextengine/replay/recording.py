"""A recording: part of the events topic, all that it was judged from, and what followed.

It is a file of JSON lines, gzipped when its name ends in `.gz`, for `jq` and `diff` as much as for us:

    header      the engine's version, the log's id, the topic, its range, and the text of every rule set; how many lines
    partition   the record of a partition just before its first record here
    session     the state of a session just before its first record here; one that begins here has none
    record      an event, with its place in the log, its append time and its trace
    bytes       a record that is no event: its key and value, in base64
    output      what a worker wrote because of the record above it: attempts, outcomes, the explanation; each once

Records are in the order of their partition.
A field that an event has gained since is read as its default, so old recordings stay readable.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar, cast

import msgspec
from msgspec import Raw, Struct

from contextengine.errors import ConfigurationError, UndecodableRecord
from contextengine.schemas.codec import EVENTS
from contextengine.schemas.decision import DecisionMade
from contextengine.schemas.events import AnyEvent
from contextengine.schemas.injection import InjectionAttempt, InjectionCancelled, InjectionResult, RetryRequested
from contextengine.schemas.session import Partition, Session, dump_state, load_state

VERSION: Final = 1
"""Of the file's form; a greater one is refused."""
ENDINGS: Final = (".jsonl", ".jsonl.gz")
"""Of the names of recordings in a folder."""

Output: TypeAlias = DecisionMade | InjectionAttempt | InjectionCancelled | RetryRequested | InjectionResult

T = TypeVar("T")


class RecordingInvalid(ConfigurationError):
    """A file is no recording, or a newer engine's: says the line, and what was expected there."""


class Header(Struct, frozen=True, kw_only=True):
    """What the recording is of.

    `lines` is how many the file has below this one, None in a file that an older engine wrote. `ranges` has, for each
    partition, the first offset and the one after the last. `rules` are the texts of the rule sets by hash. `incomplete`
    says of a session why it cannot be replayed.
    """

    recording: int = VERSION
    lines: int | None = None
    engine: str
    log_id: str
    topic: str
    partitions: int
    ranges: dict[int, tuple[int, int]] = {}
    rules: dict[str, str] = {}
    redacted: bool = False
    incomplete: dict[str, str] = {}


class LogRecord(Struct, frozen=True, kw_only=True):
    """A record of the events topic, and what a worker wrote because of it.

    `appended_ms` is the time of its decision: its append time, but never less than that of a record before it. `event`
    is None for a record that is no event; then `key` and `value` are its bytes.
    """

    partition: int
    offset: int
    appended_ms: int
    event: AnyEvent | None = None
    key: bytes | None = None
    value: bytes | None = None
    traceparent: str = ""
    outputs: tuple[Output, ...] = ()


@dataclass(slots=True)
class Recording:
    """What a recording's file holds. The states are those at the start: whoever replays it works on copies."""

    header: Header
    partitions: dict[int, Partition] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    records: list[LogRecord] = field(default_factory=list)


class _Partition(Struct, tag_field="line", tag="partition"):
    state: Raw


class _Session(Struct, tag_field="line", tag="session"):
    state: Raw


class _Record(Struct, tag_field="line", tag="record", omit_defaults=True):
    partition: int
    offset: int
    appended_ms: int
    type: str
    event: Raw
    traceparent: str = ""


class _Bytes(Struct, tag_field="line", tag="bytes", omit_defaults=True):
    partition: int
    offset: int
    appended_ms: int
    key: bytes | None
    value: bytes | None
    traceparent: str = ""


class _Output(Struct, tag_field="line", tag="output"):
    type: str
    value: Raw


_Line: TypeAlias = _Partition | _Session | _Record | _Bytes | _Output

_EVENTS: Final[dict[str, msgspec.json.Decoder[Any]]] = {kind.__name__: msgspec.json.Decoder(kind) for kind in EVENTS}
_OUTPUTS: Final[dict[str, msgspec.json.Decoder[Any]]] = {
    kind.__name__: msgspec.json.Decoder(kind)
    for kind in (DecisionMade, InjectionAttempt, InjectionCancelled, RetryRequested, InjectionResult)
}
_header: Final = msgspec.json.Decoder(Header)
_line: Final = msgspec.json.Decoder(_Line)
_encode: Final = msgspec.json.encode


def write(recording: Recording, path: Path) -> None:
    """Write a recording, counting its lines: all of it, or nothing. The same one gives the same bytes."""
    lines = list(_lines(recording))
    header = _encode(msgspec.structs.replace(recording.header, lines=len(lines)))
    text = b"".join(line + b"\n" for line in (header, *lines))
    data = gzip.compress(text, mtime=0) if path.suffix == ".gz" else text
    if path.exists() and not path.is_file():  # a pipe, or a device
        path.write_bytes(data)
        return
    beside = path.with_name(f"{path.name}.part")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read(path: Path) -> Recording:
    """The recording in a file. RecordingInvalid says which line is wrong, and how, or that some were cut off."""
    try:
        text = path.read_bytes()
        lines = (gzip.decompress(text) if path.suffix == ".gz" else text).splitlines()
    except (OSError, EOFError, zlib.error) as unreadable:
        raise RecordingInvalid(f"{path}: {unreadable}") from unreadable
    if not lines:
        raise RecordingInvalid(f"{path}: the file is empty, expected the header of a recording")
    recording = Recording(_read(_header.decode, lines[0], f"{path}:1: no header of a recording"))
    if recording.header.recording > VERSION:
        found = recording.header.recording
        raise RecordingInvalid(f"{path}:1: a recording of version {found}; this engine reads up to {VERSION}")
    count = 0
    for number, line in enumerate(lines[1:], 2):
        if line.strip():
            _add(recording, line, f"{path}:{number}")
            count += 1
    expected = recording.header.lines
    if expected not in (None, count):
        raise RecordingInvalid(f"{path}: {count} lines below the header, which says {expected}: it is not all there")
    return recording


def _lines(recording: Recording) -> Iterator[bytes]:
    """All but the header."""
    for partition in recording.partitions.values():
        yield _encode(_Partition(Raw(dump_state(partition))))
    for session in recording.sessions.values():
        yield _encode(_Session(Raw(dump_state(session))))
    for of in recording.records:
        place = (of.partition, of.offset, of.appended_ms)
        if of.event is None:
            yield _encode(_Bytes(*place, of.key, of.value, of.traceparent))
        else:
            yield _encode(_Record(*place, type(of.event).__name__, Raw(_encode(of.event)), of.traceparent))
        for output in of.outputs:
            yield _encode(_Output(type(output).__name__, Raw(_encode(output))))


def _add(recording: Recording, text: bytes, where: str) -> None:
    line = _read(_line.decode, text, f"{where}: expected a line of a recording")
    match line:
        case _Partition():
            partition = cast("Partition", _state(line.state, Partition, where))
            recording.partitions[partition.number] = partition
        case _Session():
            session = cast("Session", _state(line.state, Session, where))
            recording.sessions[session.session_id] = session
        case _Record():
            event = _read(_kind(_EVENTS, line.type, "event", where), line.event, f"{where}: event: {line.type}")
            recording.records.append(_record(line, event=event))
        case _Bytes():
            recording.records.append(_record(line, key=line.key, value=line.value))
        case _Output():
            kind = _kind(_OUTPUTS, line.type, "output", where)
            if not recording.records:
                raise RecordingInvalid(
                    f"{where}: an output, expected the record above it that it was written because of"
                )
            last = recording.records[-1]
            output = _read(kind, line.value, f"{where}: value: {line.type}")
            recording.records[-1] = msgspec.structs.replace(last, outputs=(*last.outputs, output))


def _record(line: _Record | _Bytes, **says: Any) -> LogRecord:
    place: dict[str, Any] = {"partition": line.partition, "offset": line.offset, "appended_ms": line.appended_ms}
    return LogRecord(**place, traceparent=line.traceparent, **says)


def _read(decode: Callable[[Any], T], data: object, expected: str) -> T:
    try:
        return decode(data)
    except msgspec.DecodeError as error:
        raise RecordingInvalid(f"{expected}: {error}") from error


def _kind(known: dict[str, msgspec.json.Decoder[Any]], name: str, what: str, where: str) -> Callable[[Any], Any]:
    if name not in known:
        raise RecordingInvalid(f"{where}: no {what} is a {name!r}; there are {', '.join(known)}")
    return known[name].decode


def _state(state: Raw, expected: type[Struct], where: str) -> Struct:
    try:
        found = load_state(bytes(state))
    except UndecodableRecord as error:
        raise RecordingInvalid(f"{where}: {error}") from error
    if not isinstance(found, expected):
        raise RecordingInvalid(f"{where}: the state of a {type(found).__name__}, expected a {expected.__name__}")
    return found


def files_in(paths: Iterable[Path]) -> list[Path]:
    """The recordings' files: those given, and of a folder all that are in it. RecordingInvalid when one has none."""
    files: list[Path] = []
    for path in paths:
        found = sorted(file for file in path.iterdir() if file.name.endswith(ENDINGS)) if path.is_dir() else [path]
        if not found:
            raise RecordingInvalid(f"{path}: no recording in it ({', '.join(ENDINGS)})")
        files += found
    return files


def sessions_of(recording: Recording) -> list[str]:
    """The sessions whose events are in a recording, in the order in which they come."""
    found = (getattr(of.event, "session_id", None) for of in recording.records)
    return list(dict.fromkeys(name for name in found if name is not None))
