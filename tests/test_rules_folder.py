"""A folder of rules is one rule set: its files are joined to one text, and mistakes are told where people find them."""

from __future__ import annotations

import pytest

from contextengine.errors import RulesInvalid
from contextengine.rulefile import parse_and_place, parse_rules, read_text


def rule(name, keyword="a"):
    """A rules file with one rule."""
    return f"rules:\n  - name: {name}\n    when: {{keyword: {keyword}}}\n    inject: {{information: {{a: b}}}}\n"


@pytest.fixture
def folder(tmp_path):
    """A folder with two files of rules, and others."""
    (tmp_path / "b.yaml").write_text("# the second\n" + rule("second"))
    (tmp_path / "a.yaml").write_text(rule("first"))
    (tmp_path / "a.test.yaml").write_text("scenarios: []")
    (tmp_path / ".#a.yaml").write_text("an editor's")
    (tmp_path / "notes.txt").write_text("no rules")
    return tmp_path


def problems(folder):
    """What is wrong with the folder's rules."""
    with pytest.raises(RulesInvalid) as refusal:
        parse_rules(read_text(folder), "rules")
    return refusal.value.problems


def test_its_rules_are_those_of_its_files_in_the_order_of_their_names(folder):
    rules, places = parse_and_place(read_text(folder), "rules")
    assert [each.name for each in rules.rules] == ["first", "second"]
    assert places == {"first": "rules/a.yaml:2:5", "second": "rules/b.yaml:3:5"}


def test_its_text_names_its_files_and_not_where_it_lies(folder):
    assert read_text(folder) == (
        f"--- # file: a.yaml\n{rule('first')}\n--- # file: b.yaml\n# the second\n{rule('second')}"
    )


def test_its_hash_differs_with_a_files_text_and_with_its_name(folder):
    hashes = [parse_rules(read_text(folder), "rules").rules_hash]
    (folder / "b.yaml").rename(folder / "c.yaml")
    hashes.append(parse_rules(read_text(folder), "rules").rules_hash)
    (folder / "c.yaml").write_text(rule("second"))
    hashes.append(parse_rules(read_text(folder), "rules").rules_hash)
    assert len(set(hashes)) == 3


def test_mistakes_are_told_with_the_file_and_its_own_line(folder):
    (folder / "a.yaml").write_text(rule("first", keyword="[]"))
    (folder / "b.yaml").write_text(rule("second") + "  - {}\n")
    (folder / "c.yaml").write_text("rules: [\n")
    (folder / "d.yaml").write_text("")
    told = problems(folder)
    places = ["rules/a.yaml:3:21", "rules/b.yaml:5:5", "rules/c.yaml:2:1", "rules/d.yaml:1:1"]
    assert [problem.split(": ")[0] for problem in told] == places


def test_a_name_is_used_once_in_all_its_files(folder):
    (folder / "b.yaml").write_text(rule("first"))
    assert problems(folder) == ["rules/b.yaml:2:5: a second rule named 'first'; a name is used once"]


def test_a_file_may_begin_as_a_document_of_its_own_and_end_without_a_line_break(folder):
    (folder / "a.yaml").write_text("---\n" + rule("first").rstrip())
    assert [each.name for each in parse_rules(read_text(folder), "rules").rules] == ["first", "second"]


def test_a_folder_without_rules_is_refused_by_name(tmp_path):
    with pytest.raises(RulesInvalid, match=r"no rules in this folder, expected files named \*\.yaml"):
        read_text(tmp_path)


def test_a_file_of_it_that_is_no_text_is_refused_by_name(folder):
    (folder / "b.yaml").write_bytes(b"\xff")
    with pytest.raises(RulesInvalid, match=r"b\.yaml: byte 1 is no UTF-8"):
        read_text(folder)


def test_only_a_text_that_begins_with_a_files_name_is_a_folders():
    text = rule("first") + "--- # file: a.yaml\n" + rule("second")
    with pytest.raises(RulesInvalid, match=r"rules.yaml:5:1: not YAML: but found another document"):
        parse_rules(text, "rules.yaml")
