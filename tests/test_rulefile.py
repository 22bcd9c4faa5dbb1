"""A rules file: what it says becomes rules, and every mistake is told with file, line, column, found and expected."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
from any_record import examples
from hypothesis import given
from hypothesis import strategies as st

import contextengine
from contextengine import plugins
from contextengine.engine.builders import Text
from contextengine.engine.conditions import Condition
from contextengine.engine.strategies.compose import All, Not
from contextengine.engine.strategies.semantic import Emotion, Keyword
from contextengine.engine.strategies.state_based import ConversationReaches, Silence
from contextengine.engine.strategies.temporal import Every, EveryMessages
from contextengine.engine.vocabulary import OF_SESSION
from contextengine.errors import RulesInvalid
from contextengine.rulefile import parse_rules, read_text, rules_hash
from contextengine.schemas.context import Criticality, Respond, Trust
from contextengine.schemas.injection import FailurePolicy, FailureStrategy
from contextengine.schemas.session import Place

SAID = "inject: {information: {a: b}}"


def rule_of(text):
    """The only rule of this text."""
    [rule] = parse_rules(dedent(text), "rules.yaml").rules
    return rule


def when(text):
    """What `when` means, written in one line."""
    return rule_of(f"rules: [{{name: r, when: {text}, {SAID}}}]").when


def test_a_strategy_may_stand_alone_where_another_one_has_it_first():
    assert when("{all: [{keyword: a}, {not: {keyword: b}}]}") == All((Keyword(("a",)), Not(Keyword(("b",)))))
    assert when("{all: [{keyword: a}, {not: {of: {keyword: b}}}]}") == All((Keyword(("a",)), Not(Keyword(("b",)))))


@pytest.mark.parametrize(
    ("text", "quotes"),
    [
        ("{{ evidence.messages }}", False),
        ("{{ evidence.query }}", True),
        ("{{ evidence['topic'] }}", True),
        ("{% for name in evidence %}{{ name }}{% endfor %}", True),
        ("{{ evidence.get('query') }}", True),
        ("{{ session.turns }}", False),
    ],
)
def test_evidence_that_is_somebodys_words_is_a_quotation(text, quotes):
    assert Text(information={"a": text}).quotes_people is quotes


def problems(text):
    """What is wrong with this text."""
    with pytest.raises(RulesInvalid) as refusal:
        parse_rules(dedent(text), "rules.yaml")
    return refusal.value.problems


def test_the_demos_rules_are_valid_and_the_first_has_all_that_its_text_says():
    demo = Path(contextengine.__file__).parent / "demo" / "rules.yaml"
    rules = parse_rules(demo.read_text(), "rules.yaml")
    stressed = rules.rule("stressed-about-startup")
    assert stressed.when == All(
        (Emotion(("stress", "fear", "sadness")), Keyword(("startup", "company", "business", "investors")))
    )
    assert (stressed.criticality, stressed.priority, stressed.ttl_ms) == (Criticality.IMPORTANT, 10, 60_000)
    assert (stressed.place, stressed.fallback_ms) == (Place.TURN_BOUNDARY, 5_000)
    assert len(rules.rules) == 8


def test_a_rule_says_only_what_differs_from_the_ordinary():
    rule = rule_of(f"rules: [{{name: r, when: {{every_messages: 3}}, {SAID}}}]")
    assert (rule.criticality, rule.place, rule.respond, rule.trust) == ("helpful", "now", "never", "trusted")
    assert (rule.priority, rule.ttl_ms, rule.slot, rule.shadow) == (0, 60_000, "r", False)
    assert rule.failure_policy == FailurePolicy(FailureStrategy.SKIP)


def test_every_key_of_a_rule_can_be_written():
    rule = rule_of("""
        rules:
          - name: full
            when: {keyword: [one, two words]}
            inject:
              information: {fact: told}
              strategy: {tone: calm}
              attention: {focus: [a, b], avoid: c}
            criticality: critical
            priority: -3
            ttl: 1.5 min
            key: slot
            place: silence
            quiet: 250ms
            fallback: 1 h
            cooldown: 0 s
            respond: after_turn
            trust: untrusted
            timeout: 900 ms
            if: session.turns > 3
            on_failure: {strategy: retry_async, max_attempts: 4, delay: 2 s}
            shadow: true
    """)
    assert (rule.criticality, rule.priority, rule.ttl_ms, rule.key) == (Criticality.CRITICAL, -3, 90_000, "slot")
    assert (rule.place, rule.quiet_ms, rule.fallback_ms, rule.cooldown_ms) == (Place.SILENCE, 250, 3_600_000, 0)
    assert (rule.respond, rule.trust, rule.timeout_ms) == (Respond.AFTER_TURN, Trust.UNTRUSTED, 900)
    assert rule.failure_policy == FailurePolicy(FailureStrategy.RETRY_ASYNC, 4, 2_000)
    assert rule.shadow is True
    assert rule.condition == Condition("session.turns > 3")
    assert rule.build.attention == {"focus": ["a", "b"], "avoid": "c"}


@pytest.mark.parametrize(
    ("text", "strategy"),
    [
        ("{every_messages: 10}", EveryMessages(10)),
        ("{every_messages: {count: 10}}", EveryMessages(10)),
        ("{every: 5 min}", Every(300_000)),
        ("{conversation_reaches: 30 min}", ConversationReaches(1_800_000)),
        ("{conversation_reaches: {after: 1.5 h}}", ConversationReaches(5_400_000)),
        ("{silence: 800 ms}", Silence(800)),
        ("{keyword: [a, b]}", Keyword(("a", "b"))),
        ("{keyword: lonely}", Keyword(("lonely",))),
        ("{keyword: [yes, no, 12, null word]}", Keyword(("yes", "no", "12", "null word"))),
        ("{keyword: {any_of: [a], speaker: assistant}}", Keyword(("a",), "assistant")),
        ("{keyword: {any_of: [a], speaker: null}}", Keyword(("a",), None)),
        ("{emotion: [joy]}", Emotion(("joy",))),
        ("{all: [{keyword: a}, {emotion: joy}]}", All((Keyword(("a",)), Emotion(("joy",))))),
    ],
)
def test_a_strategy_may_be_written_short_or_with_its_keys(text, strategy):
    assert when(text) == strategy


DURATION = "expected a duration such as 500 ms, 10 s, 30 min or 1 h, at most a year"
SESSION = "emotion, id, messages, minutes, modality, model, phase, provider, turns, user"
KNOWN = (
    f"Known: {', '.join(f'session.{name}' for name in OF_SESSION)}, facts, event.type, event.speaker, event.text, "
    "has, size, contains, startsWith, endsWith, int, double, string"
)
STRATEGIES = ", ".join(plugins.names("strategies"))


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("{every_messages: ten}", "28: `count` is 'ten', expected a whole number up to a billion"),
        ("{every_messages: 1.5}", "28: `count` is '1.5', expected a whole number up to a billion"),
        ("{every_messages: [1]}", "28: `count` is a list, expected a whole number up to a billion"),
        ("{every_messages: 0}", "28: every_messages: count must be at least 1"),
        ("{every_messages: 9999999999}", "28: `count` is '9999999999', expected a whole number up to a billion"),
        ("{silence: 10}", f"21: `lasts` is '10', {DURATION}"),
        ("{silence: -3 s}", f"21: `lasts` is '-3 s', {DURATION}"),
        ("{silence: 10 sec}", f"21: `lasts` is '10 sec', {DURATION}"),
        ("{silence: }", f"20: `lasts` is empty, {DURATION}"),
        ("{silence: 99999 h}", f"21: `lasts` is '99999 h', {DURATION}"),
        ("{every: 500 ms}", "19: every: period must be at least 1 s"),
        ("{keyword: []}", "21: keyword: any_of must name at least one word or phrase"),
        ("{keyword: ['?!']}", "21: keyword: '?!' contains no word"),
        ("{keyword: [[a]]}", "22: `any_of` is a list, expected text"),
        ("{keyword: {speaker: user}}", "21: keyword lacks `any_of`"),
        ("{keyword: {any_of: a, loud: 1}}", "33: keyword knows no `loud`; expected one of any_of, speaker"),
        ("{keyword: {any_of: a, speeker: b}}", "33: keyword knows no `speeker`; did you mean `speaker`?"),
        ("{keyword: {any_of: a, [a]: b}}", "33: a name in keyword is a list, expected text"),
        ("{keyword: {any_of: a, speaker: customer}}", "42: `speaker` is 'customer', expected one of user, assistant"),
        ("{emotion: {any_of: joy, speaker: 1}}", "44: `speaker` is '1', expected one of user, assistant"),
        ("{key_word: a}", "12: `when` knows no `key_word`; did you mean `keyword`?"),
        ("{xyz: a}", f"12: `when` knows no `xyz`; expected one of {STRATEGIES}"),
        ("{keyword: a, emotion: b}", f"11: `when` is a mapping, expected exactly one of {STRATEGIES}"),
        ("keyword", f"11: `when` is 'keyword', expected exactly one of {STRATEGIES}"),
        ("{all: [{keyword: a}]}", "17: all: `all` joins at least two strategies"),
        (
            "{all: [{keyword: a}, {every: 3 s}]}",
            "17: all: the parts of `all` fire on the same event, and these never do: Keyword, Every",
        ),
    ],
)
def test_a_mistake_in_when_is_told_with_its_column_what_was_found_and_what_was_expected(written, problem):
    assert problems(f"""\
