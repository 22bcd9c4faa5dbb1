"""Makes a recording of a part of the events topic, or of one session.

It begins a little before what was asked for, where the partition's record is known, and ends where everything is judged
and durable: what followed from each event is in it, and nothing of what did not.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from contextengine import __version__
from contextengine.errors import ConfigurationError, UndecodableRecord
from contextengine.replay.evidence import ATTEMPT, CANCELLATION, DECISION, OUTCOME, RETRY, Evidence
from contextengine.replay.opening import StateUnknown
from contextengine.replay.recording import Header, LogRecord, Output, Recording
from contextengine.replay.source import opened
from contextengine.schemas.events import PARTITION_EVENTS, RulesChanged
from contextengine.topics.intake import event_in
from contextengine.topics.trace import TRACE

if TYPE_CHECKING:
    from aiokafka import ConsumerRecord

    from contextengine.replay.source import Part, Source
    from contextengine.replay.span import Span
    from contextengine.schemas.events import AnyEvent
    from contextengine.settings import Settings

ORDER: Final = (ATTEMPT, CANCELLATION, RETRY, OUTCOME, DECISION)
"""In which a worker writes what follows from one event."""


async def record(
    settings: Settings, span: Span, *, progress: Callable[[int, Recording], None] | None = None
) -> tuple[Recording, int]:
    """The recording, and how many events that were asked for no worker has durably judged yet: they are not in it.

    `progress` hears of each partition when it is done. Raises ConfigurationError when there is nothing to record.
    """
    unjudged = before = 0
    async with opened(settings) as source:
        recording = Recording(
            Header(
                engine=__version__,
                log_id=source.log_id,
                topic=source.topics.events.name,
                partitions=source.partitions,
                rules={},
            )
        )
        async for part in source.parts(span):
            recorder = _Recorder(recording, source, part)
            await recorder.run()
            unjudged += part.unjudged
            before += recorder.before
            if progress is not None:
                progress(part.number, recording)
    if not any(_is_of_a_session(of) for of in recording.records):
        asked = f"session {span.session_id!r} has no event" if span.session_id else "there is no event of a session"
        why = f"; {unjudged} events there are not judged yet: does a worker run?" if unjudged else ""
        why += f"; {before} lie before the oldest state of their session that is left" if before else ""
        raise ConfigurationError(f"{asked} in that part of {recording.header.topic}{why}")
    return recording, unjudged


def _is_of_a_session(record: LogRecord) -> bool:
    return record.event is not None and not isinstance(record.event, PARTITION_EVENTS)


class _Recorder:
    """Adds one part of a partition to a recording."""

    def __init__(self, recording: Recording, source: Source, part: Part) -> None:
        self._recording = recording
        self._source = source
        self._part = part
        self._outputs = _by_cause(part.evidence)
        self._only = part.evidence.session_id
        self._now_ms = part.opening.partition.now_ms
        self._begun: dict[str, int] = {}
        """Of each session seen, the offset up to which its starting state has come."""
        self.before = 0
        """Events that are not recorded, because their session's starting state knows of them."""

    async def run(self) -> None:
        """Add the partition's record, the states that sessions begin with, and every record that is meant."""
        header, number, opening = self._recording.header, self._part.number, self._part.opening
        self._recording.partitions[number] = copy.copy(opening.partition)
        header.ranges[number] = (opening.start, self._part.end)
        self._know_rules(opening.partition.rules_hash)
        async for record in self._source.events(self._part):
            self._take(record)

    def _take(self, record: ConsumerRecord) -> None:
        self._now_ms = max(self._now_ms, record.timestamp)
        if self._only is not None and record.key not in (None, self._only.encode()):
            return
        trace = next((value for name, value in record.headers if name == TRACE), None) or b""
        told = {
            "partition": record.partition,
            "offset": record.offset,
            "appended_ms": self._now_ms,
            "traceparent": trace.decode(errors="replace"),
        }
        try:
            event = event_in(record, record.partition, self._source.partitions, self._source.codec.decode)
        except UndecodableRecord:
            if self._only is None or record.key is not None:
                self._recording.records.append(LogRecord(**told, key=record.key, value=record.value))
            return
        if isinstance(event, RulesChanged):
            self._know_rules(event.rules_hash)
        elif not isinstance(event, PARTITION_EVENTS) and record.offset <= self._begin(event):
            self.before += 1
            return
        outputs = self._outputs.get(record.offset, ())
        self._recording.records.append(LogRecord(**told, event=event, outputs=tuple(outputs)))

    def _begin(self, event: AnyEvent) -> int:
        """Up to which offset the starting state of the event's session has come, -1 when it begins here."""
        session_id: str = event.session_id  # type: ignore[union-attr]
        if session_id not in self._begun:
            self._begun[session_id] = -1
            try:
                session = self._part.opening.session(event)  # type: ignore[arg-type]
            except StateUnknown as unknown:
                self._recording.header.incomplete[session_id] = str(unknown)
            else:
                if session is not None:
                    self._recording.sessions[session_id] = session
                    self._begun[session_id] = session.offset
        return self._begun[session_id]

    def _know_rules(self, rules_hash: str) -> None:
        if rules_hash in self._source.rules:
            self._recording.header.rules[rules_hash] = self._source.rules[rules_hash]


def _by_cause(evidence: Evidence) -> dict[int, list[Output]]:
    """What was written because of each event, in the order in which a worker writes it; a copy that differs, too."""
    found: defaultdict[int, list[tuple[int, Output]]] = defaultdict(list)
    for (what, _, _), written in evidence.outputs.items():
        for cause in written.causes:
            if cause is not None:
                for value in (written.value, *written.others):
                    found[cause].append((ORDER.index(what), cast("Output", value)))
    return {
        cause: [output for _, output in sorted(outputs, key=lambda one: one[0])] for cause, outputs in found.items()
    }
