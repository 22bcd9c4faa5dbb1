"""The watchers of a run: a live view for a terminal, plain lines for anything else, nothing for a script."""

from __future__ import annotations

import asyncio
import io
import re
import time
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.live import Live

from contextengine.demo.view import View, plain

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.layout import Layout

    from contextengine.demo.story import Line, Story
    from contextengine.demo.view import Play

FRAME_S: Final = 0.125
PICTURE_AT: Final = 0.14
"""The part of the calls after which the picture is taken: each kind of thing has happened, and is still to be seen."""
PICTURE_COLUMNS: Final = 120
PICTURE_LINES: Final = 51
FONTS: Final = "ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace"


class Nothing:
    """Shows nothing: what every watcher can be told."""

    def stage(self, what: str) -> None:
        """Say what is done before the calls begin, or after them."""

    def begins(self, story: Story, play: Play) -> None:
        """The calls begin; `story` grows from now on."""

    def tell(self, lines: Sequence[Line]) -> None:
        """Say what has just become known."""

    def over(self) -> None:
        """The calls are over, or were broken off; also called when they never began."""


class Lines(Nothing):
    """Prints a line for everything that becomes known."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def stage(self, what: str) -> None:
        """Print it."""
        self._console.print(f"{what} …", style="dim")

    def tell(self, lines: Sequence[Line]) -> None:
        """Print them."""
        for line in lines:
            self._console.print(plain(line), soft_wrap=True, markup=False, highlight=False)


class Screen(Lines):
    """Draws on the whole terminal while the calls last; `picture` gets an SVG of it."""

    def __init__(self, console: Console, picture: Path | None = None) -> None:
        super().__init__(console)
        self._picture = picture
        self._drawing: asyncio.Task[None] | None = None

    def begins(self, story: Story, play: Play) -> None:
        """Draw until it is over."""
        self._drawing = asyncio.create_task(self._draw(View(story, play), play.seconds))

    def tell(self, lines: Sequence[Line]) -> None:
        """The next frame shows them."""

    def over(self) -> None:
        """Give the terminal back."""
        if self._drawing is not None and self._drawing.done():
            self._drawing.result()  # it ends by itself only by failing
        elif self._drawing is not None:
            self._drawing.cancel()

    async def _draw(self, view: View, play_s: float) -> None:
        began = time.monotonic()

        def frame(width: int, height: int) -> Layout:
            return view.frame(time.time_ns() // 1_000_000, time.monotonic() - began, width, height)

        with Live(console=self._console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(frame(*self._console.size), refresh=True)
                if self._picture is not None and time.monotonic() - began > PICTURE_AT * play_s:
                    save(frame(PICTURE_COLUMNS, PICTURE_LINES), self._picture)
                    self._picture = None
                await asyncio.sleep(FRAME_S)


def save(frame: Layout, picture: Path) -> None:
    """Write a frame as SVG, which needs no fonts from elsewhere."""
    console = Console(file=io.StringIO(), record=True, width=PICTURE_COLUMNS, height=PICTURE_LINES, force_terminal=True)
    console.print(frame)
    picture.parent.mkdir(parents=True, exist_ok=True)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="contextengine demo"), flags=re.DOTALL)
    picture.write_text(svg.replace("Fira Code, monospace", FONTS), encoding="utf-8")
