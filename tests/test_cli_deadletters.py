"""The dead letters on the command line."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import uuid

import pytest
from an_attempt import an_attempt
from broker_log import read_raw, write
from test_cli import contextengine, on
from typer.testing import CliRunner

from contextengine.cli import app, deadletters
from contextengine.delivery.dead_letter import Failures, Origin, forms, headers
from contextengine.schemas.codec import encode
from contextengine.schemas.dead_letter import Stage
from contextengine.schemas.events import MessageCompleted
from contextengine.schemas.injection import FailurePolicy
from contextengine.topics import admin, dead_letters
from contextengine.topics import redrive as redriving
from contextengine.topics.catalogue import catalogue
from contextengine.topics.redrive import Redriver

SEND = Redriver._send
SAID = MessageCompleted(session_id="s2", producer="v", incarnation=1, seq=4, at_ms=1, speaker="user", text="hello")
LONG = "the session's provider answered with something that is rather long to be told on one line of a terminal " * 3
ATTEMPT = an_attempt(attempt=3, provider="openai_realtime", rule="hotel-policy", policy=FailurePolicy(max_attempts=3))


async def bury(settings):
    """A letter of each kind: a dead injection, bytes that are no record, an event of a defect, bytes kept as gzip."""
    await admin.apply(settings, uuid.uuid4().hex)
    topics = catalogue(settings)

    def why(number, stage, error, message, **more):
        return headers(stage, error, message, Origin(topics.events.name, 0, number, 1_000, "g", "w"), **more)

    failures = Failures(ATTEMPT.injection, 3, first_failure_ms=10, last_failure_ms=20)
    dead = why(1, Stage.DELIVER, "http_500", LONG, failures=failures)
    await write(settings, topics.dead, ATTEMPT, partition=0, headers=dead)
    garbage = why(2, Stage.DECODE, "UndecodableRecord", "no Avro", carried=[("traceparent", b"00-1")])
    await write(settings, topics.dead, b"\x00garbage\xff", partition=0, headers=garbage)
    await write(settings, topics.dead, SAID, partition=0, headers=why(3, Stage.DECIDE, "EngineDefect", "a defect"))
    [_, (packed, how), _] = forms(encode(SAID))
    large = why(4, Stage.DECODE, "UndecodableRecord", "too large")
    await write(settings, topics.dead, packed, partition=0, headers=[*large, *how])


@pytest.fixture
def buried(settings):
    asyncio.run(bury(settings))
    return settings


@pytest.fixture
def run(buried, monkeypatch):
    """Run `contextengine deadletters` in this process: its exit code, and what it says on both streams."""
    for name, value in on(buried).items():
        monkeypatch.setenv(f"CONTEXTENGINE_{name.upper()}", str(value))

    def command(*arguments, typed=None):
        return CliRunner().invoke(app, ["deadletters", *arguments], input=typed)

    return command


def test_the_list_names_each_letter_its_error_whole_and_what_it_is_about(run):
    told = run("list").stdout
    assert re.search(r"^ +0:0  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d  deliver  http_500$", told, re.MULTILINE)
    assert "session s1, rule hotel-policy, openai_realtime, attempt 3 of 3" in told
    assert LONG.strip() in told
    assert re.search(r"session raw, 9 bytes from \S+\.events 0:2", told)
    assert told.count("UndecodableRecord") == 2


def test_a_filter_and_json_are_for_scripts(run):
    letters = json.loads(run("list", "--stage", "deliver", "--json").stdout)
    [letter] = letters
    assert (letter["letter"], letter["rule"], letter["injection_id"], letter["attempts"]) == (
        "0:0",
        "hotel-policy",
        "i1",
        3,
    )
    assert json.loads(run("list", "--provider", "other", "--json").stdout) == []
    assert "no dead letters of that kind" in run("list", "--since", "2099-01-01").stdout


def test_letters_are_grouped_by_stage_and_class(run):
    told = run("list", "--group").stdout
    assert re.search(r"^ +2  decode   UndecodableRecord, 0 redriven$", told, re.MULTILINE)
    groups = json.loads(run("list", "--group", "--json").stdout)
    assert [(group["stage"], group["letters"]) for group in groups] == [("decode", 2), ("deliver", 1), ("decide", 1)]


def test_a_letter_is_shown_with_headers_and_value_decoded_as_far_as_possible(run):
    told = run("show", "0:0").stdout
    assert "cx-max-attempts      3" in told
    assert '"rule": "hotel-policy"' in told
    told = run("show", "0:1").stdout
    assert "traceparent          00-1" in told
    assert "00000000  00 67 61 72 62 61 67 65 ff                       .garbage." in told
    packed = json.loads(run("show", "0:3", "--json").stdout)
    assert (packed["type"], packed["value"]["text"]) == ("MessageCompleted", "hello")


def test_a_letter_that_is_not_there_and_a_name_that_names_none_are_told(run):
    assert (run("show", "3:99").exit_code, run("show", "nonsense").exit_code) == (1, 2)
    assert run("list", "--stage", "nonsense").exit_code == 2
    assert run("list", "--since", "yesterday").exit_code == 2


def test_letters_are_exported_with_their_bytes(run, tmp_path):
    file = tmp_path / "letters.jsonl"
    assert run("export", "--output", str(file)).exit_code == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert base64.b64decode(lines[1]["value"]) == b"\x00garbage\xff"
    assert ["traceparent", base64.b64encode(b"00-1").decode()] in lines[1]["headers"]
    assert [line["letter"] for line in lines] == ["0:0", "0:1", "0:2", "0:3"]


def test_a_redrive_must_say_which_letters_and_asks_before_it_sends_more_than_one(run, buried):
    assert run("redrive").exit_code == 2
    asked = run("redrive", "--stage", "decode", typed="n\n")
    assert asked.exit_code == 1
    assert "Send back 2 letters?" in asked.stderr
    planned = run("redrive", "--all", "--dry-run")
    assert planned.exit_code == 0
    assert "would send back 3 letters" in planned.stdout
    assert "0:2 would not be sent back: the engine failed on this event" in planned.stderr
    assert asyncio.run(read_raw(buried, catalogue(buried).events)) == []


def test_a_redrive_sends_back_what_can_be_and_leaves_alone_what_was_before(run, buried):
    sent = run("redrive", "--all", "--yes")
    assert (sent.exit_code, sent.stdout) == (1, "sent back 3 letters\n")  # 1: the defect was refused
    assert re.search(r"redriven 1x, last .* by \S+@\S+: not buried again", run("list").stdout)
    again = run("redrive", "--stage", "decode", "--yes", "--json")
    assert json.loads(again.stdout) == {"redriven": 0, "refused": {}, "gone": 0, "stopped": False}
    assert "2 letters redriven before: left alone without --again" in again.stderr
    assert run("redrive", "0:1", "--again").stdout == "sent back 1 letter\n"
    assert len(asyncio.run(read_raw(buried, catalogue(buried).events))) == 4


def test_ctrl_c_stops_a_redrive_between_two_letters_and_it_goes_on_when_it_is_repeated(run, buried, monkeypatch):
    stopping = asyncio.Event()
    monkeypatch.setattr(deadletters, "stop_on_signals", lambda: stopping)
    monkeypatch.setattr(Redriver, "_send", lambda *told: send_and(stopping.set, *told))
    stopped = run("redrive", "--all", "--yes", "--rate", "10")
    assert stopped.exit_code == 130
    assert stopped.stdout == "sent back 1 letter; stopped before the other 2, repeat the command to go on\n"
    stopping.clear()
    monkeypatch.undo()
    assert "sent back 2 letters" in contextengine("deadletters", "redrive", "--all", "--yes", **on(buried)).stdout


def test_letters_that_went_meanwhile_are_told_and_are_a_problem(run, monkeypatch):
    async def find_none(*_):
        return
        yield

    for module in (dead_letters, redriving):
        monkeypatch.setattr(module, "contents", find_none)
    sent = run("redrive", "0:0", "0:1", "--yes")
    assert (sent.exit_code, sent.stdout) == (1, "sent back 0 letters; 2 were gone\n")
    shown = run("show", "0:0")
    assert (shown.exit_code, shown.stderr) == (1, "no such dead letter: 0:0\n")
    assert run("export", "0:0").stderr == "exported 0 letters\n"


async def send_and(then, *told):
    await SEND(*told)
    then()


def test_a_purge_refuses_letters_that_were_never_redriven_unless_that_is_meant(run):
    planned = json.loads(run("purge", "--before", "2099-01-01", "--dry-run", "--json").stdout)
    assert planned == {"deleted": False, "letters": 4, "never_redriven": 4, "ends": {"0": 4}}
    refused = run("purge", "--before", "2099-01-01")
    assert refused.exit_code == 1
    assert "4 letters of 4 never redriven" in refused.stderr


def test_what_is_old_is_deleted_or_the_broker_cannot_and_that_is_said(buried):
    purged = contextengine("deadletters", "purge", "--before", "2099-01-01", "--yes", **on(buried))
    if buried.embedded:
        assert purged.returncode == 2
        assert "the embedded broker deletes no records" in purged.stderr
    else:
        assert purged.stdout == "deleted 4 letters, 4 of them never redriven\n"
        assert contextengine("deadletters", "list", **on(buried)).stdout == f"no dead letters in {buried.prefix}\n"
