"""How the demo looks: a frame for a terminal, plain lines for anything else, and the summary. Pure.

A frame has a panel for each call, with who says what and where contexts went in. Below them stands what ContextEngine
did: the rule and its evidence, the context, the moment it waited for, the provider's answer, the turn that had it.

There is one clock, the call's own, which runs as many times as fast as life as its panel says. Only how long the
provider took, and how far the run is, is real time.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final, NamedTuple

from rich.layout import Layout
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from contextengine.demo.story import HeldBack, Kind, said, shown
from contextengine.demo.summary import latency
from contextengine.demo.timing import PEOPLE
from contextengine.schemas.events import ASSISTANT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from contextengine.demo.story import CallStory, InjectionStory, Line, Story
    from contextengine.demo.summary import Summary
    from contextengine.demo.timing import Conversation

COLOURS: Final = ("cyan", "magenta", "bright_blue", "yellow")
DONE: Final = "green"
WAITS: Final = "yellow"
HELD_BACK: Final = "red"
DIM: Final = "bright_black"
LEGEND: Final = (
    *((" ◇ ", WAITS), ("fired", DIM)),
    *(("  ◆ ", DONE), ("in the call", DIM)),
    *(("  ✓ ", DONE), ("the turn had it", DIM)),
    *(("  ✗ ", HELD_BACK), ("held back or not delivered", DIM)),
)
MARGIN: Final = " " * 6
"""What stands before the text of a line in place of its time."""


class Play(NamedTuple):
    """What is played: the calls, each at a time scale of its own, and how long it takes; `where` names the topics."""

    calls: Sequence[Conversation]
    scales: Mapping[str, float]
    seconds: float
    where: str


class View:
    """Draws the story of what is played."""

    def __init__(self, story: Story, play: Play) -> None:
        self._story, self._play = story, play
        self._colours = {call.name: COLOURS[at % len(COLOURS)] for at, call in enumerate(play.calls)}

    def frame(self, now_ms: int, run_s: float, width: int, height: int) -> Layout:
        """What is to be seen at `now_ms` (Unix), `run_s` seconds into the run, on so many columns and lines."""
        rows = (len(self._play.calls) + 1) // 2
        call_lines = max(5, height // 2 // rows)
        panels = [self._call(call, now_ms, width // 2 - 4, call_lines - 2) for call in self._play.calls]
        frame = Layout()
        frame.split_column(
            Layout(self._header(run_s), size=1),
            *(Layout(_pair(panels[2 * row : 2 * row + 2]), size=call_lines) for row in range(rows)),
            Layout(Text.assemble(*LEGEND), size=1),
            Layout(self._feed(width - 4, height - 5 - rows * call_lines)),
            Layout(self._footer(), size=1),
        )
        return frame

    def _header(self, run_s: float) -> Text:
        told = f"  {run_s:.0f} of {self._play.seconds:.0f} s  {self._play.where}"
        return Text.assemble(" ", ("ContextEngine", "bold"), (told, DIM))

    def _footer(self) -> Text:
        injections = self._story.injections.values()
        delivered = [injection for injection in injections if injection.delivered]
        took = latency(i.verdict.answered_ms - i.released_ms for i in delivered if i.verdict)
        seen = [turn for injection in delivered if (turn := self._story.next_turn(injection))]
        return Text.assemble(
            " ",
            (f"{self._story.events.total()} events  ", DIM),
            (f"{len(delivered)} delivered, {sum(turn.in_context for turn in seen)} of {len(seen)} ✓  ", DONE),
            (f"{len(self._story.held_back)} held back  ", HELD_BACK),
            (f"to the provider p50 {took.p50_ms} ms, p99 {took.p99_ms} ms" if took.count else "", DIM),
        )

    def _call(self, conversation: Conversation, now_ms: int, width: int, height: int) -> Panel:
        colour = self._colours[conversation.name]
        call = self._story.calls.get(conversation.name)
        origin = "people wrote it, timing made" if conversation.origin == PEOPLE else "scripted"
        title = Text.assemble(
            (f" {conversation.name} ", f"bold {colour}"), (f"{origin}, x{self._speed(conversation)} ", DIM)
        )
        lines = [text for line in (call.lines if call else []) for text in _call_lines(line, colour, width)]
        body = Text("\n").join(lines[-height:])
        return Panel(
            body,
            title=title,
            title_align="left",
            subtitle=_state(call, now_ms) if call else None,
            subtitle_align="right",
            border_style=colour,
            height=height + 2,
        )

    def _speed(self, conversation: Conversation) -> str:
        return f"{self._play.scales[conversation.name]:.3g}"

    def _feed(self, width: int, height: int) -> Panel:
        entries: list[InjectionStory | HeldBack] = [*self._story.held_back]
        entries += [injection for injection in self._story.injections.values() if injection.rule]
        entries.sort(key=lambda entry: entry.at_ms)
        lines: list[Text] = []
        for entry in reversed(entries):
            lines[:0] = [*self._entry(entry)]
            if len(lines) >= height:
                break
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        return Panel(
            Text("\n").join(lines[-height:]),
            title=Text.assemble((" what ContextEngine did, and why  ", "bold"), ("in the call's own time ", DIM)),
            title_align="left",
            border_style=DIM,
        )

    def _entry(self, entry: InjectionStory | HeldBack) -> Iterable[Text]:
        """A few lines about one context: why, what became of it, what it says."""
        yield Text.assemble(
            (f"{_clock(entry.elapsed_ms):>5} ", DIM),
            (f"{entry.session_id:10} ", self._colours.get(entry.session_id, "")),
            (entry.rule, "bold"),
            ("  on ", DIM),
            (shown(entry.evidence), "italic"),
        )
        if isinstance(entry, HeldBack):
            told = " ".join(entry.reason.replace("\\n", " ").split())
            yield Text.assemble(MARGIN, (f"held back by {entry.filter}: ", HELD_BACK), (told, DIM))
            return
        yield Text.assemble(MARGIN, *self._became(entry))
        for dimension in entry.text.split("\n\n"):
            title, *facts = dimension.splitlines()
            yield Text.assemble(MARGIN, (f"{title} {'; '.join(fact.removeprefix('- ') for fact in facts)}", DIM))

    def _became(self, injection: InjectionStory) -> Iterable[tuple[str, str]]:
        moment, scale = said(injection.placement), self._story.calls[injection.session_id].time_scale
        if not injection.released_ms:
            yield f"waits for {moment}", WAITS
        elif injection.placement == "now":
            yield "at once", WAITS
        elif injection.released_ms == injection.at_ms:
            yield f"at once, at a {moment}", WAITS
        else:
            yield f"after {_span(scale * (injection.released_ms - injection.at_ms))} at {moment}", WAITS
        verdict, turn = injection.verdict, self._story.next_turn(injection)
        if injection.delivered and verdict is not None:
            took_ms = verdict.answered_ms - verdict.sent_ms
            yield f" → {said(verdict.confirmation)} ({verdict.role}, the provider took {took_ms} ms)", DONE
        elif verdict is not None:
            yield f" → {verdict.verdict} {verdict.error_class} {verdict.message}", HELD_BACK
        if injection.result is not None and not injection.delivered:
            yield f" → {injection.result.outcome}: {injection.result.reason}", HELD_BACK
        if turn is not None and turn.in_context:
            yield f" → {_span(scale * turn.ahead_ms)} before turn {turn.number} ✓", DONE
        elif turn is not None:
            yield f" → MISSING in turn {turn.number}", f"bold {HELD_BACK}"


def plain(line: Line) -> str:
    """A line of the story, for a pipe or a log."""
    return f"{_clock(line.elapsed_ms):>5} {line.session_id:10} {line.kind:10} {line.who}: {line.text}"


def summary_table(summary: Summary) -> Table:
    """The summary for people."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()
    table.add_row("calls", f"{summary.calls}, with {summary.messages} messages and {summary.events} events")
    table.add_row("injections", _counts(summary.injections))
    table.add_row("held back", _counts(summary.held_back))
    took = summary.event_to_provider
    if took.count:
        answer = f"of it the provider: p50 {summary.provider_answer.p50_ms} ms"
        table.add_row("latency", f"from event to provider p50 {took.p50_ms} ms, p99 {took.p99_ms} ms ({answer})")
        seen = f"{summary.in_context} of {summary.with_next_turn} when the next turn was asked for"
        table.add_row("in context", seen)
    table.add_row("SDK types", f"{summary.type_violations} violations in what was sent to the provider")
    table.add_row("time", f"{summary.seconds:.0f} s, topics {summary.prefix}.* at {summary.broker}")
    for problem in summary.problems:
        table.add_row(Text("problem", style=HELD_BACK), Text(problem))
    return table


