"""What rules cannot mean though each is right: it is found, and only that."""

from __future__ import annotations

from pathlib import Path

import pytest

import contextengine
from contextengine.engine.rule_check import findings
from contextengine.rulefile import parse_rules

DEMO = Path(contextengine.__file__).parent / "demo" / "rules.yaml"


def found(*rules):
    """What is found in these rules, each a name and the rest of it."""
    written = "".join(f"  - {{name: {name}, {rest}}}\n" for name, rest in rules)
    told = findings(parse_rules(f"rules:\n{written}", "rules.yaml"))
    return [(finding.rule, finding.kind, finding.told) for finding in told]


def of_one(rest):
    """What is found in one rule."""
    return [(kind, told) for _, kind, told in found(("r", rest))]


SAID = "inject: {information: {a: b}}"


def test_nothing_is_found_in_the_demos_rules():
    assert findings(parse_rules(DEMO.read_text(), "rules.yaml")) == []


@pytest.mark.parametrize(
    ("rest", "kind", "told"),
    [
        ("when: {silence: 24 h}", "unreachable", "a session that is silent for 24 h is forgotten"),
        (
            "when: {all: [{keyword: {any_of: a, speaker: user}}, {emotion: {any_of: joy, speaker: assistant}}]}",
            "unreachable",
            "some of its parts listen to the user and some to the assistant, and a message is said by one of them",
        ),
        (
            "when: {all: [{emotion: [joy, anger]}, {emotion: [fear]}]}",
            "unreachable",
            "its parts have no emotion in common, and a message is heard to have one",
        ),
        (
            "when: {all: [{keyword: a}, {not: {of: {keyword: [a, b]}}}]}",
            "unreachable",
            "one of its parts is what another one denies",
        ),
        (
            "when: {all: [{phase: start}, {keyword: a}, {not: {of: {phase: start}}}]}",
            "unreachable",
            "one of its parts is what another one denies",
        ),
        (
            "when: {all: [{phase: start}, {phase: end}]}",
            "unreachable",
            "a conversation is in one phase at a time, and its parts want several",
        ),
        (
            "when: {keyword: a}, place: silence, quiet: 1.5 min, ttl: 90 s",
            "unreachable",
            "it waits for a silence of 90 s, and its life is over after 90 s",
        ),
        (
            "when: {keyword: a}, fallback: 3 s",
            "unused",
            "`fallback` is for a context that waits, and `place: now` does not",
        ),
        (
            "when: {keyword: a}, place: turn_boundary, fallback: 1 h, ttl: 1500 ms",
            "unused",
            "its fallback comes after 1 h, and its life is over after 1500 ms",
        ),
    ],
)
def test_a_rule_that_can_never_do_what_it_says_is_found(rest, kind, told):
    assert of_one(f"{rest}, {SAID}") == [(kind, told)]


@pytest.mark.parametrize(
    "rest",
    [
        "when: {silence: 23 h}",
        "when: {all: [{keyword: {any_of: a, speaker: user}}, {emotion: {any_of: joy, speaker: null}}]}",
        "when: {all: [{emotion: [joy, anger]}, {emotion: [anger]}]}",
        "when: {all: [{emotion: [joy]}, {emotion: {any_of: [fear], implied: 0.5}}]}",
        "when: {any: [{emotion: [joy]}, {emotion: [fear]}]}",
        "when: {all: [{keyword: [a, b]}, {not: {of: {keyword: a}}}]}",
        "when: {all: [{phase: start}, {not: {of: {phase: end}}}]}",
        "when: {keyword: a}, place: silence, quiet: 59 s, ttl: 60 s",
        "when: {keyword: a}, place: silence, quiet: 90 s, ttl: 60 s, fallback: 30 s",
        "when: {every: 30 s}, place: silence, quiet: 90 s, ttl: 60 s",
        "when: {keyword: a}, place: turn_boundary, fallback: 59 s",
    ],
)
def test_a_rule_that_can_do_what_it_says_is_not(rest):
    assert of_one(f"{rest}, {SAID}") == []


def test_a_text_that_no_session_has_room_for_is_found_and_one_that_just_fits_is_not():
    fits = "x" * (32 * 1024 - len("[Information]\n- a: "))
    assert of_one(f"when: {{keyword: a}}, inject: {{information: {{a: {fits}}}}}") == []
    assert of_one(f"when: {{keyword: a}}, inject: {{information: {{a: {fits}x}}}}") == [
        ("too long", "32769 bytes of text, at most 32768 are allowed")
    ]


