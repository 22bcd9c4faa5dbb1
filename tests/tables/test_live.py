from __future__ import annotations

import asyncio
import struct
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kept_log import Log, new_table

from contextengine.errors import RecordRefused, UndecodableRecord
from contextengine.schemas.session import TOMBSTONE_HEADER
from contextengine.tables import live
from contextengine.tables.live import LiveTable, PartitionClosed, partition_key

P = 3


async def flush(table: LiveTable[Any], log: Log, generation: int = 1) -> None:
    async with table.lock(P):
        snapshot = table.snapshot(P, generation, log)
    await table.write(snapshot, log)


def changelog(table: LiveTable[Any], log: Log) -> list[Any]:
    return log.records[table.changelog_topic, P]


def restored(table: LiveTable[Any], *records: Any) -> LiveTable[Any]:
    table.restore(P, list(records))
    table.own(P)
    return table


async def test_a_value_begins_with_offset_and_generation_big_endian(table, log):
    table.put(P, b"k", {"n": 1}, 500)
    await flush(table, log, generation=7)
    (record,) = changelog(table, log)
    assert struct.unpack(">qi", record.value[:12]) == (500, 7)
    assert record.value[12:] == b'{"n": 1}'


async def test_a_state_that_changes_often_is_written_once_for_each_flush(table, log):
    for offset in range(100):
        table.put(P, b"k", {"n": offset}, offset)
    await flush(table, log)
    await flush(table, log)
    assert len(changelog(table, log)) == 1
    table.put(P, b"k", {"n": 100}, 100)
    await flush(table, log)
    assert len(changelog(table, log)) == 2


async def test_a_flush_writes_a_state_as_it_was_under_the_lock(table, log):
    state = {"n": 1}
    table.put(P, b"k", state, 1)
    snapshot = table.snapshot(P, 1, log)
    state["n"] = 2
    await table.write(snapshot, log)
    assert changelog(table, log)[0].value[12:] == b'{"n": 1}'


async def test_the_partitions_own_record_is_written_only_when_all_others_are_acknowledged(table, log):
    log.hold = True
    table.put_partition(P, {"floor": 9}, 9)
    table.put(P, b"k", {"n": 1}, 9)
    writing = asyncio.ensure_future(table.write(table.snapshot(P, 1, log), log))
    await asyncio.sleep(0.01)
    assert [record.key for record in changelog(table, log)] == [b"k"]
    log.hold = False
    log.held[0].set_result(type("Metadata", (), {"offset": 0}))
    await writing
    assert [record.key for record in changelog(table, log)] == [b"k", partition_key(P)]
    assert table.get_partition(P) == {"floor": 9}


async def test_what_was_written_is_found_after_a_restore(table, log):
    table.put(P, b"a", {"n": 1}, 4)
    table.put(P, b"b", {"n": 2}, 5)
    table.put_partition(P, {"floor": 5}, 5)
    await flush(table, log)
    other = restored(new_table(), *changelog(table, log))
    assert dict(other.items(P)) == {b"a": {"n": 1}, b"b": {"n": 2}}
    assert other.get(P, b"a") == {"n": 1}
    assert other.get_partition(P) == {"floor": 5}
    assert other.get(P, b"c") is None


async def test_a_get_gives_the_same_object_until_it_is_forgotten(table, log):
    table.put(P, b"k", {"n": 1}, 1)
    await flush(table, log)
    live_object = table.get(P, b"k")
    assert table.get(P, b"k") is live_object
    table.forget(P)
    assert table.get(P, b"k") == live_object
    assert table.get(P, b"k") is not live_object


async def test_what_was_not_flushed_is_gone_when_the_partition_is_forgotten(table, log):
    table.put(P, b"k", {"n": 1}, 1)
    await flush(table, log)
    table.put(P, b"k", {"n": 2}, 2)
    table.put(P, b"new", {"n": 1}, 2)
    table.forget(P)
    assert dict(table.items(P)) == {b"k": {"n": 1}}


