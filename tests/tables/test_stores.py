from __future__ import annotations

from typing import Any

import faust
import pytest
from faust.types import TP
from kept_log import Json, Log, new_table

from contextengine.errors import SettingsInvalid
from contextengine.tables.live import LiveTable


async def test_partitions_do_not_see_each_other(table):
    store = table._store
    store.write(0, {b"k": b"zero"}, 7)
    store.write(1, {b"k": b"one"}, 3)
    assert store.read(0, b"k") == b"zero"
    assert store.contents(1) == [(b"k", b"one")]
    store.write(0, {b"k": None}, 8)
    assert store.read(0, b"k") is None
    assert store.read(1, b"k") == b"one"


async def test_memory_drops_the_partitions_that_are_lost_and_keeps_those_that_stay():
    """Faust reads a partition that stays from where its last recovery ended, so what came before must be there."""
    table = new_table()
    for partition in (0, 1):
        table._store.write(partition, {b"k": b"v"}, 0)
    lost = {TP(table.changelog_topic, 1), TP("some-other-topic", 0)}
    await table.faust_table.on_rebalance({TP(table.changelog_topic, 0)}, lost, set(), 2)
    await table.faust_table.on_recovery_completed({TP(table.changelog_topic, 0)}, set())
    assert table._store.contents(0) == [(b"k", b"v")]
    assert table._store.contents(1) == []


async def test_rocksdb_remembers_how_far_it_has_come(tmp_path):
    table = new_table("rocksdb://", str(tmp_path))
    table.put(0, b"k", "state", 5)
    log = Log()
    await table.write(table.snapshot(0, 1, log), log)
    table.put(0, b"k", "later", 6)
    await table.write(table.snapshot(0, 1, log), log)
    assert table.faust_table.persisted_offset(TP(table.changelog_topic, 0)) == 1
    table._store._dbs.clear()
    again = new_table("rocksdb://", str(tmp_path))
    assert again.get(0, b"k") == "later"
    assert list(again.items(0)) == [(b"k", "later")]


async def test_faust_itself_writes_nothing_into_a_store(table):
    table.faust_table.apply_changelog_batch([object()])
    assert table._store.contents(0) == []


async def test_an_unknown_store_is_refused_by_name():
    app: Any = faust.App("unit")
    with pytest.raises(SettingsInvalid, match="redis"):
        _ = LiveTable(app, "states", Json(), store="redis://")._store
