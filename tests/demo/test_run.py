"""The demo from end to end: all of its processes, on either broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from broker_log import logs_by_session, read

from contextengine.demo.run import EXPECTED, RULES
from contextengine.demo.timing import conversations
from contextengine.rulefile import parse_rules
from contextengine.settings import load
from contextengine.testing import Call
from contextengine.topics.catalogue import catalogue

pytestmark = pytest.mark.broker


def start(*arguments: str, tmp_path: Path, **settings: str) -> subprocess.Popen[str]:
    """The demo in a process; what it leaves in the temporary folder is there to see."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CONTEXTENGINE_")} | settings
    return subprocess.Popen(
        [sys.executable, "-m", "contextengine", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ | {"TMPDIR": str(tmp_path)},
    )


def children_of(pid: int) -> list[int]:
    """The processes that `pid` has started and that still run."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,stat="], capture_output=True, text=True, check=True)
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [int(child) for child, parent, state in rows if int(parent) == pid and not state.startswith("Z")]


def is_running(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory, any_broker) -> dict:
    """What a run at four times the speed of life adds up to."""
    folder = tmp_path_factory.mktemp("demo")
    options = ["--speed", "4", "--json", "--broker", any_broker.address]
    demo = start(*options, tmp_path=folder, CONTEXTENGINE_EMBEDDED=str(any_broker.embedded))
    told, complaints = demo.communicate(timeout=90)
    assert demo.returncode == 0, told + complaints
    assert list(folder.iterdir()) == []
    return json.loads(told)


def test_all_calls_are_played_and_every_message_is_an_event(summary):
    shipped = conversations()
    assert summary["calls"] == len(shipped)
    written = sum(len(call.turns) for call in shipped)
    assert written <= summary["messages"] <= written + 1  # the silence in the script makes the model speak by itself


def test_the_visions_three_examples_and_others_fire(summary):
    assert summary["fired"].keys() >= {*EXPECTED, "booking-details", "pets-are-welcome", "steady-pace"}


def test_every_context_of_a_fired_rule_was_held_back_or_has_exactly_one_outcome(summary):
    assert sum(summary["fired"].values()) == sum(summary["injections"].values()) + sum(summary["held_back"].values())
    assert summary["held_back"].keys() == {"duplicate", "shadow"}


def test_every_delivered_context_was_in_context_when_the_next_turn_was_asked_for(summary):
    assert 0 < summary["with_next_turn"] <= summary["injections"]["delivered"]
    assert summary["in_context"] == summary["with_next_turn"]


async def test_its_sessions_read_back_from_the_topics_are_judged_to_the_same_digests(summary, any_broker):
    """The events topic is all that a decision needs: the same log and rules give the same chain of decisions."""
    settings = load(environ={}, broker=summary["broker"], embedded=any_broker.embedded, prefix=summary["prefix"])
    rules = parse_rules(RULES.read_text(), "rules.yaml")
    digests = {made.session_id: made.digest for made in await read(settings, catalogue(settings).decisions)}
    logs = await logs_by_session(settings)
    assert len(logs) == summary["calls"]
    assert {session_id: Call.replayed(log, rules).digest for session_id, log in logs.items()} == digests


def test_latency_was_measured_for_every_delivered_context(summary):
    latency = summary["event_to_provider"]
    assert latency["count"] == summary["injections"]["delivered"]
    assert 0 <= latency["p50_ms"] <= latency["p99_ms"] < 5_000


def test_nothing_that_was_sent_breaks_the_sdks_types_and_nothing_is_dead(summary):
    assert (summary["type_violations"], summary["dead_letters"], summary["problems"]) == (0, 0, [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_stops_everything_and_leaves_no_process_and_no_file(tmp_path, number):
    demo = start(tmp_path=tmp_path)
    for line in demo.stdout:
        if "said" in line:  # the calls go on
            break
    children = children_of(demo.pid)
    assert len(children) == 3
    demo.send_signal(number)
    _, complaints = demo.communicate(timeout=30)
    assert (demo.returncode, complaints) == (130, "")
    assert [pid for pid in children if is_running(pid)] == []
    assert list(tmp_path.iterdir()) == []


def test_a_killed_demo_leaves_no_process_either(tmp_path):
    demo = start(tmp_path=tmp_path)
    for line in demo.stdout:
        if "said" in line:
            break
    children = children_of(demo.pid)
    demo.kill()
    demo.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_process_that_dies_ends_the_demo_with_1_and_shows_its_log(tmp_path):
    demo = start(tmp_path=tmp_path)
    for line in demo.stdout:
        if "said" in line:
            break
    processes = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    worker = next(
        int(row.split()[0])
        for row in processes.splitlines()
        if int(row.split()[1]) == demo.pid and "contextengine worker" in row
    )
    os.kill(worker, signal.SIGKILL)
    _, complaints = demo.communicate(timeout=30)
    assert demo.returncode == 1
    assert "error: worker ended with status -9; the end of" in complaints
    assert [log.name for log in tmp_path.glob("*/worker.log")] == ["worker.log"]