async def test_the_items_are_live_objects_where_there_are_and_without_the_partitions_own_record(table, log):
    table.put(P, b"old", {"n": 1}, 1)
    table.put(P, b"gone", {"n": 1}, 1)
    table.put_partition(P, {}, 1)
    await flush(table, log)
    table.forget(P)
    table.put(P, b"new", {"n": 2}, 2)
    table.remove(P, b"gone", 2)
    assert dict(table.items(P)) == {b"old": {"n": 1}, b"new": {"n": 2}}


async def test_a_removed_key_is_a_tombstone_with_its_version_and_can_come_back(table, log):
    table.put(P, b"k", {"n": 1}, 1)
    await flush(table, log)
    table.remove(P, b"k", 2)
    assert table.get(P, b"k") is None
    await flush(table, log, generation=5)
    tombstone = changelog(table, log)[-1]
    assert tombstone.value is None
    assert tombstone.headers == ((TOMBSTONE_HEADER, struct.pack(">qi", 2, 5)),)
    assert table.get(P, b"k") is None
    table.put(P, b"k", {"n": 3}, 3)
    await flush(table, log)
    assert restored(new_table(), *changelog(table, log)).get(P, b"k") == {"n": 3}


async def records_of(*versions: tuple[int, int, Any]) -> list[Any]:
    """Changelog records of one key: (offset, generation, state or None)."""
    log = Log()
    for offset, generation, state in versions:
        writer = new_table()
        if state is None:
            writer.remove(P, b"k", offset)
        else:
            writer.put(P, b"k", state, offset)
        await writer.write(writer.snapshot(P, generation, log), log)
        topic = writer.changelog_topic
    return log.records[topic, P]


@pytest.mark.parametrize("order", [*permutations([(300, 1), (500, 2), (500, 3), (499, 9)])])
async def test_a_restore_keeps_the_greatest_offset_then_generation_whatever_comes_last(table, order):
    """A worker that slept through its session writes offset 300 after the new owner has written 500."""
    records = await records_of(*((offset, generation, [offset, generation]) for offset, generation in order))
    assert restored(table, *records).get(P, b"k") == [500, 3]


async def test_of_equal_versions_the_last_is_kept(table):
    records = await records_of((5, 1, "first"), (5, 1, "last"))
    assert restored(table, *records).get(P, b"k") == "last"


@pytest.mark.parametrize("split", range(4))
async def test_a_restore_may_come_in_pieces(table, split):
    records = await records_of((300, 1, "old"), (500, 2, "new"), (400, 1, "late"))
    table.restore(P, records[:split])
    assert restored(table, *records[split:]).get(P, b"k") == "new"


async def test_an_older_state_after_a_tombstone_does_not_bring_a_key_back(table):
    assert restored(table, *await records_of((9, 2, None), (7, 1, "late"))).get(P, b"k") is None


async def test_an_older_tombstone_does_not_remove_a_newer_state(table):
    assert restored(table, *await records_of((9, 2, "new"), (7, 1, None))).get(P, b"k") == "new"


async def test_a_key_whose_last_record_is_not_its_greatest_is_written_again_at_the_next_flush(table, log):
    """Compaction keeps the last record, which would undo what the restore has just repaired."""
    records = await records_of((500, 2, "new"), (300, 1, "late"))
    restored(table, *records)
    await flush(table, log)
    (again,) = changelog(table, log)
    assert again.value == records[0].value
    await flush(table, log)
    assert len(changelog(table, log)) == 1


@given(
    st.lists(
        st.tuples(st.sampled_from([b"a", b"b"]), st.integers(0, 20), st.integers(1, 3), st.booleans()), max_size=12
    ),
    st.integers(0, 12),
)
def test_whatever_the_order_of_a_changelog_the_greatest_version_of_each_key_is_restored(entries, split):
    async def check() -> None:
        log, expected = Log(), {}
        for number, (key, offset, generation, keep) in enumerate(entries):
            writer = new_table()
            if keep:
                writer.put(P, key, number, offset)
            else:
                writer.remove(P, key, offset)
            await writer.write(writer.snapshot(P, generation, log), log)
            if (offset, generation) >= expected.get(key, ((-1, -1), None))[0]:
                expected[key] = ((offset, generation), number if keep else None)
        table = new_table()
        records = log.records[table.changelog_topic, P]
        table.restore(P, records[:split])
        restored(table, *records[split:])
        assert dict(table.items(P)) == {k: state for k, (_, state) in expected.items() if state is not None}

    asyncio.run(check())


