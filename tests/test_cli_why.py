"""`contextengine why`, as a person and a script use it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from test_cli import NO_BROKER, contextengine, on
from typer.testing import CliRunner

from contextengine.cli import app
from contextengine.settings import Settings

sys.path += [str(Path(__file__).parent / "adapters"), str(Path(__file__).parent / "replay")]
RECORDING = Path(__file__).parent / "sessions" / "rich-multiwoz-mul0302.jsonl"


@pytest.fixture(scope="module")
def held(broker: str) -> Settings:
    """An installation in which calls were held."""
    from held_calls import hold  # noqa: PLC0415  found once its folder is

    return hold(broker, embedded=True)


def lines(*arguments: str) -> list[str]:
    """What the command prints about the recording."""
    done = CliRunner().invoke(app, ["why", "multiwoz-mul0302", "--recording", str(RECORDING), *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def test_it_has_help_with_an_example_and_its_exit_codes():
    shown = CliRunner().invoke(app, ["why", "--help"], prog_name="contextengine")
    assert shown.exit_code == 0
    assert re.search(r"Example:\s[^╭]*contextengine why", shown.output)
    assert "Exit codes:" in shown.output


def test_it_prints_a_line_for_each_rule_that_fired_with_time_event_rule_and_answer():
    *told, last = lines()
    assert last == f"multiwoz-mul0302: {len(told)} answers, 130 events"
    [said] = [line for line in told if " recap " in line and line.startswith("00:32.2")]
    assert re.fullmatch(
        r"00:32\.2  MessageCompleted 27 'There are 9 trains that arrive by 14:00…' +recap +"
        r"fired on messages 4; injected [0-9a-f]{32} at turn_boundary, sent at 00:32\.2 on MessageCompleted, delivered",
        said,
    )
    assert not any("said no" in line or "not asked" in line for line in told)


def test_with_an_event_it_has_a_line_for_each_rule():
    *told, _ = lines("--event", "6")
    assert len(told) == 14
    assert any(line.endswith("recap              said no: message 1, next at 4") for line in told)
    *told, _ = lines("--event", "tick/rule:pause/1795531348558")
    assert len(told) == 14
    assert "fired on quiet 0.9 s" in told[0]


def test_with_a_rule_it_leaves_out_the_kinds_of_events_that_the_rule_does_not_listen_to_and_counts_them():
    *told, last = lines("--rule", "warmth")
    assert len(told) == 14
    assert all("not asked: the message has none of its phrases" in line for line in told)
    assert last.endswith("14 answers, 130 events, 116 of them of kinds that the rule does not listen to")


def test_a_script_gets_everything_in_json():
    answers = json.loads("\n".join(lines("--rule", "warmth", "--json")))["answers"]
    assert len(answers) == 130
    [one] = json.loads("\n".join(lines("--rule", "recap", "--event", "6", "--json")))["answers"]
    assert (one["on"]["seq"], one["kind"], one["reason"]) == (6, "said no", "message 1, next at 4")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["mul0302", "--recording", str(RECORDING)], "did you mean 'multiwoz-mul0302'?"),
        (["multiwoz-mul0302", "--recording", str(RECORDING), "--event", "777"], "has no event 777; it has 0 to 94"),
        (["multiwoz-mul0302", "--recording", str(RECORDING), "--rule", "paus"], "did you mean 'pause'?"),
        (["multiwoz-mul0302", "--recording", "no-such-file.jsonl"], "no-such-file.jsonl"),
        ([], "SESSION"),
    ],
)
def test_what_is_not_there_leaves_2_without_a_traceback(arguments, told):
    failed = contextengine("why", *arguments)
    assert failed.returncode == 2
    assert told in failed.stderr
    assert "Traceback" not in failed.stderr


def test_without_a_broker_it_leaves_3():
    failed = contextengine("why", "s1", broker=NO_BROKER)
    assert failed.returncode == 3
    assert NO_BROKER in failed.stderr


@pytest.mark.broker
def test_a_session_on_a_broker_is_explained_from_its_events(held):
    done = contextengine("why", "ada", **on(held))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"doomed +fired on keywords doom; injected .*, dead after 2 attempts", done.stdout)
    assert re.search(r"shadow +fired on keywords hello; held back by shadow: on trial", done.stdout)
    told = json.loads(contextengine("why", "ada", "--event", "4", "--rule", "later", "--json", **on(held)).stdout)
    assert [one["kind"] for one in told["answers"]] == ["not asked"]
    unknown = contextengine("why", "nobody", **on(held))
    assert unknown.returncode == 2
    assert "session 'nobody' has no event" in unknown.stderr
