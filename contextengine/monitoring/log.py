"""What a process writes to its log: a warning that repeats itself is written twice a minute, with a count.

Without a broker aiokafka says so in a dozen ways, 70 to 4,000 times a second.
"""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY_S: Final = 30
LIBRARIES: Final = ("aiokafka", "asyncio", "faust", "mode")
REMEMBERED: Final = 1_000


def configure(level: int, form: str) -> None:
    """Write everything from `level` on to stderr, in this form, without repetitions."""
    logging.basicConfig(level=level, format=form, force=True)
    for handler in logging.getLogger().handlers:
        handler.addFilter(Repetitions())


class Repetitions(logging.Filter):
    """Holds back a warning or an error whose like was let through in the last `every_s`; the next one has the count.

    Of a library, messages of one form are alike, whatever they name; of ours, only the same words are.
    """

    def __init__(self, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._every_s = every_s
        self._clock = clock
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write `record`."""
        if record.levelno < logging.WARNING:
            return True
        of_library = record.name.partition(".")[0] in LIBRARIES
        like = record.name, record.msg if of_library and isinstance(record.msg, str) else record.getMessage()
        now_s = self._clock()
        written_s, held_back = self._seen.get(like, (-math.inf, 0))
        if now_s < written_s + self._every_s:
            self._seen[like] = written_s, held_back + 1
            return False
        if len(self._seen) >= REMEMBERED:
            self._seen.clear()
        self._seen[like] = now_s, 0
        if held_back:
            record.msg = f"{record.getMessage()} (and {held_back} like it in the last {now_s - written_s:.0f} s)"
            record.args = None
        return True
