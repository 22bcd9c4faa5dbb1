"""`contextengine record`, `replay` and `audit`, as a person and a script use them."""

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


@pytest.fixture(scope="module")
def held(broker: str) -> Settings:
    """An installation in which calls were held."""
    from held_calls import hold  # noqa: PLC0415  found once its folder is

    return hold(broker, embedded=True)


@pytest.fixture(scope="module")
def recorded(held: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recording of one session."""
    file = tmp_path_factory.mktemp("recordings") / "ada.jsonl"
    made = contextengine("record", "--session", "ada", "--out", str(file), **on(held))
    assert made.returncode == 0, made.stderr
    assert re.search(r"ada\.jsonl: 1 sessions, \d+ records, \d+ outputs \([\d,]+ bytes\)", made.stdout)
    return file


@pytest.mark.parametrize("command", ["record", "replay", "audit"])
def test_every_command_has_help_with_an_example_and_its_exit_codes(command):
    shown = CliRunner().invoke(app, [command, "--help"], prog_name="contextengine")
    assert shown.exit_code == 0
    assert re.search(rf"Example:\s[^╭]*contextengine {command}", shown.output)
    assert "Exit codes:" in shown.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["record"],
        ["record", "--out", "no-such-folder/file.jsonl"],
        ["record", "--out", "x.jsonl", "--session", "s", "--partition", "1"],
        ["record", "--out", "x.jsonl", "--from", "yesterday"],
        ["audit", "--to", "12 o'clock"],
        ["replay", "no-such-file.jsonl"],
        ["replay", "pyproject.toml"],
        ["replay", "docs"],
        ["replay", "docs", "--accept", "--publish"],
        ["replay", "docs", "--publish", "--speed", "1000"],
    ],
    ids=" ".join,
)
def test_wrong_usage_leaves_2_without_a_traceback(arguments):
    failed = contextengine(*arguments)
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    "command", [["record", "--out", "never-made.jsonl"], ["audit"]], ids=lambda command: command[0]
)
def test_without_a_broker_a_command_leaves_3(command):
    failed = contextengine(*command, broker=NO_BROKER)
    assert failed.returncode == 3
    assert NO_BROKER in failed.stderr
    assert not Path("never-made.jsonl").exists()


@pytest.mark.broker
def test_a_session_is_recorded_and_replayed_and_the_same_follows(recorded):
    same = contextengine("replay", str(recorded))
    assert (same.returncode, same.stderr) == (0, "")
    assert "the same; 1 sessions" in same.stdout
    [told] = json.loads(contextengine("replay", str(recorded), "--json").stdout)
    assert (told["divergence"], told["injections"], told["outcomes"]) == (None, 6, 6)


@pytest.mark.broker
def test_a_divergence_leaves_1_and_is_told_with_before_and_after_until_it_is_accepted(recorded, tmp_path):
    file = tmp_path / "ada.jsonl"
    file.write_text(recorded.read_text().replace("hello for the {{", "hi for the {{", 1))
    differs = contextengine("replay", str(tmp_path))
    assert differs.returncode == 1
    assert "of rule greet differs in accepted[0].text" in differs.stderr
    assert re.search(r"recorded: .*hello for the 1th time", differs.stderr)
    assert re.search(r"replayed: .*hi for the 1th time", differs.stderr)
    [told] = json.loads(contextengine("replay", str(file), "--json").stdout)
    assert told["divergence"]["position"] == "voice/1/4"
    assert contextengine("replay", str(file), "--accept").stdout.endswith("1 of 1 recordings rewritten\n")
    assert contextengine("replay", str(file)).returncode == 0
    assert contextengine("replay", str(file), "--accept").stdout == "0 of 1 recordings rewritten\n"


@pytest.mark.broker
def test_a_recorded_conversation_is_published_under_another_name(held, recorded):
    done = contextengine("replay", str(recorded), "--publish", "--speed", "0", "--as", "again-", "--json", **on(held))
    told = json.loads(done.stdout)
    assert (told["sessions"], told["without_start"]) == (["again-ada"], [])
    assert told["events"] == 1 + 3 * 7 + 1


@pytest.mark.broker
def test_an_audit_of_what_went_well_leaves_0_and_prints_what_it_counted(held):
    done = contextengine("audit", "--session", "bob", **on(held))
    assert done.returncode == 0
    assert re.search(r"outcomes +6\n", done.stdout)
    assert done.stdout.endswith("nothing is missing, nothing differs\n")


@pytest.mark.broker
async def test_an_audit_that_finds_something_leaves_1_and_lists_it(held):
    import uuid  # noqa: PLC0415

    from broker_log import write  # noqa: PLC0415

    from contextengine.schemas.injection import InjectionResult, Outcome  # noqa: PLC0415
    from contextengine.topics.catalogue import catalogue  # noqa: PLC0415

    invented = InjectionResult(
        session_id="eve",
        injection_id=uuid.uuid4().hex,
        rule="greet",
        outcome=Outcome.DELIVERED,
        provider="fake",
        criticality="helpful",
        attempts=1,
        trigger_ms=0,
        decided_ms=0,
    )
    await write(held, catalogue(held).results, invented)
    shown = contextengine("audit", "--session", "eve", **on(held))
    assert shown.returncode == 1
    assert f"unexpected: outcome {invented.injection_id} of session eve" in shown.stderr
    [finding] = json.loads(contextengine("audit", "--session", "eve", "--json", **on(held)).stdout)["findings"]
    assert (finding["problem"], finding["what"], finding["name"]) == ("unexpected", "outcome", invented.injection_id)