rules:
  - name: r
    when: {written}
    {SAID}
""") == [f"rules.yaml:3:{problem}"]


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("inject: {}", "13: inject: at least one of information, strategy and attention must say something"),
        ("inject: text", "13: inject is 'text', expected `name: value` pairs"),
        ("inject: {informaton: {a: b}}", "14: inject knows no `informaton`; did you mean `information`?"),
        ("inject: {strategy: calm}", "24: `strategy` is 'calm', expected `name: value` pairs"),
        ("inject: {strategy: {a: {b: c}}}", "28: `strategy`.a is a mapping, expected text"),
        ("inject: {strategy: {a: }}", "27: `strategy`.a is empty, expected text"),
        ('inject: {strategy: {a: "\\ud800"}}', "28: `strategy`.a is '\\ud800', expected text"),
        (
            "inject: {strategy: {a: '{{ foo }}'}}",
            "28: no template knows foo; known: evidence, facts, history, said, session",
        ),
        (
            'inject: {strategy: {a: \'{{ session.minute }}{{ session["turn"] }}{{ session.get("user") }}\'}}',
            "28: no template knows session.minute, session.turn; known: " + SESSION,
        ),
        (
            "inject: {strategy: {a: '{% if %}'}}",
            "28: template '{% if %}': Expected an expression, got 'end of statement block'",
        ),
        (f"{SAID}, priority: high", "46: `priority` is 'high', expected a whole number up to a billion"),
        (f"{SAID}, shadow: maybe", "44: `shadow` is 'maybe', expected true or false"),
        (f"{SAID}, place: nowhere", "43: `place` is 'nowhere', expected one of now, turn_boundary, silence"),
        (f"{SAID}, respond: [never]", "45: `respond` is a list, expected one of never, after_turn, now"),
        (f"{SAID}, ttl: soon", f"41: `ttl` is 'soon', {DURATION}"),
        (f"{SAID}, ttl_ms: 3 s", "36: a rule knows no `ttl_ms`; did you mean `ttl`?"),
        (f"{SAID}, critcality: helpful", "36: a rule knows no `critcality`; did you mean `criticality`?"),
        (f"{SAID}, name: again", "36: a rule says `name` twice"),
        (f"{SAID}, on_failure: skip", "48: `on_failure` is 'skip', expected `name: value` pairs"),
        (
            f"{SAID}, on_failure: {{strategy: retry}}",
            "59: `strategy` is 'retry', expected one of skip, retry_async",
        ),
        (f"{SAID}, on_failure: {{attempts: 3}}", "49: `on_failure` knows no `attempts`; did you mean `max_attempts`?"),
        (f"{SAID}, if: [true]", "40: `if` is a list, expected text"),
        (f"{SAID}, if: session.turns", "40: condition 'session.turns': it gives int, expected true or false"),
        (
            f"{SAID}, if: session.turns >",
            "40: condition 'session.turns >': 1:16: Syntax error: mismatched input '<EOF>'",
        ),
        (
            f"{SAID}, if: session.turn > 3",
            f"40: condition 'session.turn > 3': no condition knows session.turn; did you mean session.turns? {KNOWN}",
        ),
    ],
)
def test_a_mistake_in_the_rest_of_a_rule_is_told_in_the_same_way(written, problem):
    assert problems(f"""\
