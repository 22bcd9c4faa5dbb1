"""Is everything there that must be, and nothing else? A range of the events topic is judged again and compared.

For each event up to where its partition is durably judged, what a fresh replay says is held against what was written:

    outputs       each attempt, cancellation, retry, outcome and explanation: there, equal, in order, and no other
    outcomes      each injection accepted has exactly one, or is open: it waits, is in flight, or rests
    verdicts      each verdict on an attempt was reported, with the same words
    dead letters  each bad record with its bytes unchanged, each injection that died
    states        each session's newest state in the changelog is the replayed one; none outlives its session

Copies, which a redelivery makes, are counted; copies that differ are findings. What is beyond the durable floor of its
partition may still be on its way, and is only counted (`unjudged`), as is what is open. What may have been deleted with
the start of its topic is only noted. An audit that has judged nothing has not passed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec import Struct

from contextengine import __version__
from contextengine.errors import UndecodableRecord
from contextengine.replay.difference import first_difference
from contextengine.replay.evidence import (
    ATTEMPT,
    CANCELLATION,
    LETTER,
    OUTCOME,
    RETRY,
    VERDICT,
    Letter,
    name_of,
    verdict_name,
)
from contextengine.replay.opening import StateUnknown
from contextengine.replay.partition import PartitionReplay, RuleSets, outputs_of
from contextengine.replay.report import DIFFERS, MISSING, OUT_OF_ORDER, UNEXPECTED, Finding, Report
from contextengine.replay.source import opened
from contextengine.replay.span import Span
from contextengine.schemas.dead_letter import Stage as DeadStage
from contextengine.schemas.events import PARTITION_EVENTS, AttemptReported, PartitionAssigned
from contextengine.schemas.injection import InjectionAttempt
from contextengine.schemas.session import STATE_VERSION, Session, Stage, dump_state, load_state
from contextengine.topics.intake import event_in

if TYPE_CHECKING:
    from aiokafka import ConsumerRecord

    from contextengine.engine.decision import Decision
    from contextengine.replay.evidence import Name
    from contextengine.replay.source import Part
    from contextengine.schemas.events import ConversationEvent, SessionFeedback
    from contextengine.settings import Settings


async def audit(
    settings: Settings, span: Span | None = None, *, progress: Callable[[int, Report], None] | None = None
) -> Report:
    """Judge a part of the events topic again (all of it by default), and compare it with everything that was written.

    `progress` hears of each partition when it is done. Raises BrokerUnavailable, and ConfigurationError for topics that
    are not there or rules that cannot be read.
    """
    span, report = span or Span(), Report()
    async with opened(settings) as source:
        rule_sets = RuleSets(source.rules)
        async for part in source.parts(span):
            await source.read_verdicts(part)
            await source.read_letters(part)
            report.unjudged += part.unjudged
            work = _PartitionAudit(part, rule_sets, report, source.partitions)
            async for record in source.events(part):
                work.take(record)
            if work.unreported():
                async for record in source.later_events(part):
                    work.overhear(record)
            work.settle()
            if progress is not None:
                progress(part.number, report)
    if not report.has_judged:
        asked = "that part of the log" if span.session_id is None else f"session {span.session_id!r}"
        why = f"; {report.unjudged} events wait for a worker: does one run?" if report.unjudged else ""
        report.notes.append(f"nothing was judged: {asked} has no event that could be{why}")
    return report


class _PartitionAudit:
    """The audit of one partition: takes its events in order, then says what is wrong."""

    def __init__(self, part: Part, rule_sets: RuleSets, report: Report, partitions: int) -> None:
        opening, evidence, session_id = part.opening, part.evidence, part.evidence.session_id
        self._opening = opening
        self._evidence = evidence
        self._report = report
        self._only = None if session_id is None else session_id.encode()
        self._partitions = partitions
        self._number = part.number
        self._replay = PartitionReplay(opening.partition, {}, rule_sets)
        self._begun: dict[str, int] = {}
        """Of each session seen, the offset up to which its starting state has come."""
        self._judged: set[str] = set()
        """Sessions of which an event was judged."""
        self._attempted: dict[tuple[str, str], tuple[int, int]] = {}
        """Of each attempt made here, by its session and name, the offset and time of the event that led to it."""
        self._reports: dict[Name, AttemptReported] = {}
        self._later_reports: dict[Name, AttemptReported] = {}
        """Those that lie behind what is judged here."""
        self._accepted: dict[str, str] = {}
        """Injections that were accepted here and have not ended, with their session."""
        self._ended: set[str] = set()
        self._expected = 0
        self._letters: dict[tuple[int, str], list[Letter]] = defaultdict(list)
        for letter in evidence.letters:
            self._letters[letter.offset, letter.stage].append(letter)
        self._deleted: Counter[str] = Counter()
        """What is missing, and may have been deleted with the start of its topic."""
        self._end = part.end

    def take(self, record: ConsumerRecord) -> None:
        """Judge the next record again, and hold what follows against what was written."""
        event = None
        if self._only is None or record.key in (None, self._only):
            self._report.events += 1
            try:
                event = event_in(record, record.partition, self._partitions, self._evidence.decode)
            except UndecodableRecord:
                if self._only is None or record.key is not None:
                    self._report.undecodable += 1
                    self._expect_letter(record, DeadStage.DECODE)
        if isinstance(event, PartitionAssigned) and event.engine not in ("", __version__):
            self._note(f"engine {event.engine} judged from offset {record.offset} on; this is {__version__}")
        if event is not None and not isinstance(event, PARTITION_EVENTS) and not self._can_judge(event):
            event = None
        decision = self._replay.judge(record.offset, record.timestamp, event)
        if isinstance(event, AttemptReported):
            self._hear(event, record.offset)
        if decision is not None:
            self._compare(record, decision)

    def unreported(self) -> list[Name]:
        """The verdicts on attempts made here that no event here reports, though the attempt is over."""
        return [
            name
            for name in self._evidence.verdicts
            if name[1:] in self._attempted and name not in self._reports and not self._is_in_flight(*name[1:])
        ]

    def overhear(self, record: ConsumerRecord) -> None:
        """Note what an event behind those taken reports."""
        with suppress(UndecodableRecord):
            event = event_in(record, record.partition, self._partitions, self._evidence.decode)
            if isinstance(event, AttemptReported):
                self._later_reports.setdefault(verdict_name(event.verdict), event)

    def settle(self) -> None:
        """Say what is there without a reason, what is not, and what has become of injections and states."""
        report = self._report
        report.sessions += len(self._judged)
        report.copies += sum(written.copies for written in self._evidence.outputs.values())
        report.copies += sum(written.copies for written in self._evidence.verdicts.values())
        self._settle_outputs()
        self._settle_injections()
        self._settle_verdicts()
        self._settle_letters()
        self._settle_states()
        self._settle_partition()
        for topic, offset, why in [*self._evidence.strange, *self._opening.states.strange]:
            self._note(f"{topic} offset {offset} is no record of ours: {why}")
        for what, count in self._deleted.items():
            self._note(f"{what}: {count} are not there any more, their topic has lost its start")
        if self._opening.states.oldest_shape < STATE_VERSION:
            self._note(
                f"states were written in version {self._opening.states.oldest_shape}, which cannot hold all: a rule"
                " whose `when` has changed may count otherwise after a restore than it does here"
            )

    # While events come

    def _can_judge(self, event: ConversationEvent | SessionFeedback) -> bool:
        """Whether the state of the event's session is known; with its first event here it gets its starting state."""
        session_id = event.session_id
        if session_id not in self._begun:
            self._begun[session_id] = -1
            try:
                session = self._opening.session(event)
            except StateUnknown as unknown:
                self._report.unknown[session_id] = str(unknown)
            else:
                if session is not None:
                    self._replay.sessions[session_id] = session
                    self._begun[session_id] = session.offset
                    self._accepted |= dict.fromkeys(session.held, session_id)
        return session_id not in self._report.unknown

    def _hear(self, event: AttemptReported, offset: int) -> None:
        verdict = event.verdict
        name = verdict_name(verdict)
        first = self._reports.setdefault(name, event)
        if first is not event:
            self._report.copies += 1
            self._unless_equal("report", offset, verdict.session_id, name[2], first.verdict, verdict)

    def _compare(self, record: ConsumerRecord, decision: Decision) -> None:
        report = self._report
        session_id = (record.key or b"").decode()
        self._judged.add(session_id)
        report.decisions += decision.explanation is not None
        report.attempts += len(decision.attempts)
        report.outcomes += len(decision.results)
        for output in outputs_of(decision):
            self._expect(output, record)
        for acceptance in decision.accepted:
            report.injections += 1
            self._accepted[acceptance.injection_id] = session_id
        for result in decision.results:
            if self._accepted.pop(result.injection_id, None) is None:
                again = "a second outcome" if result.injection_id in self._ended else "an outcome of nothing accepted"
                self._find(UNEXPECTED, OUTCOME, record.offset, session_id, result.injection_id, found=again)
            self._ended.add(result.injection_id)
        if decision.defect:
            self._note(f"the engine fails on the event at offset {record.offset}: {decision.defect}")
            self._expect_letter(record, DeadStage.DECIDE)
        for dead in decision.dead:
            report.dead_letters += 1
            self._expect_dead(record, dead.attempt)

    def _expect(self, output: Struct, record: ConsumerRecord) -> None:
        name = name_of(output)
        what, session_id, told = name
        if what == ATTEMPT:
            self._attempted[session_id, told] = record.offset, record.timestamp
        written = self._evidence.outputs.get(name)
        if written is None or written.causes.isdisjoint({record.offset, None}):
            self._miss(what, what, record.offset, record.timestamp, session_id, told)
            return
        if not written.expected:
            self._expected += 1
            written.place = self._expected
        written.expected.add(record.offset)
        self._unless_equal(what, record.offset, session_id, told, output, written.value)

    def _expect_letter(self, record: ConsumerRecord, stage: DeadStage) -> None:
        letters = self._letters.pop((record.offset, stage.value), [])
        self._report.dead_letters += 1
        self._report.copies += max(0, len(letters) - 1)
        if not letters:
            self._miss(LETTER, f"{LETTER} ({stage})", record.offset, record.timestamp)
        for letter in letters:
            if (letter.key or b"") != (record.key or b""):
                self._find(DIFFERS, "dead letter", record.offset, field="key", expected=repr(record.key))
            if not letter.keeps(record.value):
                self._find(DIFFERS, "dead letter", record.offset, field="value", expected="the record's own bytes")

    def _expect_dead(self, record: ConsumerRecord, attempt: InjectionAttempt) -> None:
        letters = self._letters.pop((record.offset, DeadStage.DELIVER.value), [])
        mine, rest = [], []
        for letter in letters:
            body = self._attempt_in(letter)
            if body is not None and body.injection.injection_id == attempt.injection.injection_id:
                mine.append(body)
            else:
                rest.append(letter)
        if rest:
            self._letters[record.offset, DeadStage.DELIVER.value] = rest
        injection_id = attempt.injection.injection_id
        if not mine:
            what = f"{LETTER} ({DeadStage.DELIVER})"
            self._miss(LETTER, what, record.offset, record.timestamp, attempt.session_id, injection_id)
        self._report.copies += max(0, len(mine) - 1)
        for body in mine:
            self._unless_equal("dead letter", record.offset, attempt.session_id, injection_id, attempt, body)

    def _attempt_in(self, letter: Letter) -> InjectionAttempt | None:
        try:
            body = self._evidence.decode(letter.value or b"")
        except UndecodableRecord:
            return None
        return body if isinstance(body, InjectionAttempt) else None

    # When all have come

    def _settle_outputs(self) -> None:
        last: dict[tuple[str, str], int] = {}
        for (what, session_id, told), written in self._evidence.outputs.items():
            for cause in written.causes - written.expected:
                if self._belongs_here(session_id, cause) and not (cause is None and written.expected):
                    self._find(UNEXPECTED, what, cause, session_id, told)
            if not written.expected:
                continue
            offset = min(written.expected)
            for other in written.others:
                self._unless_equal(f"copy of the {what}", offset, session_id, told, written.value, other)
            if what != RETRY:  # one that rests on comes again, later, with the same name
                order = "" if what in (ATTEMPT, CANCELLATION) else what  # these two share a topic
                if written.place < last.get((session_id, order), 0):
                    self._find(OUT_OF_ORDER, what, offset, session_id, told)
                last[session_id, order] = max(written.place, last.get((session_id, order), 0))

    def _belongs_here(self, session_id: str, cause: int | None) -> bool:
        """Whether an output that the event at `cause` does not ask for, as judged here, would have to be asked for."""
        if session_id in self._report.unknown:
            return False
        begun = self._begun.get(session_id, self._opening.start - 1)
        if cause is None:  # nobody says why it was written
            return self._opening.start == 0 and begun < 0
        return max(begun, self._opening.start - 1) < cause < self._end

    def _settle_injections(self) -> None:
        for injection_id, session_id in self._accepted.items():
            session = self._replay.sessions.get(session_id)
            if session is not None and injection_id in session.held:
                self._report.open += 1
            else:
                self._find(MISSING, OUTCOME, None, session_id, injection_id, found="it is not open either")

    def _settle_verdicts(self) -> None:
        for name, written in self._evidence.verdicts.items():
            _, session_id, told = name
            for other in written.others:
                self._unless_equal("copy of the verdict", None, session_id, told, written.value, other)
            if name[1:] not in self._attempted:
                continue  # of an attempt before or after what is judged here
            self._report.verdicts += 1
            reported = self._reports.get(name) or self._later_reports.get(name)
            if reported is not None:
                self._unless_equal("report", None, session_id, told, written.value, reported.verdict)
        for name in self.unreported():
            if name not in self._later_reports:
                self._find(MISSING, "report", None, *name[1:])
        for name in self._reports:
            if name not in self._evidence.verdicts and name[1:] in self._attempted:
                self._miss(VERDICT, VERDICT, *self._attempted[name[1:]], *name[1:])

    def _is_in_flight(self, session_id: str, told: str) -> bool:
        session = self._replay.sessions.get(session_id)
        injection_id, _, attempt = told.partition("/")
        held = session.held.get(injection_id) if session is not None else None
        return held is not None and held.stage is Stage.IN_FLIGHT and held.attempt == int(attempt)

    def _settle_letters(self) -> None:
        for (offset, stage), letters in self._letters.items():
            session_id = (letters[0].key or b"").decode(errors="replace")
            begun = self._begun.get(session_id, -1)
            is_known = self._only is None and session_id not in self._report.unknown
            if is_known and max(begun + 1, self._opening.start) <= offset < self._end:
                self._find(UNEXPECTED, f"{LETTER} ({stage})", offset, session_id)

    def _settle_states(self) -> None:
        states, sessions = self._opening.states, self._replay.sessions
        for session_id, begun in self._begun.items():
            if session_id in self._report.unknown:
                continue
            newest, session = states.newest.get(session_id.encode()), sessions.get(session_id)
            if newest is not None and newest.offset >= self._end:
                continue  # of an event that is not judged here
            if newest is None or newest.body is None:
                if session is not None and session.offset != begun:
                    self._find(MISSING, "state", session.offset, session_id)
                continue
            self._report.states += 1
            if session is None:
                self._find(UNEXPECTED, "state", newest.offset, session_id, found="the session is forgotten")
            elif newest.offset != session.offset:
                told = {"expected": f"offset {session.offset}", "found": f"offset {newest.offset}"}
                self._find(DIFFERS, "state", session.offset, session_id, field="last applied", **told)
            else:
                self._compare_states(session, newest.body)
        for key, newest in states.newest.items():
            session_id = key.decode(errors="replace")
            here = self._opening.start <= newest.offset < self._end and self._only in (None, key)
            if here and newest.body is not None and session_id not in self._begun:
                self._find(UNEXPECTED, "state", newest.offset, session_id, found="no event of that session is there")

    def _compare_states(self, session: Session, body: bytes) -> None:
        """Equal byte for byte, or in all that the older version can hold: what that lacks is lost in a restore."""
        if dump_state(session) == body:
            return
        try:
            found = load_state(body)
        except UndecodableRecord as error:
            self._find(DIFFERS, "state", session.offset, session.session_id, found=str(error))
            return
        older = [dump_state(state, STATE_VERSION - 1) for state in (session, found)]
        if older[0] != older[1]:
            self._unless_equal("state", session.offset, session.session_id, "", session, found)

    def _settle_partition(self) -> None:
        newest, replayed = self._opening.states.partition_newest, self._replay.partition
        if newest is not None and newest.floor == replayed.floor and self._opening.is_known:
            self._unless_equal("partition record", newest.floor, "", "", replayed, newest)

    # Findings

    def _miss(self, kind: str, what: str, offset: int, time_ms: int, session_id: str = "", name: str = "") -> None:
        """Something that must follow from this event is not there."""
        if self._evidence.may_lack(kind, offset, time_ms):
            self._deleted[what] += 1
        else:
            self._find(MISSING, what, offset, session_id, name)

    def _unless_equal(
        self, what: str, offset: int | None, session_id: str, name: str, expected: Struct, found: Struct
    ) -> None:
        if expected == found:
            return
        difference = first_difference(expected, found)
        if difference is not None:
            field, before, after = difference
            self._find(DIFFERS, what, offset, session_id, name, field=field, expected=before, found=after)

    def _find(
        self, problem: str, what: str, offset: int | None, session_id: str = "", name: str = "", **told: str
    ) -> None:
        """`told` are a Finding's `field`, `expected` and `found`."""
        of = Finding(
            problem=problem, what=what, partition=self._number, offset=offset, session_id=session_id, name=name, **told
        )
        self._report.findings.append(of)

    def _note(self, text: str) -> None:
        self._report.notes.append(f"partition {self._number}: {text}")
