"""A worker that counts the events of each key: the smallest use of the fast path, run by the tests as a process.

Every event is an output, named by its value; the state of a key is how many events it has had and up to which offset.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from typing import Any

import faust
from faust.worker import Worker

from contextengine.agents.outbox import Outbox
from contextengine.agents.transport import FAUST_SETTINGS, BatchTopic, install
from contextengine.tables.live import LiveTable


class Json:
    """A state as JSON."""

    def encode(self, state: Any) -> bytes:
        """See StateCodec."""
        return json.dumps(state).encode()

    def decode(self, body: bytes) -> Any:
        """See StateCodec."""
        return json.loads(body)


def events(prefix: str) -> str:
    return f"{prefix}.events"


def outputs(prefix: str) -> str:
    return f"{prefix}.outputs"


def changelog(prefix: str) -> str:
    return f"{prefix}-counts-changelog"


def notes(prefix: str) -> str:
    return f"{prefix}.notes"


class Counting:
    """The app, its table and outbox, what was delivered, and what the hooks were told."""

    def __init__(
        self,
        broker: str,
        prefix: str,
        *,
        idempotent: bool = False,
        store: str = "memory://",
        datadir: str | None = None,
        on_event: Callable[[Any], None] | None = None,
        **settings: Any,
    ) -> None:
        self.app = faust.App(
            prefix,
            broker=f"kafka://{broker}",
            **{
                **FAUST_SETTINGS,
                "broker_session_timeout": 6.0,
                "broker_heartbeat_interval": 1.0,
                "datadir": datadir or tempfile.mkdtemp(),
                **settings,
            },
        )
        self.table: LiveTable[Any] = LiveTable(self.app, "counts", Json(), store=store)
        self.outbox = Outbox(self.app)
        self.batches: list[list[Any]] = []
        self.hooks: list[tuple[str, frozenset[int]]] = []
        self.topic = BatchTopic(events(prefix), self.table, self.outbox, self.on_assigned, self.on_revoked)
        install(self.app, self.topic, idempotent=idempotent)
        self.outputs = outputs(prefix)
        self.on_event = on_event
        topic = self.app.topic(self.topic.name, key_serializer="raw", value_serializer="raw")
        self.app.agent(topic, name="count")(self.count)

    async def count(self, stream: Any) -> None:
        """The agent."""
        async for event in stream.events():
            self.batches.append(event.value)
            partition = event.message.partition
            async with self.table.lock(partition):
                for record in event.value:
                    if self.on_event is not None:
                        self.on_event(record)
                    state = self.table.get(partition, record.key) or {"count": 0, "offset": -1}
                    if record.offset <= state["offset"]:
                        continue
                    state["count"] += 1
                    state["offset"] = record.offset
                    self.table.put(partition, record.key, state, record.offset)
                    self.outbox.add(self.outputs, partition, record.key, record.value, [("cx-test", b"1")])
                    if self.outbox.is_due(partition):
                        await self.outbox.send(partition)
                floor = self.table.get_partition(partition) or {"floor": -1}
                self.table.put_partition(partition, {"floor": max(floor["floor"], record.offset)}, record.offset)
                await self.outbox.send(partition)

    async def on_assigned(self, partitions: frozenset[int]) -> None:
        """Remember it."""
        self.hooks.append(("assigned", partitions))

    async def on_revoked(self, partitions: frozenset[int]) -> None:
        """Remember it."""
        self.hooks.append(("revoked", partitions))


def fail_at(poison: str) -> Callable[[Any], None]:
    """An agent with a defect: it raises at this event."""

    def on_event(record: Any) -> None:
        if record.value.decode() == poison:
            raise ValueError(f"the defect at {poison}")

    return on_event


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("broker")
    parser.add_argument("prefix")
    parser.add_argument("--store", default="memory://")
    parser.add_argument("--datadir")
    parser.add_argument("--fail-at")
    parser.add_argument("--idempotent", action="store_true")
    given = parser.parse_args()
    counting = Counting(
        given.broker,
        given.prefix,
        idempotent=given.idempotent,
        store=given.store,
        datadir=given.datadir,
        on_event=fail_at(given.fail_at) if given.fail_at else None,
    )
    Worker(counting.app, loglevel="INFO").execute_from_commandline()


if __name__ == "__main__":
    main()