rules:
  - {{name: r, when: {{keyword: a}},
    {written}}}
""") == [f"rules.yaml:3:{problem}"]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ("ttl: 0 s", "ttl and timeout must be at least 1 ms"),
        ("timeout: 0 ms", "ttl and timeout must be at least 1 ms"),
        ("on_failure: {max_attempts: 0}", "max_attempts must be at least 1"),
        (
            "on_failure: {max_attempts: 3, delay: 1 s}",
            "strategy skip makes one attempt; for more, on_failure must say `strategy: retry_async`",
        ),
    ],
)
def test_a_rule_that_could_never_inject_is_refused(keys, problem):
    assert problems(f"rules: [{{name: r, when: {{keyword: a}}, {SAID}, {keys}}}]") == [
        f"rules.yaml:1:9: a rule: {problem}"
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "rules.yaml:1:1: the file is empty, expected `rules:` and a list of rules"),
        ("# nothing yet\n", "rules.yaml:1:1: the file is empty, expected `rules:` and a list of rules"),
        ("rules:", "rules.yaml:1:7: `rules` is empty, expected a list of rules"),
        ("rules: {}", "rules.yaml:1:8: `rules` is a mapping, expected a list of rules"),
        ("rules: [1]", "rules.yaml:1:9: a rule is '1', expected `name: value` pairs"),
        ("rules: [{}]", "rules.yaml:1:9: a rule lacks `name`, `when`, `inject`"),
        ("rules: []\nrules: []", "rules.yaml:2:1: the file says `rules` twice"),
        ("rule: []", "rules.yaml:1:1: the file knows no `rule`; did you mean `rules`?"),
        ("just text", "rules.yaml:1:1: the file is 'just text', expected `name: value` pairs"),
        ("rules: [\n", "rules.yaml:2:1: not YAML: expected the node content, but found '<stream end>'"),
        ("a: b\n---\nc: d", "rules.yaml:2:1: not YAML: but found another document"),
        ("? [a]\n: b", "rules.yaml:1:3: a name in the file is a list, expected text"),
        ("rules: *a", "rules.yaml:1:8: not YAML: found undefined alias 'a'"),
        ("rules: &a [{name: r, when: {all: &b [{all: *b}]}}]", "rules.yaml: nested too deeply, or an alias"),
        ("[" * 1_500, "rules.yaml: nested too deeply"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_list_of_rules_is_told_so(text, problem):
    assert problems(text)[0].startswith(problem)


def test_every_mistake_is_told_at_once():
    found = problems("""\
        rules:
          - name: one
            when: {every_messages: x}
            inject: {information: {a: b}}
          - name: two
            when: {keyword: a}
            inject: {information: {a: b}}
            ttl: never
            plaec: now
    """)
    assert {problem.split(": ")[0] for problem in found} == {"rules.yaml:3:28", "rules.yaml:8:10", "rules.yaml:9:5"}


def test_what_is_wrong_with_a_rule_as_a_whole_is_told_beside_the_mistakes_in_its_parts():
    """Nobody has to mend a file twice to learn of all that is wrong with it."""
    found = problems("""\
        rules:
          - name: one
            when: {keyword: a}
            inject: {information: {a: b}}
          - name: one
            when: {every_messages: x}
            inject: {information: {a: "{{ said }}"}}
          - name: three
            wehn: {keyword: a}
            inject:
              information: {a: "{{ foo }}", b: "{% if %}"}
              strategy: ["{{ bar }}"]
            ttl: 0 s
            place: nowhere
          - when: {keyword: {speaker: user, any: x}}
    """)
    assert [problem.removeprefix("rules.yaml:").split(";")[0].split(": such")[0] for problem in found] == [
        "6:28: `count` is 'x', expected a whole number up to a billion",
        "5:5: a second rule named 'one'",
        "5:5: rule 'one' quotes what people said (`said` or `history`), so it must say `trust: untrusted`",
        "9:5: a rule knows no `wehn`",
        "12:17: `strategy` is a list, expected `name: value` pairs",
        "11:24: no template knows foo",
        "11:40: template '{% if %}': Expected an expression, got 'end of statement block'",
        "14:12: `place` is 'nowhere', expected one of now, turn_boundary, silence",
        "8:5: a rule: ttl and timeout must be at least 1 ms",
        "15:5: a rule lacks `name`, `inject`",
        "15:37: keyword knows no `any`",
    ]


def test_a_name_is_used_once():
    rule = f"{{name: r, when: {{keyword: a}}, {SAID}}}"
    assert problems(f"rules:\n  - {rule}\n  - {rule}\n") == [
        "rules.yaml:3:5: a second rule named 'r'; a name is used once"
    ]


@pytest.mark.parametrize("quoted", ["{{ said }}", "{% for line in history %}{{ line.text }}{% endfor %}"])
def test_a_rule_that_quotes_what_people_said_must_say_that_it_is_untrusted(quoted):
    """What somebody says in a call must not speak to the model with the operator's authority."""
    text = f"""
        rules:
          - name: r
            when: {{keyword: a}}
            inject: {{attention: {{focus: ["{quoted}"]}}}}
    """
    [problem] = problems(text)
    assert problem.startswith("rules.yaml:3:5: rule 'r' quotes what people said")
    assert "`trust: untrusted`" in problem
    assert rule_of(text + "        trust: untrusted\n").trust is Trust.UNTRUSTED


