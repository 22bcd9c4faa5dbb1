"""Where a Faust table keeps its changelog's values: by partition, in memory or in RocksDB.

Faust's own stores find a key's partition by the event that is being processed, or not at all; these are told. What they
hold is what the broker has acknowledged, never more: a flush writes here only after its records are acknowledged.
Faust's recovery loop writes nothing into them (the transport has done so, in bulk, before the loop sees a record).
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Protocol

import rocksdict
from faust.stores import memory, rocksdb
from faust.tables.table import Table
from faust.types import TP

from contextengine.errors import SettingsInvalid

if TYPE_CHECKING:
    from collections.abc import Mapping


class PartitionStore(Protocol):
    """The values of a changelog, by partition and key."""

    def read(self, partition: int, key: bytes) -> bytes | None:
        """The value of `key`, or None."""

    def write(self, partition: int, values: Mapping[bytes, bytes | None], changelog_offset: int) -> None:
        """Store `values` (None removes a key); `changelog_offset` is where the last of them is in the changelog."""

    def contents(self, partition: int) -> list[tuple[bytes, bytes]]:
        """Every key and value of a partition."""


class MemoryStore(memory.Store[bytes, bytes]):
    """A dictionary for each partition; a partition that another worker has taken over is dropped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._partitions: defaultdict[int, dict[bytes, bytes]] = defaultdict(dict)

    def read(self, partition: int, key: bytes) -> bytes | None:
        """See PartitionStore."""
        return self._partitions[partition].get(key)

    def write(self, partition: int, values: Mapping[bytes, bytes | None], changelog_offset: int) -> None:  # noqa: ARG002
        """See PartitionStore."""
        held = self._partitions[partition]
        for key, value in values.items():
            if value is None:
                held.pop(key, None)
            else:
                held[key] = value

    def contents(self, partition: int) -> list[tuple[bytes, bytes]]:
        """See PartitionStore."""
        return list(self._partitions[partition].items())

    def apply_changelog_batch(self, *_batch: Any, **_conversions: Any) -> None:
        """Nothing: see the module's docstring."""

    async def on_rebalance(
        self, assigned: set[TP], revoked: set[TP], newly_assigned: set[TP], generation_id: int = 0
    ) -> None:
        """Drop the partitions that are gone."""
        # Not those that were only revoked: Faust reads a partition that stays from where its last recovery ended.
        await super().on_rebalance(assigned, revoked, newly_assigned, generation_id)
        for tp in revoked:
            if tp.topic in self.table.changelog_topic.topics:
                self._partitions.pop(tp.partition, None)

    async def on_recovery_completed(self, active_tps: set[TP], standby_tps: set[TP]) -> None:
        """Nothing: what is not owned was dropped when it was lost."""


class RocksStore(rocksdb.Store):
    """A RocksDB database for each partition, in Faust's table folder; a restart reads only what is newer than it."""

    def read(self, partition: int, key: bytes) -> bytes | None:
        """See PartitionStore."""
        value: bytes | None = self._db_for_partition(partition).get(key)
        return value

    def write(self, partition: int, values: Mapping[bytes, bytes | None], changelog_offset: int) -> None:
        """See PartitionStore."""
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in values.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        batch.put(self.offset_key, str(changelog_offset).encode())
        self._db_for_partition(partition).write(batch)

    def contents(self, partition: int) -> list[tuple[bytes, bytes]]:
        """See PartitionStore."""
        return list(self._visible_items(self._db_for_partition(partition)))

    def apply_changelog_batch(self, *_batch: Any, **_conversions: Any) -> None:
        """Nothing: see the module's docstring."""


_STORES = {"memory": MemoryStore, "rocksdb": RocksStore}


class ChangelogTable(Table[bytes, bytes]):
    """A Faust table for its changelog, its place in the assignment and its recovery; read and written by partition."""

    def _new_store(self) -> Any:
        # Faust tests the URL for truth, and "rocksdb://" is false: it would quietly be in memory.
        url = self.app.conf.store if self._store is None else self._store
        if url.scheme not in _STORES:
            raise SettingsInvalid(f"table {self.name}: store {url} is none of {', '.join(_STORES)}")
        return _STORES[url.scheme](
            url,
            self.app,
            self,
            table_name=self.name,
            key_type=self.key_type,
            key_serializer=self.key_serializer,
            value_serializer=self.value_serializer,
            value_type=self.value_type,
            loop=self.loop,
            options=self.options,
        )
