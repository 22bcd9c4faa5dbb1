"""Time-based: every so many messages, every so many seconds, ever more rarely, and by the clock on the wall.

`Scheduled` alone goes by that clock; the others know only the conversation's own time.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from difflib import get_close_matches
from functools import cache, lru_cache
from importlib.resources import files
from io import BytesIO
from typing import ClassVar, Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from contextengine.engine import clock
from contextengine.engine.moment import Moment
from contextengine.engine.strategies.strategy import Evidence
from contextengine.schemas.events import MessageCompleted, Tick
from contextengine.schemas.session import Memory, Session

MINUTE_MS: Final = 60_000
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
TIME_OF_DAY: Final = re.compile("([01]?[0-9]|2[0-3]):([0-5][0-9])")


@dataclass(frozen=True, slots=True)
class EveryMessages:
    """Fires with every `count`th message of the session, whoever says it."""

    count: int

    listens: ClassVar[frozenset[type]] = frozenset({MessageCompleted})

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError("count must be at least 1")

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:
        """The number of messages, once for each multiple of `count`, also when stragglers jumped over it."""
        reached = moment.session.messages // self.count
        if reached <= memory.counter:
            return None
        memory.counter = reached
        return {"messages": str(moment.session.messages)}


@dataclass(frozen=True, slots=True)
class Every:
    """Fires each time the conversation has lasted another `period_ms`, in its own time."""

    period_ms: int

    listens: ClassVar[frozenset[type]] = frozenset({Tick})

    def __post_init__(self) -> None:
        if self.period_ms < 1_000:
            raise ValueError("period must be at least 1 s")

    def due_ms(self, session: Session, memory: Memory) -> int | None:
        """The end of the next period."""
        return clock.due_ms(session, (memory.counter + 1) * self.period_ms)

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:
        """How long the conversation has lasted; periods that went by unseen are not made up for."""
        periods = moment.elapsed_ms // self.period_ms
        if periods <= memory.counter:
            return None
        memory.counter = periods
        return {"elapsed": f"{moment.elapsed_ms // 1_000} s", "period": f"{self.period_ms // 1_000} s"}


@dataclass(frozen=True, slots=True)
class Decay:
    """Fires ever more rarely: at the end of `base_ms`, then of periods each `factor` times as long as the one before.

    None is longer than `longest_ms`. All in the conversation's own time, rounded down to a millisecond each.
    """

    base_ms: int
    longest_ms: int
    factor: float = 2.0

    listens: ClassVar[frozenset[type]] = frozenset({Tick})
    _ends_ms: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """0, and the ends of the periods that are still growing."""

    def __post_init__(self) -> None:
        if self.base_ms < 1_000:
            raise ValueError("base must be at least 1 s")
        if self.longest_ms < self.base_ms:
            raise ValueError("longest must be at least as long as base")
        if not 1.01 <= self.factor <= 100:
            raise ValueError("factor must be from 1.01 to 100; for periods of the same length write `every`")
        exact = Context(prec=50)  # of floats, 1.2 is less than 1.2
        period_ms, factor = Decimal(self.base_ms), Decimal(str(self.factor))
        ends_ms = [0]
        while period_ms < self.longest_ms:
            ends_ms.append(ends_ms[-1] + int(period_ms))
            period_ms = exact.multiply(period_ms, factor)
        object.__setattr__(self, "_ends_ms", tuple(ends_ms))

    def due_ms(self, session: Session, memory: Memory) -> int | None:
        """The end of the next period."""
        return clock.due_ms(session, self._end_ms(memory.counter + 1))

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:
        """How long the conversation has lasted, and the period; periods that went by unseen are not made up for."""
        elapsed_ms, ends_ms = moment.elapsed_ms, self._ends_ms
        periods = bisect_right(ends_ms, elapsed_ms) - 1 + max(0, elapsed_ms - ends_ms[-1]) // self.longest_ms
        if periods <= memory.counter:
            return None
        memory.counter = periods
        period_ms = self._end_ms(periods) - self._end_ms(periods - 1)
        return {"elapsed": f"{elapsed_ms // 1_000} s", "period": f"{period_ms // 1_000} s"}

    def _end_ms(self, periods: int) -> int:
        """How long the conversation has lasted at the end of that many periods."""
        longest = periods - len(self._ends_ms) + 1
        return self._ends_ms[periods] if longest <= 0 else self._ends_ms[-1] + longest * self.longest_ms


@dataclass(frozen=True, slots=True)
class Scheduled:
    """Fires by the clock on the wall in `zone`: each day `at` a time such as 09:00, or when the expression `cron` says.

    That clock is the broker's, which a rehearsal at ten times the speed does not turn faster. What it showed before the
    session's start fires nothing; times that went by unseen since then fire once, late.

    A time that clocks leave out when they go forward fires as soon as they have; one that they show twice when they go
    back fires the first time. An expression whose minute or hour begins with `*` goes by the time that really passes.
    Both are the law of Debian's cron.
    """

    at: str | None = None
    cron: str | None = None
    zone: str = "UTC"

    listens: ClassVar[frozenset[type]] = frozenset({Tick})
    _expression: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        zones = files("tzdata").joinpath("zones").read_text(encoding="utf-8").split()
        if self.zone not in zones:
            near = get_close_matches(self.zone, zones, n=1)
            hint = f"did you mean {near[0]}?" if near else "write one such as Europe/Berlin, or UTC"
            raise ValueError(f"zone {self.zone!r} is no time zone; {hint}")
        if (self.at is None) == (self.cron is None):
            raise ValueError('write either at: "09:00" or cron: "0 9 * * mon-fri"')
        object.__setattr__(self, "_expression", _daily(self.at) if self.cron is None else _checked(self.cron))

    def due_ms(self, session: Session, memory: Memory) -> int | None:
        """The first such time after it last fired, and after the session's start."""
        if session.started_ms is None:
            return None
        return _next_ms(self._expression, self.zone, max(session.started_ms, memory.at_ms) // MINUTE_MS)

    def evidence(self, moment: Moment, memory: Memory) -> Evidence | None:
        """The time that was due, on the clock of the zone."""
        due_ms = self.due_ms(moment.session, memory)
        if due_ms is None or moment.now_ms < due_ms:
            return None
        memory.at_ms = moment.now_ms
        at = (EPOCH + timedelta(milliseconds=due_ms)).astimezone(_zone(self.zone))
        return {"at": at.isoformat(" ", "minutes"), "zone": self.zone}


def _daily(at: str | None) -> str:
    """The expression for a time of day."""
    found = TIME_OF_DAY.fullmatch(at or "")
    if found is None:
        raise ValueError(f"at is {at!r}; write a time of day such as 09:00 or 17:30")
    return f"{found[2]} {found[1]} * * *"


def _checked(cron: str) -> str:
    """The expression, if it is one."""
    try:
        never = next(CronSim(cron, EPOCH), None) is None
        mistake = "never comes" if never else "has seconds" if len(cron.split()) > 5 else ""
    except (CronSimError, ValueError) as error:
        mistake = str(error).lower()
    if mistake:
        fields = "minute, hour, day of the month, month and day of the week"
        raise ValueError(f'cron is {cron!r} ({mistake}); write {fields}, such as "0 9 * * mon-fri"')
    return cron


@lru_cache(4_096)
def _next_ms(expression: str, zone: str, after_minute: int) -> int | None:
    """The first time after this minute since 1970; it is kept, for timers are set anew at every pause."""
    after = (EPOCH + timedelta(minutes=after_minute)).astimezone(_zone(zone))
    times = ((time - EPOCH) // timedelta(milliseconds=1) for time in CronSim(expression, after))
    return next((time_ms for time_ms in times if time_ms > after_minute * MINUTE_MS), None)


@cache
def _zone(name: str) -> ZoneInfo:
    """The zone as the `tzdata` package tells it, not the machine: a replay finds the same times anywhere."""
    return ZoneInfo.from_file(BytesIO(files("tzdata").joinpath("zoneinfo", name).read_bytes()), key=name)
