"""Scenarios: what is expected of a short conversation, held in memory, and what is told where it comes otherwise."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent, indent

import pytest

import contextengine
from contextengine.errors import RulesInvalid
from contextengine.rulefile import parse_rules
from contextengine.testing.scenarios import judge, parse_scenarios

DEMO = Path(contextengine.__file__).parent / "demo"
RULES = parse_rules(
    dedent("""
    rules:
      - {name: greeting, when: {keyword: hello}, inject: {strategy: {tone: "warm, {{ facts.name }}"}}, place: silence}
      - {name: table, when: {keyword: table}, inject: {information: {tables: by the window}}}
      - {name: news, when: {every_messages: 1}, inject: {information: {said: "{{ session.messages }}"}}, shadow: true}
      - {name: tools, when: {keyword: tool}, inject: {information: {tool: slow}}, place: turn_boundary, ttl: 5 s}
    """),
    "rules.yaml",
)


def scenarios(say, start="{}"):
    """What is judged of the only scenario, with these steps."""
    text = f"scenarios:\n  - name: s\n    start: {start}\n    say:\n{indent(dedent(say).lstrip(), ' ' * 6)}"
    [scenario] = parse_scenarios(text, "s.yaml", RULES)
    return judge(scenario, RULES)


def problems(say, start="{}"):
    """What is wrong by the expectations in these steps."""
    return [problem for judgement in scenarios(say, start) for problem in judgement.problems]


def mistakes(text):
    """What is wrong with a file of scenarios."""
    with pytest.raises(RulesInvalid) as refusal:
        parse_scenarios(dedent(text), "s.yaml", RULES)
    return refusal.value.problems


def test_the_demos_rules_do_what_its_scenarios_expect():
    rules = parse_rules((DEMO / "rules.yaml").read_text(), "rules.yaml")
    told = parse_scenarios((DEMO / "rules.test.yaml").read_text(), "rules.test.yaml", rules)
    assert [problem for scenario in told for each in judge(scenario, rules) for problem in each.problems] == []
    assert len(told) == 7


def test_what_goes_in_as_expected_is_no_problem():
    assert problems("""
        - user: hello, a table please
        - expect: table
        - wait: 1 s
        - expect: {rule: greeting, text: "warm, Ada"}
        - assistant: By the window?
        - wait: 10 s
        - expect: nothing
    """, "{facts: {name: Ada}, user_id: ada}") == []  # fmt: skip


def test_an_expectation_judges_only_what_has_happened_since_the_one_before():
    assert problems("""
        - user: a table
        - expect: table
        - expect: {rule: news, suppressed: shadow}
        - wait: 1 s
        - expect: table
    """) == ["s.yaml:9:9: expected table to go in; it did not fire"]


def test_whatever_goes_in_must_be_expected_once_for_each_time():
    assert problems("""
        - user: a table
        - expect: nothing
        - wait: 6 min
        - user: a table
        - wait: 6 min
        - user: a table
        - expect: table
    """) == [
        "s.yaml:6:9: table went in, and was not expected",
        "s.yaml:11:9: table went in, and was not expected",
    ]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_expectations_the_particular_one_is_met_by_what_only_it_wants(order):
    said = ["- expect: table", '- expect: {rule: table, text: "tables: by the"}']
    assert problems("- user: a table\n- wait: 6 min\n- user: a table\n" + "\n".join(said[each] for each in order)) == []


@pytest.mark.parametrize(
    ("said", "expected", "told"),
    [
        ("table", "{rule: table, text: garden}", "expected table to go in with 'garden'; it went in"),
        ("window", "table", "expected table to go in; it did not fire"),
        (
            "hello",
            "greeting",
            "expected greeting to go in; it was held back by template: template 'warm, {{ facts.name }}': UndefinedErr",
        ),
        ("table", "{rule: table, suppressed: duplicate}", "expected table to be held back by duplicate; it went in"),
        (
            "news",
            "{rule: news, suppressed: duplicate}",
            "expected news to be held back by duplicate; it was held back by shadow: on trial: would have injected",
        ),
    ],
)
def test_a_problem_tells_the_place_what_was_expected_and_what_became_of_it_instead(said, expected, told):
    assert problems(f"- user: {said}\n- expect: {expected}\n")[0].startswith(f"s.yaml:6:9: {told}")


def test_what_still_waits_or_has_ended_unseen_is_told_as_such():
    waiting = """
        - user_muted:
        - turn_started: {speaker: user}
        - message_completed: {speaker: user, text: the tool}
        - expect: {rule: tools, text: slow}
        - expect: {rule: news, suppressed: shadow}
        - wait: 1 s
        - expect: tools
        - wait: 6 s
        - expect: tools
    """
    assert problems(waiting) == [
        "s.yaml:8:9: expected tools to go in with 'slow'; it waits for turn_boundary",
        "s.yaml:11:9: expected tools to go in; it still waits for turn_boundary",
        "s.yaml:13:9: expected tools to go in; it ended expired: its moment did not come within its life",
    ]


def test_all_that_happened_is_told_with_its_time_and_event():
    [judged] = scenarios("- wait: 2 s\n- user: hello table\n- expect: nothing\n", "{facts: {name: Ada}}")
    assert [(each.elapsed_ms, each.event, each.rule, each.became) for each in judged.happened] == [
        (3_000, "MessageCompleted", "news", "was held back by shadow"),
        (3_000, "MessageCompleted", "greeting", "waits for silence"),
        (3_000, "MessageCompleted", "table", "went in"),
    ]
    assert judged.happened[1].text == "[Strategy]\n- tone: warm, Ada"
    assert judged.place == "s.yaml:7:9"


def test_any_event_is_a_step_and_what_the_call_knows_need_not_be_said():
    assert (
        problems("""
        - tool_call_started: {tool: maps}
        - tool_call_ended: {tool: maps, failed: true}
        - generation_started: {}
        - response_started: {response_id: r}
        - response_interrupted: {response_id: r, heard: half, played: 300 ms}
        - emotion_shifted: {speaker: user, emotion: joy, intensity: 0.5}
        - user_unmuted:
        - session_ended:
        - user: a table
        - expect: {rule: table, suppressed: route}
    """)
        == []
    )


def test_in_a_chat_a_message_is_just_there():
    [judged] = scenarios("- user: table\n- expect: table\n", "{modality: text}")
    assert judged.problems == []
    assert {each.elapsed_ms for each in judged.happened} == {0}


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        ("usr: hello", "7:9: a step knows no `usr`; did you mean `user`?"),
        ("wait: 10", "7:15: `wait` is '10', expected a duration such as 500 ms, 10 s, 30 min or 1 h, at most a year"),
        ("user: [hello]", "7:15: `user` is a list, expected text"),
        ("user_muted", "7:9: a step is 'user_muted', expected one pair such as `user: hello` or `expect: nothing`"),
        ("turn_started: {}", "7:23: `turn_started` lacks `speaker`"),
        ("turn_started: {speaker: user, at: 3 s}", "7:39: `turn_started` knows no `at`; expected one of speaker"),
        ("emotion_shifted: {speaker: a, emotion: joy, intensity: high}",
         "7:64: `intensity` is 'high', expected a number up to a billion"),
        ("expect: tabel", "7:17: there is no rule `tabel`; did you mean `table`?"),
        ("expect: {rule: none}", "7:17: there is no rule `none`; expected one of greeting, table, news, tools"),
        ("expect: {text: a}", "7:17: `expect` lacks `rule`"),
        ("expect: [table]", "7:17: `expect` is a list, expected `name: value` pairs"),
        ("expect: {rule: table, text: a, suppressed: ttl}",
         "7:17: `expect`: what is held back has no text; say `text` or `suppressed`"),
        ("expect:", "7:16: `expect` is empty, expected text"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_step_is_told_like_one_in_a_rule(step, problem):
    assert mistakes(f"""\
        scenarios:
          - name: s
            start: {{}}
            say:
              - user: hello
              - user: hello
              - {step}
              - expect: nothing
    """) == [f"s.yaml:{problem}"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "1:1: the file is empty, expected `scenarios:` and a list of scenarios"),
        ("rules: []", "1:1: the file knows no `rules`; expected one of scenarios"),
        ("scenarios: [{name: s}]", "1:13: a scenario lacks `say`"),
        ("scenarios: [{name: s, say: [user: a]}]", "1:13: a scenario: nothing is expected of its last steps; it must"),
        ("scenarios: [{name: s, say: []}]", "1:13: a scenario: nothing is expected of its last steps; it must"),
        ("scenarios: [{name: s, start: {seq: 1}, say: [expect: nothing]}]", "1:31: `start` knows no `seq`"),
        ("scenarios: [{name: s, start: {facts: a}, say: [expect: nothing]}]", "1:38: `facts` is 'a', expected"),
        ("scenarios: [", "1:13: not YAML"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_told_like_one_in_a_rules_file(text, problem):
    assert mistakes(text)[0].startswith(f"s.yaml:{problem}")


def test_every_mistake_is_told_at_once():
    found = mistakes("""\
        scenarios:
          - name: one
            say: [{usr: a}, {expect: tabel}]
          - nam: two
            say: [{expect: nothing}]
    """)
    assert [problem.split(": ")[0] for problem in found] == ["s.yaml:3:12", "s.yaml:3:30", "s.yaml:4:5"]