FIRST = "goes first in their slot `s`: it goes in only where that one is held back"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("keyword: [a, b]", "keyword: [a, b]"),
        ("keyword: [a, b]", "keyword: [b]"),
        ("keyword: {any_of: [a], speaker: null}", "keyword: a"),
        ("keyword: [a]", "all: [{keyword: a}, {emotion: joy}]"),
        ("any: [{keyword: a}, {emotion: joy}]", "emotion: joy"),
        ("keyword: [a, b]", "any: [{keyword: a}, {keyword: b}]"),
        ("every: 10 s", "every: 10 s"),
        ("keyword: a", "cool_down: {of: {keyword: a}, pause: 10 s}"),
        ("keyword: a", "at_most: {of: {keyword: a}, times: 2, window: 1 min}"),
    ],
)
def test_a_rule_that_another_one_of_its_slot_is_always_before_is_found(first, second):
    """Equal priority goes by the order in the file; here the file has the one that loses first."""
    assert found(
        ("loses", f"when: {{{second}}}, {SAID}, key: s"), ("wins", f"when: {{{first}}}, {SAID}, key: s, priority: 1")
    ) == [("loses", "shadowed", f"wins fires whenever it does, and {FIRST}")]
    both = [(name, f"when: {{{when}}}, {SAID}, key: s") for name, when in (("wins", first), ("loses", second))]
    assert [rule for rule, _, _ in found(*both)] == ["loses"]


@pytest.mark.parametrize(
    ("first", "second", "more"),
    [
        ("keyword: b", "keyword: [a, b]", ""),
        ("keyword: a", "keyword: {any_of: a, speaker: null}", ""),
        ("all: [{keyword: a}, {emotion: joy}]", "keyword: a", ""),
        ("emotion: joy", "any: [{keyword: a}, {emotion: joy}]", ""),
        ("cool_down: {of: {keyword: a}, pause: 10 s}", "keyword: a", ""),
        ("every_messages: 3", "all: [{every_messages: 3}, {keyword: a}]", ""),
        ("emotion: joy", "emotion: {any_of: joy, implied: 0.5}", ""),
        ("keyword: a", "keyword: a", ", shadow: true"),
        ("keyword: a", "keyword: a", ", share: 0.9"),
        ("keyword: a", "keyword: a", ", if: session.turns > 3"),
    ],
)
def test_a_rule_that_may_fire_alone_is_not(first, second, more):
    wins, loses = f"when: {{{first}}}, {SAID}, key: s{more}", f"when: {{{second}}}, {SAID}, key: s"
    assert found(("wins", wins), ("loses", loses)) == []


def test_a_condition_keeps_rules_apart_unless_both_have_it():
    wins, loses = (f"when: {{keyword: a}}, {SAID}, key: s{more}" for more in (", if: session.turns > 3", ""))
    assert [rule for rule, _, _ in found(("loses", loses), ("wins", wins + ", priority: 1"))] == []
    assert [rule for rule, _, _ in found(("loses", wins), ("wins", loses + ", priority: 1"))] == ["loses"]
    assert [rule for rule, _, _ in found(("loses", wins), ("wins", wins + ", priority: 1"))] == ["loses"]


def test_rules_that_fire_together_and_say_the_opposite_are_found():
    assert found(
        ("calm", "when: {keyword: [a, b]}, inject: {strategy: {tone: calm, pace: slow}, attention: {focus: [x, y]}}"),
        ("loud", "when: {keyword: a}, inject: {strategy: {tone: loud, pace: slow}, attention: {avoid: y}}"),
    ) == [
        ("loud", "contradiction", "its `tone` is 'loud', and that of calm, which goes in too, is 'calm'"),
        ("loud", "contradiction", "its `avoid` is what calm, which goes in too, has under `focus`: 'y'"),
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("keyword: a}, inject: {strategy: {tone: calm}", "keyword: b}, inject: {strategy: {tone: loud}"),
        ("keyword: a}, inject: {strategy: {tone: calm}", "keyword: a}, inject: {strategy: {tone: '{{ facts.tone }}'}"),
        ("keyword: a}, inject: {strategy: {tone: calm}", "keyword: a}, inject: {strategy: {tone: calm}"),
        ("keyword: a}, inject: {strategy: {tone: calm}", "keyword: a}, inject: {information: {tone: loud}"),
        ("keyword: a}, inject: {strategy: {tone: calm}", "keyword: a}, shadow: true, inject: {strategy: {tone: loud}"),
        ("keyword: a}, inject: {strategy: {tone: calm}", "keyword: a}, share: 0, inject: {strategy: {tone: loud}"),
        ("keyword: a}, inject: {attention: {focus: x}", "keyword: a}, inject: {attention: {focus: x, avoid: y}"),
    ],
)
def test_rules_that_fire_apart_or_agree_are_not(one, other):
    assert found(("one", f"when: {{{one}}}"), ("other", f"when: {{{other}}}")) == []


def test_findings_come_in_the_order_of_the_rules():
    late = f"when: {{keyword: a}}, {SAID}, key: s"
    assert [rule for rule, _, _ in found(
        ("second", late), ("unused", f"when: {{keyword: b}}, {SAID}, fallback: 1 s"), ("first", late + ", priority: 2")
    )] == ["second", "unused"]  # fmt: skip