async def test_a_foreign_record_in_the_changelog_is_named(table):
    records = await records_of((1, 1, "x"))
    with pytest.raises(UndecodableRecord, match="partition 3 offset 0"):
        table.restore(P, [type("R", (), {**vars(records[0]), "value": b"short"})])


async def test_a_state_that_nobody_changes_is_written_again_every_half_hour(table, log, monkeypatch):
    table.put(P, b"idle", {"n": 1}, 1)
    table.put(P, b"busy", {"n": 1}, 1)
    await flush(table, log)
    clock = [live.time.monotonic()]
    monkeypatch.setattr(live.time, "monotonic", lambda: clock[0])
    clock[0] += live.REWRITE_AFTER_S - 10
    table.put(P, b"busy", {"n": 2}, 2)
    await flush(table, log)
    clock[0] += 20
    await flush(table, log)
    assert [record.key for record in changelog(table, log)] == [b"idle", b"busy", b"busy", b"idle"]
    assert changelog(table, log)[-1].value == changelog(table, log)[0].value


async def test_the_half_hour_begins_anew_with_a_restore(table, log, monkeypatch):
    restored(table, *await records_of((5, 1, "x")))
    clock = [live.time.monotonic() + live.REWRITE_AFTER_S + 1]
    monkeypatch.setattr(live.time, "monotonic", lambda: clock[0])
    await flush(table, log)
    assert len(changelog(table, log)) == 1


async def test_a_flush_that_was_not_written_can_be_put_back(table, log):
    table.put(P, b"a", 1, 1)
    table.put(P, b"b", 1, 1)
    snapshot = table.snapshot(P, 1, log)
    table.put(P, b"b", 2, 2)
    table.put_back(snapshot)
    await flush(table, log)
    assert {record.key: record.value[12:] for record in changelog(table, log)} == {b"a": b"1", b"b": b"2"}


async def test_a_batch_that_fails_closes_its_partition(table):
    """Its state and its outputs no longer belong together, so neither may be written."""
    with pytest.raises(ValueError, match="half-way"):
        async with table.lock(P):
            raise ValueError("half-way")
    with pytest.raises(PartitionClosed, match="half-way"):
        async with table.lock(P):
            pass
    async with table.lock(P + 1):
        pass


async def test_a_batch_that_is_cancelled_closes_its_partition_and_lets_nobody_wait(table):
    async def batch() -> None:
        async with table.lock(P):
            await asyncio.sleep(10)

    working = asyncio.ensure_future(batch())
    await asyncio.sleep(0)
    working.cancel()
    with pytest.raises(PartitionClosed):
        async with table.lock(P):
            pass


async def test_a_batch_and_a_flush_take_turns(table):
    order = []

    async def hold(name: str) -> None:
        async with table.lock(P):
            order.append(name)
            await asyncio.sleep(0.001)
            order.append(name)

    await asyncio.gather(hold("batch"), hold("flush"), hold("batch"))
    assert order == ["batch", "batch", "flush", "flush", "batch", "batch"]


async def test_a_state_that_the_changelog_cannot_take_is_named(table, log):
    table.put(P, b"huge", "x" * 1_100_000, 1)
    with pytest.raises(RecordRefused, match="huge"):
        table.snapshot(P, 1, log)


async def test_states_that_do_not_fit_into_one_batch_go_into_several(table, log):
    for number in range(100):
        table.put(P, b"%d" % number, "x" * 1_000, number)
    await flush(table, log)
    assert sum(count for _, _, count in log.batches) == 100
    assert len(log.batches) > 1
    assert len(dict(restored(new_table(), *changelog(table, log)).items(P))) == 100