def test_a_file_that_is_no_text_is_refused_by_name(tmp_path):
    file = tmp_path / "rules.yaml"
    file.write_bytes(b"rules:\n\xff\x00")
    with pytest.raises(RulesInvalid, match=r"rules\.yaml: byte 8 is no UTF-8; rules are text \(YAML\)"):
        read_text(file)
    assert problems("rules: \x00") == ["rules.yaml: not YAML: special characters are not allowed"]


def test_the_hash_names_text_and_engine_and_differs_with_either(monkeypatch):
    text = f"rules: [{{name: r, when: {{keyword: a}}, {SAID}}}]"
    assert parse_rules(text, "one.yaml").rules_hash == parse_rules(text, "two.yaml").rules_hash == rules_hash(text)
    assert rules_hash(text) != rules_hash(text + " ")
    before = rules_hash(text)
    monkeypatch.setattr("contextengine.rulefile.__version__", "99")
    assert rules_hash(text) != before


@examples(200)
@given(text=st.text(max_size=80) | st.lists(st.sampled_from(dedent(f"""\
    rules:
    - {{name: r, when: {{keyword: a}}, {SAID}}}
    - &x
    *x
    [ ] {{ }} ? : , " ' | > - !!int # \t
    """).split(" ")), max_size=25).map(" ".join))  # fmt: skip
def test_whatever_the_text_it_is_rules_or_a_list_of_problems(text):
    try:
        parse_rules(text, "rules.yaml")
    except RulesInvalid as refusal:
        assert all(problem.startswith("rules.yaml") for problem in refusal.problems)  # noqa: PT017
