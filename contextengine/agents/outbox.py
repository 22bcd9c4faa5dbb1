"""Outputs in record batches: what a batch of events causes goes out in a few requests, not in one for each output.

Outputs belong to the partition of the events that caused them. Its next flush waits until the broker has them all,
and only then writes the state that says they were made.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from aiokafka import errors as kafka
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from contextengine.errors import BrokerUnavailable, RecordRefused
from contextengine.tables.live import record_batches
from contextengine.topics.errand import REFUSES_THE_RECORD

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping, Sequence

    import faust

    from contextengine.tables.live import Headers

SEND_AFTER_S: Final = 0.005
SEND_AFTER_RECORDS: Final = 256
FEW_RECORDS: Final = 8
SMALL_BYTES: Final = 8 * 1024
"""Few small outputs join the batch that waits in the producer. A batch of our own would wait until that one is on its
way, a request or two later, and all partitions with it."""
DEFAULT_MAX_BYTES: Final = 1_000_000
"""Kafka's own limit for a record, less a little."""


_Output: TypeAlias = "tuple[bytes | None, bytes | None, Headers]"
"""Key, value and headers."""


@dataclass(slots=True)
class _Unsent:
    """Outputs of one input partition that are not on their way, by topic and partition; due at a monotonic time."""

    due_s: float
    count: int = 0
    outputs: defaultdict[tuple[str, int], list[_Output]] = field(default_factory=lambda: defaultdict(list))


class Sent(NamedTuple):
    """Outputs on their way."""

    topic: str
    partition: int
    records: int
    acknowledged: Awaitable[object]


class Outbox:
    """Collects outputs, sends them in record batches, and knows what is still unacknowledged.

    `max_bytes` is the `max.message.bytes` of the topics that do not have Kafka's default.
    """

    def __init__(self, app: faust.App, max_bytes: Mapping[str, int] | None = None) -> None:
        self._app: Any = app
        self._max_bytes = max_bytes or {}
        self._unsent: dict[int, _Unsent] = {}
        self._sent: defaultdict[int, list[Sent]] = defaultdict(list)
        self._closed = False

    def add(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        *,
        caused_by: int | None = None,
    ) -> None:
        """Have a record sent to a partition of a topic; `caused_by` is the input partition, if it is not the same.

        RecordRefused, naming the record, when it is larger than its topic allows.
        """
        limit = self._max_bytes.get(topic, DEFAULT_MAX_BYTES)
        if len(key or b"") + len(value or b"") > limit // 2:
            size = DefaultRecordBatchBuilder.estimate_size_in_bytes(key, value, list(headers))
            if size > limit:
                raise RecordRefused(
                    f"{topic} partition {partition}: a record with key {(key or b'')[:64]!r} has {size} bytes,"
                    f" allowed are {limit}"
                )
        cause = partition if caused_by is None else caused_by
        unsent = self._unsent.get(cause)
        if unsent is None:
            unsent = self._unsent[cause] = _Unsent(time.monotonic() + SEND_AFTER_S)
        unsent.outputs[topic, partition].append((key, value, headers))
        unsent.count += 1

    def is_due(self, partition: int) -> bool:
        """Whether the outputs of an input partition have waited long enough, or are enough, to be sent."""
        unsent = self._unsent.get(partition)
        return unsent is not None and (unsent.count >= SEND_AFTER_RECORDS or time.monotonic() >= unsent.due_s)

    async def send(self, partition: int) -> None:
        """Send the outputs of an input partition; on return the next flush waits for them."""
        unsent = self._unsent.pop(partition, None)
        if unsent is None or self._closed:
            return
        producer = self._app.producer._producer  # noqa: SLF001
        sent = self._sent[partition]
        for (topic, target), outputs in unsent.outputs.items():
            if len(outputs) <= FEW_RECORDS and all(0 < len(value or b"") <= SMALL_BYTES for _, value, _ in outputs):
                for key, value, headers in outputs:
                    acknowledged = await producer.send(topic, value, key, partition=target, headers=list(headers))
                    sent.append(Sent(topic, target, 1, acknowledged))
                continue
            for batch in record_batches(producer, outputs):
                acknowledged = await producer.send_batch(batch, topic, partition=target)
                sent.append(Sent(topic, target, batch.record_count(), acknowledged))

    def take(self, partition: int) -> list[Sent]:
        """What is on its way since the last call."""
        return self._sent.pop(partition, [])

    def put_back(self, partition: int, sent: list[Sent]) -> None:
        """Undo a `take`."""
        self._sent[partition][:0] = sent

    def close(self) -> None:
        """Send nothing from now on: with a gap in front of it, it would be out of order."""
        self._closed = True
        for partition in {*self._unsent, *self._sent}:
            self.forget(partition)

    def forget(self, partition: int) -> None:
        """Drop what is unsent, and no longer ask what became of the rest."""
        self._unsent.pop(partition, None)
        for output in self.take(partition):
            asyncio.ensure_future(output.acknowledged).add_done_callback(_look_away)


async def acknowledged(sent: Sequence[Sent]) -> None:
    """Wait until the broker has answered all outputs; the first that it has not taken is a `failure`."""
    answers = await asyncio.gather(*(output.acknowledged for output in sent), return_exceptions=True)
    for output, error in zip(sent, answers, strict=True):
        if isinstance(error, BaseException):
            raise failure(output.topic, output.partition, output.records, error) from error


def failure(topic: str, partition: int, records: int, error: BaseException) -> BaseException:
    """What it means that records were not taken: RecordRefused, or BrokerUnavailable.

    A refused batch takes its sequence number with it, so what this producer sends to that partition later is out of
    order. That is no refusal: the worker ends, and begins again with another producer.
    """
    if isinstance(error, (*REFUSES_THE_RECORD, kafka.TopicAuthorizationFailedError)):
        return RecordRefused(f"{topic} partition {partition} refuses {records} records: {error!r}")
    if isinstance(error, kafka.KafkaError | OSError):
        return BrokerUnavailable(f"{topic} partition {partition}: {error!r}")
    return error


def _look_away(future: asyncio.Future[object]) -> None:
    if not future.cancelled():
        future.exception()