def _pair(panels: Sequence[Panel]) -> Table:
    pair = Table.grid(expand=True)
    for _ in panels:
        pair.add_column(ratio=1)
    pair.add_row(*panels)
    return pair


def _call_lines(line: Line, colour: str, width: int) -> Iterable[Text]:
    """A line of the story as a call's panel shows it: in as many lines as it takes."""
    match line.kind:
        case Kind.SAID:
            who, style = ("model", "default") if line.who == ASSISTANT else ("person", colour)
            told = f"{who}: {line.text}"
        case Kind.FIRED:
            told, style = f"◇ {line.who} {line.text.rpartition('; ')[2]}", WAITS
        case Kind.DELIVERED:
            told, style = f"◆ {line.who} is in", DONE
        case Kind.IN_CONTEXT:
            told, style = f"✓ {line.who} has {line.text}", DONE
        case Kind.HELD_BACK | Kind.ENDED:
            told, style = f"✗ {line.who}", HELD_BACK
    clock = f"{_clock(line.elapsed_ms):>5} "
    for number, part in enumerate(textwrap.wrap(told, width - len(clock))):
        yield Text.assemble((" " * len(clock) if number else clock, DIM), (part, style))


def _state(call: CallStory, now_ms: int) -> Text:
    at_ms = call.ended_ms or now_ms
    return Text(f" {call.state}  {_clock(call.elapsed_ms(at_ms))} ", style=DIM)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


def _span(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds < 1_000 else f"{milliseconds / 1_000:.1f} s"


def _clock(milliseconds: float) -> str:
    minutes, seconds = divmod(int(milliseconds // 1_000), 60)
    return f"{minutes}:{seconds:02}"
