"""`contextengine rules` as a person and a script use it: test, schema, and what check finds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from textwrap import dedent

import pytest
from test_cli import contextengine
from typer.testing import CliRunner

from contextengine.cli import app
from contextengine.demo.run import RULES
from contextengine.rules_schema import built_in

PETS = """
rules:
  - {name: pets, when: {keyword: [dog, cat]}, inject: {strategy: {tone: kind}}}
"""


@pytest.fixture
def folder(tmp_path):
    """Rules with scenarios beside them, one of which fails."""
    (tmp_path / "pets.yaml").write_text(PETS)
    (tmp_path / "pets.test.yaml").write_text(
        dedent("""\
        scenarios:
          - name: a dog
            say: [{user: my dog}, {expect: pets}]
          - name: a horse
            say:
              - user: my cat is no horse
              - expect: {rule: pets, text: horse}
              - user: a horse
              - expect: nothing
        """)
    )
    return tmp_path


@pytest.mark.parametrize("command", ["test", "schema", "check"])
def test_every_command_has_help_with_an_example_and_its_exit_codes(command):
    shown = CliRunner().invoke(app, ["rules", command, "--help"], prog_name="contextengine")
    assert shown.exit_code == 0
    assert re.search(rf"Example:\s[^╭]*contextengine rules {command}", shown.output)
    assert "Exit codes:" in shown.output


def test_scenarios_that_hold_leave_0():
    tested = contextengine("rules", "test", str(RULES.with_name("rules.test.yaml")))
    assert tested.returncode == 0, tested.stdout
    assert "passed" in tested.stdout
    assert "7 scenarios, 0 failed" in tested.stdout


def test_a_scenario_that_fails_leaves_1_and_tells_where_and_what_happened_instead(folder):
    tested = contextengine("rules", "test", str(folder / "pets.test.yaml"))
    assert tested.returncode == 1
    file = folder / "pets.test.yaml"
    assert tested.stdout.splitlines() == [
        f"passed  {file}: a dog",
        f"FAILED  {file}: a horse",
        f"  {file}:7:9: expected pets to go in with 'horse'; it went in",
        "    00:01.0 MessageCompleted: pets went in: [Strategy] / - tone: kind",
        "2 scenarios, 1 failed",
    ]


def test_the_outcome_is_told_to_a_script_as_json(folder):
    tested = contextengine("rules", "test", str(folder / "pets.test.yaml"), "--json")
    assert tested.returncode == 1
    dog, horse = json.loads(tested.stdout)
    assert (dog["scenario"], dog["passed"], horse["passed"]) == ("a dog", True, False)
    assert [bool(step["problems"]) for step in horse["steps"]] == [True, False]
    assert horse["steps"][0]["happened"][0] | {"text": ""} == {
        "elapsed_ms": 1_000,
        "event": "MessageCompleted",
        "rule": "pets",
        "became": "went in",
        "reason": "",
        "text": "",
    }


def test_mistakes_in_any_of_the_files_leave_2_with_their_places(folder):
    (folder / "more.test.yaml").write_text("scenarios: [{name: s, say: [{expect: pest}]}]")
    (folder / "bad.yaml").write_text("rules: 7")
    (folder / "bad.test.yaml").write_text("scenarios: []")
    more, bad = str(folder / "more.test.yaml"), str(folder / "bad.test.yaml")
    failed = contextengine("rules", "test", more, str(folder / "pets.test.yaml"), "--rules", str(folder / "pets.yaml"))
    assert failed.returncode == 2
    assert "more.test.yaml:1:38: there is no rule `pest`; did you mean `pets`?" in failed.stderr
    assert contextengine("rules", "test", bad).returncode == 2
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(("name", "told"), [("pets.yaml", "ends in no .test.yaml"), ("gone.test.yaml", "there is no")])
def test_scenarios_whose_rules_are_not_known_leave_2(folder, name, told):
    (folder / "gone.test.yaml").write_text("scenarios: []")
    failed = contextengine("rules", "test", str(folder / name))
    assert failed.returncode == 2
    assert told in re.sub(r"[\s│]+", " ", failed.stderr)


def test_what_rules_cannot_mean_is_a_warning_with_its_place_and_leaves_1_only_when_strict(folder):
    (folder / "more.yaml").write_text(PETS.replace("pets", "dogs").replace("kind", "strict"))
    checked = contextengine("rules", "check", str(folder))
    assert checked.returncode == 0
    assert "2 rules" in checked.stdout
    place = f"{folder}/pets.yaml:3:5"
    told = "its `tone` is 'kind', and that of dogs, which goes in too, is 'strict'"
    assert checked.stderr == f"{place}: contradiction: pets: {told}\n"
    assert contextengine("rules", "check", str(folder), "--strict").returncode == 1
    assert contextengine("rules", "check", str(RULES), "--strict").returncode == 0
    warned = json.loads(contextengine("rules", "check", str(folder), "--json").stdout)["warnings"]
    assert warned == [{"place": place, "rule": "pets", "kind": "contradiction", "told": told}]


def test_the_schema_is_written_with_all_installed_strategies():
    schema = json.loads(contextengine("rules", "schema").stdout)
    assert set(schema["definitions"]["strategy"]["properties"]) >= set(built_in())
    assert Path("rules.schema.json").exists() is False
