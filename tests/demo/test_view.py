"""The demo on a terminal."""

from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console
from telling import DECIDED, RESULT, SAID, STARTED, VERDICT, WITH_IT, story, summary

from contextengine.demo.screens import save
from contextengine.demo.timing import Conversation
from contextengine.demo.view import Play, View, plain, summary_table

CALLS = [
    Conversation(name=name, origin=origin, source="", licence="", facts={}, turns=[])
    for name, origin in [("s", "people"), ("b", "people"), ("c", "people"), ("d", "script")]
]
PLAY = Play(CALLS, dict.fromkeys("sbcd", 10.0), 58.0, "topics demo-1.* at b:1")


def drawn(known, width=100, height=40) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    console.print(View(known, PLAY).frame(1_500, 30.0, width, height))
    return console.file.getvalue()


@pytest.mark.parametrize(("width", "height"), [(100, 40), (140, 45), (80, 24)])
def test_a_frame_fills_the_terminal_exactly(width, height):
    lines = drawn(story(SAID, DECIDED, VERDICT, RESULT, WITH_IT), width, height).splitlines()
    assert len(lines) == height
    assert all(len(line) <= width for line in lines)


def test_a_frame_shows_who_says_what_and_what_became_of_a_context():
    frame = drawn(story(SAID, DECIDED, VERDICT, RESULT, WITH_IT))
    for told in (
        "person: my dog",
        "pets  on keywords dog",
        "[Strategy] small talk: yes",
        "at once → in context (system, the provider took 10 ms) → 600 ms before turn 1 ✓",  # at ten times the pace
        "held back by shadow: on trial",
        "1 delivered",
    ):
        assert told in frame


def test_a_frame_of_nothing_yet_is_drawn_with_what_its_signs_mean():
    frame = drawn(story(), width=80, height=24)
    assert "ContextEngine" in frame
    assert "◇ fired  ◆ in the call  ✓ the turn had it  ✗ held back or not delivered" in frame
    assert "p50" not in frame


def test_the_newest_of_many_contexts_stand_at_the_bottom():
    decisions = [msgspec.structs.replace(DECIDED, now_ms=2_000 + n, elapsed_ms=n * 60_000) for n in range(40)]
    assert "39:00 s          upset" in drawn(story(*decisions))


def test_a_line_for_a_pipe_says_when_where_and_what():
    known = story(SAID)
    assert plain(known.calls["s"].lines[0]) == " 0:02 s          said       user: my dog"


def test_the_summary_for_people_names_problems():
    console = Console(file=io.StringIO(), width=120)
    console.print(summary_table(summary(story(DECIDED, VERDICT))))
    assert "problem" in console.file.getvalue()
    assert "pets has no outcome" in console.file.getvalue()


def test_the_summary_of_a_run_that_delivered_nothing_has_no_latencies():
    console = Console(file=io.StringIO(), width=120)
    console.print(summary_table(summary(story(SAID))))
    assert "latency" not in console.file.getvalue()


def test_a_picture_needs_nothing_from_elsewhere(tmp_path):
    save(View(story(STARTED, SAID), PLAY).frame(1_500, 30.0, 120, 42), tmp_path / "docs" / "demo.svg")
    svg = (tmp_path / "docs" / "demo.svg").read_text()
    assert svg.startswith("<svg")
    assert "url(" not in svg.replace("url(#", "")
