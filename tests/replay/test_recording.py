"""The file of a recording: written, read back, and refused with a place where it is none."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import msgspec
import pytest
from recorded import call_under, recorded
from typer.testing import CliRunner

from contextengine.cli import app
from contextengine.errors import ConfigurationError
from contextengine.replay.exact import accepted
from contextengine.replay.recording import LogRecord, files_in, read, sessions_of, write
from contextengine.schemas.events import SessionStarted
from contextengine.schemas.session import Session

RULES = "rules: [{name: greet, when: {keyword: hello}, inject: {information: {name: Ada}}}]"
OLD = Path(__file__).parent / "recording-of-version-1.jsonl"


@pytest.fixture
def recording():
    call = call_under(RULES)
    call.says("hello, świat")
    made = accepted(recorded(call, RULES))
    made.sessions["other"] = Session("other", messages=3)
    made.records.append(
        LogRecord(partition=0, offset=50, appended_ms=5, key=None, value=b"\xff\x00", traceparent="00-1")
    )
    return made


@pytest.mark.parametrize("name", ["call.jsonl", "call.jsonl.gz"])
def test_a_recording_is_read_as_it_was_written_and_written_as_it_was_read(recording, tmp_path, name):
    file, again = tmp_path / name, tmp_path / f"again-{name}"
    write(recording, file)
    found = read(file)
    assert (found.partitions, found.sessions, found.records) == (
        recording.partitions,
        recording.sessions,
        recording.records,
    )
    assert msgspec.structs.replace(found.header, lines=None) == recording.header
    write(found, again)
    assert again.read_bytes() == file.read_bytes()


def test_it_is_json_lines_with_what_followed_below_its_event(recording, tmp_path):
    write(recording, tmp_path / "call.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "call.jsonl").read_text().splitlines()]
    assert lines[0]["recording"] == 1
    kinds = [line["line"] for line in lines[1:]]
    assert (kinds[:3], kinds[-1]) == (["partition", "session", "record"], "bytes")
    said = next(at for at, line in enumerate(lines) if line.get("type") == "MessageCompleted")
    assert lines[said]["event"]["text"] == "hello, świat"
    assert [line["type"] for line in lines[said + 1 : said + 3]] == ["InjectionAttempt", "DecisionMade"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda _: [], "the file is empty, expected the header"),
        (lambda lines: lines[1:], ":1: no header of a recording"),
        (
            lambda lines: [lines[0].replace('"recording":1', '"recording":2'), *lines[1:]],
            ":1: a recording of version 2",
        ),
        (lambda lines: [lines[0], "{", *lines[1:]], ":2: expected a line of a recording"),
        (lambda lines: [lines[0], '{"line":"song"}'], ":2: expected a line of a recording"),
        (lambda lines: [lines[0], lines[1].replace('"partition"', '"session"', 1)], ":2: the state of a Partition"),
        (lambda lines: [lines[0], lines[3].replace("SessionStarted", "SessionStartet")], ":2: no event is a"),
        (lambda lines: [lines[0], lines[3].replace('"seq":0', '"seq":"0"')], ":2: event: SessionStarted"),
        (
            lambda lines: [lines[0], *(line for line in lines if '"output"' in line)],
            ":2: an output, expected the record",
        ),
    ],
)
def test_a_file_that_is_no_recording_is_refused_with_the_line_and_what_was_expected(recording, tmp_path, change, told):
    file = tmp_path / "call.jsonl"
    write(recording, file)
    file.write_text("".join(line + "\n" for line in change(file.read_text().splitlines())))
    with pytest.raises(ConfigurationError) as refused:
        read(file)
    assert told in str(refused.value)


def test_a_file_of_which_lines_were_cut_off_or_doubled_is_refused_and_one_that_counts_none_is_read(recording, tmp_path):
    file = tmp_path / "call.jsonl"
    write(recording, file)
    header, *lines = file.read_text().splitlines(keepends=True)
    told = f"the header, which says {len(lines)}"
    for kept in (lines[:-1], lines[:1], [], lines[1:], [*lines, lines[-1]]):
        file.write_text(header + "".join(kept))
        with pytest.raises(ConfigurationError, match=told):
            read(file)
    file.write_text(header.replace(f'"lines":{len(lines)},', "") + "".join(lines[:-1]))
    assert len(read(file).records) == len(recording.records) - 1


def test_a_compressed_file_that_was_damaged_is_refused(recording, tmp_path):
    file = tmp_path / "call.jsonl.gz"
    write(recording, file)
    data = bytearray(file.read_bytes())
    for damaged in (data[: len(data) // 2], data[:40] + b"\xff" * 40 + data[80:], b"no gzip"):
        file.write_bytes(damaged)
        with pytest.raises(ConfigurationError, match=file.stem):
            read(file)


def test_a_recording_is_written_whole_or_not_at_all(recording, tmp_path, monkeypatch):
    file = tmp_path / "call.jsonl"
    write(recording, file)
    before = file.read_bytes()
    write_bytes = Path.write_bytes

    def fail_half_way(path, data):
        write_bytes(path, data[: len(data) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail_half_way)
    with pytest.raises(OSError, match="no space left"):
        write(recording, file)
    assert (file.read_bytes(), list(tmp_path.iterdir())) == (before, [file])


def test_accepting_a_recording_that_counts_no_lines_has_it_count_them_and_changes_nothing_else(recording, tmp_path):
    file = tmp_path / "call.jsonl"
    recording.records.pop()  # bytes that are no event
    write(recording, file)
    whole = file.read_text()
    header, _, rest = whole.partition("\n")
    file.write_text(re.sub('"lines":[0-9]+,', "", header) + "\n" + rest)
    run = partial(CliRunner().invoke, app, ["replay", str(file), "--accept"])
    assert run().stdout.endswith("1 of 1 recordings rewritten\n")
    assert file.read_text().partition("\n")[2] == rest
    assert len(read(file).records) == len(recording.records)
    assert run().stdout.endswith("0 of 1 recordings rewritten\n")


def test_a_folder_has_its_recordings_and_one_without_any_is_refused(recording, tmp_path):
    for name in ("b.jsonl", "a.jsonl.gz", "notes.txt"):
        write(recording, tmp_path / name)
    assert [file.name for file in files_in([tmp_path])] == ["a.jsonl.gz", "b.jsonl"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="no recording in it"):
        files_in([tmp_path / "empty"])


def test_a_recording_of_the_first_version_is_still_read_though_events_and_states_have_gained_fields_since():
    """The file is kept as it was then. Whoever changes its form teaches `read` to take both."""
    recording = read(OLD)
    assert sessions_of(recording) == ["ada", "bob"]
    assert recording.sessions["bob"].messages == 3
    started = next(of.event for of in recording.records if isinstance(of.event, SessionStarted))
    assert (started.provider, started.channel) == ("fake", "audio")
    assert sum(len(of.outputs) for of in recording.records) > 0
