"""A state that changes in the flush in which its rewriting is due."""

from __future__ import annotations

import json

import pytest
from kept_log import Log, new_table

from contextengine.schemas.session import STATE_HEADER
from contextengine.tables import live

PARTITION = 3


@pytest.mark.parametrize("store", ["memory://", "rocksdb://"])
async def test_the_rewriting_of_what_has_not_changed_never_overwrites_what_has(store, tmp_path, monkeypatch):
    """Compaction keeps the last record of a key, so the newest state must be it."""
    table, log = new_table(store, str(tmp_path)), Log()
    clock = [1_000.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: clock[0])
    for number in (1, 2):
        table.put(PARTITION, b"k", {"n": number}, number)
        async with table.lock(PARTITION):
            snapshot = table.snapshot(PARTITION, 1, log)
        await table.write(snapshot, log)
        clock[0] += live.REWRITE_AFTER_S + 1
    newest = [record.value[STATE_HEADER.size :] for record in log.records[table.changelog_topic, PARTITION]]
    assert [json.loads(value) for value in newest] == [{"n": 1}, {"n": 2}]
    assert json.loads(table._store.read(PARTITION, b"k")[STATE_HEADER.size :]) == {"n": 2}
