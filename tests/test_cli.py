"""The command line, as a person and a script use it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import msgspec
import pytest
from an_attempt import an_attempt
from typer.testing import CliRunner

from contextengine import __version__
from contextengine.adapters.openai_realtime import OpenAIRealtime
from contextengine.broker import free_port
from contextengine.cli import app
from contextengine.cli.tail import line
from contextengine.demo.run import RULES
from contextengine.schemas.codec import encode
from contextengine.schemas.decision import Acceptance, DecisionMade, Firing, Suppression
from contextengine.schemas.injection import Verdict
from contextengine.settings import Settings
from contextengine.topics.tail import Seen

COMMANDS = [
    "",
    "demo",
    "worker",
    "deliver",
    "topics apply",
    "topics check",
    "topics list",
    "publish",
    "switch off",
    "switch on",
    "switch list",
    "why",
    "rules test",
    "rules schema",
    "tail",
    "rules check",
    "rules try",
    "record",
    "replay",
    "audit",
    "simulate",
    "deadletters list",
    "deadletters show",
    "deadletters redrive",
    "deadletters export",
    "deadletters purge",
]
NO_BROKER = "127.0.0.1:1"


def environ(**settings: object) -> dict[str, str]:
    """The environment of these tests, with these settings and no others."""
    ours = {f"CONTEXTENGINE_{name.upper()}": str(value) for name, value in settings.items()}
    return {name: value for name, value in os.environ.items() if not name.startswith("CONTEXTENGINE_")} | ours


def contextengine(*arguments: str, typed: str | None = None, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "contextengine", *arguments],
        input=typed if typed is not None else "",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environ(**settings),
    )


def on(settings: Settings) -> dict[str, object]:
    """What a command must be told to work with these settings."""
    return {name: getattr(settings, name) for name in ("broker", "embedded", "partitions", "prefix")}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_its_exit_codes(command):
    shown = CliRunner().invoke(app, [*command.split(), "--help"], prog_name="contextengine")
    assert shown.exit_code == 0
    assert re.search(rf"Example:\s[^╭]*contextengine {command}", shown.output)
    assert "Exit codes:" in shown.output


def test_help_loads_neither_faust_nor_a_client_of_the_broker_or_a_provider():
    code = (
        "import sys\nfrom contextengine.cli import app\nfrom typer.testing import CliRunner\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "print([name for name in ('faust', 'aiokafka', 'openai', 'pydantic') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


def test_the_version_is_the_packages():
    assert contextengine("--version").stdout == f"contextengine {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["tail"],
        ["tail", "events", "--limit", "0"],
        ["publish", "--say", "hello"],
        ["publish", "--session", "s1", "--field", "a=b"],
        ["rules", "check", "no-such-file.yaml"],
        ["tail", "no-such-topic"],
        ["publish", "--session", "s1", "--say", "hello", "--speaker", "robot"],
        ["simulate", "nobody"],
    ],
)
def test_wrong_usage_leaves_2(arguments):
    assert contextengine(*arguments).returncode == 2


def test_an_unknown_setting_leaves_2_and_is_named_in_one_line():
    failed = contextengine("topics", "list", partitons=3)
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert "CONTEXTENGINE_PARTITONS" in failed.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["topics", "check"],
        ["topics", "apply"],
        ["tail", "events"],
        ["publish", "--session", "s1", "--say", "hello"],
        ["worker", "--port", "0"],
        ["deliver", "--port", "0"],
        ["demo"],
        ["deadletters", "list"],
    ],
    ids=lambda command: command[0],
)
def test_without_a_broker_a_command_leaves_3_and_says_which_address_does_not_answer(command):
    failed = contextengine(*command, "--broker", NO_BROKER, openai_api_key="k")
    assert failed.returncode == 3
    assert NO_BROKER in failed.stderr
    assert "Traceback" not in failed.stderr


def test_debug_shows_where_an_error_comes_from_wherever_it_stands():
    for arguments in (["--debug", "tail", "x"], ["tail", "x", "--debug"]):
        assert "Traceback" in contextengine(*arguments).stderr


def test_rules_that_say_what_can_be_meant_are_listed():
    checked = contextengine("rules", "check", str(RULES))
    assert checked.returncode == 0
    assert re.search(r"stressed-about-startup +All +important +turn_boundary", checked.stdout)
    assert re.search(r"upset-customer .*on trial", checked.stdout)


def test_every_mistake_in_a_rules_file_is_told_with_its_place(tmp_path):
    file = tmp_path / "rules.yaml"
    file.write_text("rules:\n  - name: a\n    when:\n      keywrd: [x]\n    inject:\n      strategy: {tone: calm}\n")
    checked = contextengine("rules", "check", str(file))
    assert checked.returncode == 1
    assert f"{file}:4:7" in checked.stderr
    assert "did you mean `keyword`?" in checked.stderr


def test_rules_are_told_to_a_script_as_json(tmp_path):
    told = json.loads(contextengine("rules", "check", str(RULES), "--json").stdout)
    assert {rule["name"] for rule in told["rules"]} >= {"stressed-about-startup", "upset-customer"}
    (tmp_path / "bad.yaml").write_text("rules: 7")
    failed = contextengine("rules", "check", str(tmp_path / "bad.yaml"), "--json")
    assert (failed.returncode, len(json.loads(failed.stdout)["problems"])) == (1, 1)


def test_the_names_of_topics_are_never_cut():
    """Eighty columns are too few for all of them, and half a name names nothing."""
    told = contextengine("topics", "list", prefix="a-rather-long-prefix-of-an-installation").stdout
    assert "a-rather-long-prefix-of-an-installation.injections.retry.1s " in told


def test_topics_are_listed_without_a_broker():
    listed = json.loads(contextengine("topics", "list", "--json", prefix="x", partitions=7).stdout)
    events = next(topic for topic in listed if topic["name"] == "x.events")
    assert (events["partitions"], events["cleanup"]) == (7, "delete")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"type": "MessageComplete", "session_id": "s"}', "did you mean MessageCompleted?"),
        ('{"type": "MessageCompleted", "session_id": "s", "speker": "user"}', "did you mean speaker?"),
        ('{"type": "MessageCompleted", "session_id": "s", "speaker": "user"}', "missing required field `text`"),
        ('{"type": "MessageCompleted", "speaker": "user", "text": "a"}', "no session_id"),
        ('{"type": "SessionStarted", "session_id": "s", "provider": 7, "model": "m"}', "Expected `str`, got `int`"),
        ("[]", 'no object with a "type"'),
        ("{", "Expecting"),
    ],
)
def test_nothing_is_published_from_a_file_with_a_mistake_and_its_line_is_told(tmp_path, line, problem):
    file = tmp_path / "events.jsonl"
    file.write_text('{"type": "MessageCompleted", "session_id": "s", "speaker": "user", "text": "a"}\n\n' + line)
    failed = contextengine("publish", "--file", str(file), broker=NO_BROKER)
    assert failed.returncode == 1
    assert f"{file}:3: " in failed.stderr
    assert problem in failed.stderr


@pytest.mark.parametrize("content", [b"\x00\xff" * 40 + b"\n", b"\xff\n" * 100], ids=["a line", "many lines"])
def test_a_file_that_is_no_text_is_a_mistake_and_no_accident(tmp_path, content):
    (tmp_path / "events").write_bytes(content)
    failed = contextengine("publish", "--file", str(tmp_path / "events"), broker=NO_BROKER)
    assert failed.returncode == 1
    assert f"{tmp_path / 'events'}:1: " in failed.stderr
    assert "Traceback" not in failed.stderr
    assert failed.stderr.count("\n") <= 21


def test_what_says_nothing_or_too_much_is_not_published():
    said = {"type": "MessageCompleted", "session_id": "s1", "speaker": "user", "text": "ä" * 200_000}
    for arguments, typed, problem in (
        (["--session", "s1", "--say", " "], None, "the text is empty"),
        (["--file", "-"], json.dumps(said), "too large, 400"),
    ):
        failed = contextengine("publish", *arguments, typed=typed, broker=NO_BROKER)
        assert failed.returncode == 1
        assert problem in failed.stderr


@pytest.fixture
def applied(settings: Settings) -> Iterator[dict[str, object]]:
    """Topics of their own, made by the command."""
    made = contextengine("topics", "apply", **on(settings))
    assert made.returncode == 0, made.stderr
    return on(settings)


@pytest.mark.broker
def test_topics_that_are_missing_leave_1_until_they_are_applied(settings):
    assert contextengine("topics", "check", **on(settings)).returncode == 1
    made = contextengine("topics", "apply", "--json", **on(settings))
    assert f"{settings.prefix}.events" in json.loads(made.stdout)["created"]
    assert contextengine("topics", "check", **on(settings)).returncode == 0


@pytest.mark.broker
def test_what_is_published_is_seen_by_tail(applied):
    start = ["--type", "SessionStarted", "--field", "provider=openai_realtime", "--field", "model=m"]
    start += ["--field", "time_scale=10", "--field", "facts.name=Ada"]
    assert contextengine("publish", "--session", "s1", *start, **applied).returncode == 0
    assert contextengine("publish", "--session", "s1", "--say", "hello", "--say", "you", **applied).returncode == 0
    contextengine("publish", "--session", "s2", "--say", "else", **applied)
    told = contextengine("tail", "events", "--to-end", "--session", "s1", "--json", **applied).stdout.splitlines()
    events = [json.loads(line) for line in told]
    assert [event["type"] for event in events] == ["SessionStarted", "MessageCompleted", "MessageCompleted"]
    assert events[0]["value"]["time_scale"] == 10.0
    assert events[0]["value"]["facts"] == {"name": "Ada"}
    assert [event["value"]["text"] for event in events[1:]] == ["hello", "you"]
    limited = contextengine("tail", "events", "--from-start", "--session", "s1", "--limit", "1", **applied)
    assert limited.stdout.count("\n") == 1
    assert "SessionStarted" in limited.stdout


@pytest.mark.broker
def test_what_is_typed_is_published_a_line_each(applied):
    assert "published 2 events" in contextengine("publish", "--session", "s1", typed="one\n\ntwo", **applied).stdout
    told = contextengine("tail", "events", "--to-end", "--json", **applied).stdout.splitlines()
    assert [json.loads(line)["value"]["text"] for line in told] == ["one", "two"]


@pytest.mark.broker
def test_what_tail_wrote_can_be_published_again(applied):
    contextengine("publish", "--session", "s1", "--say", "once", **applied)
    told = contextengine("tail", "events", "--to-end", "--json", **applied).stdout
    again = contextengine("publish", "--file", "-", "--json", typed=told, **applied)
    assert json.loads(again.stdout)["published"] == 1
    lines = contextengine("tail", "events", "--to-end", "--json", **applied).stdout.splitlines()
    first, second = (json.loads(line)["value"] for line in lines)
    assert first["text"] == second["text"]
    assert first["at_ms"] == second["at_ms"]


@pytest.mark.broker
def test_what_is_left_out_of_a_file_is_counted(applied):
    tick = '{"type": "Tick", "session_id": "s1", "timer": "t", "due_ms": 1}\n'
    said = '{"type": "MessageCompleted", "session_id": "s1", "speaker": "user", "text": "a"}'
    told = contextengine("publish", "--file", "-", typed=tick * 3 + said, **applied).stdout
    assert told.startswith("published 1 event to ")
    assert "; 3 of the engine's own" in told


@pytest.mark.broker
def test_what_cannot_be_said_is_told_and_what_follows_is_published(applied):
    published = contextengine("publish", "--session", "s1", typed="x" * 300_000 + "\nhello\n", **applied)
    assert "published 1 event" in published.stdout
    assert "too large" in published.stderr


def test_a_decision_is_told_a_fact_a_line_with_evidence_and_reason():
    made = DecisionMade(
        session_id="s1",
        position="v/1/7",
        event="MessageCompleted",
        now_ms=1,
        elapsed_ms=62_000,
        rules_hash="",
        digest="",
        fired=[Firing(rule="pets", evidence={"keywords": "dog"}), Firing(rule="sad", evidence={"emotion": "sadness"})],
        accepted=[
            Acceptance(rule="pets", injection_id="i1", placement="silence", text="[Strategy]\n- small talk: yes")
        ],
        suppressed=[Suppression(rule="sad", filter="shadow", reason="on trial")],
        released=["i0"],
    )
    told = line(Seen("x.decisions", 0, 1, 1_700_000_000_123, "s1", {}, encode(made))).splitlines()
    assert [fact.partition("1:02 MessageCompleted  ")[2] for fact in told] == [
        "pets fired on keywords dog; goes in at silence as i1: [Strategy] - small talk: yes",
        "sad fired on emotion sadness; held back by shadow: on trial",
        "sends i0",
    ]
    assert all(fact.startswith("22:13:20.123 s1 ") for fact in told)
    nothing = msgspec.structs.replace(made, fired=[], accepted=[], suppressed=[], released=[], event="AttemptReported")
    assert "has ended or waits" in line(Seen("x.decisions", 0, 1, 1, "s1", {}, encode(nothing)))


async def test_a_simulated_provider_has_every_call_and_shows_what_is_put_into_it():
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "contextengine", "simulate", "openai_realtime", "--port", "0"),
        stdout=asyncio.subprocess.PIPE,
        env=environ() | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        await process.stdout.readline()
        exported = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
        adapter = OpenAIRealtime("simulated", re.search(r"BASE_URL=(\S+)", exported)[1])
        attempt = an_attempt(provider="openai_realtime")
        verdict = await adapter.send(attempt, adapter.render(attempt), 10.0)
        assert verdict.verdict is Verdict.DELIVERED
        shown = b"".join([await asyncio.wait_for(process.stdout.readline(), 10) for _ in range(4)]).decode()
        assert shown.splitlines() == ["c: joined", "c: system item i1", "  [Information]", "  - a: b"]
        await adapter.close()
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 10) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.broker
def test_every_topic_can_be_looked_at(applied):
    for name in ("rules", "injections", "attempts", "results", "decisions", "dead", "retry_1s", "sessions_changelog"):
        assert contextengine("tail", name, "--to-end", **applied).returncode == 0
    assert "log-id" in contextengine("tail", "rules", "--to-end", **applied).stdout


def answers_200(url: str) -> bool:
    try:
        with urlopen(url, timeout=1) as answer:  # noqa: S310  ours, on loopback
            return answer.status == 200
    except (URLError, OSError):
        return False


@pytest.mark.broker
@pytest.mark.parametrize(
    ("command", "metric"),
    [
        (["worker", "--rules", str(RULES)], "contextengine_decide_duration_seconds"),
        (["deliver"], "contextengine_event_to_delivery_seconds"),
    ],
    ids=["worker", "deliver"],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_process_says_when_it_is_ready_and_stops_in_order(applied, tmp_path: Path, command, metric, number):
    url = f"http://127.0.0.1:{(port := free_port(0))}"
    arguments = [sys.executable, "-m", "contextengine", *command, "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        settings = environ(**applied, openai_api_key="k", data_dir=tmp_path)
        process = subprocess.Popen(arguments, stdout=log, stderr=log, env=settings)
    try:
        deadline = time.monotonic() + 30
        while not answers_200(f"{url}/health/ready"):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        assert answers_200(f"{url}/health/live")
        with urlopen(f"{url}/metrics", timeout=5) as metrics:  # noqa: S310  ours, on loopback
            assert metric in metrics.read().decode()
        process.send_signal(number)
        assert process.wait(20) == 0, (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.broker
def test_a_worker_refuses_rules_with_a_mistake_before_anything_starts(tmp_path):
    file = tmp_path / "rules.yaml"
    file.write_text("rules: 7")
    failed = contextengine("worker", "--rules", str(file), broker=NO_BROKER)
    assert failed.returncode == 2
    assert f"{file}:1:8" in failed.stderr
