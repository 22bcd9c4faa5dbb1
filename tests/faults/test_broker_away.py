"""A broker that stops, stands still, or dies as one of three: nothing is lost, and all goes on by itself."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from apache_kafka import ApacheKafka, KafkaUnavailable
from broker_log import until
from fleet import Fleet, Process, verify
from outage import flowing_s, watched_memory


@pytest.fixture
def brokers(request: pytest.FixtureRequest) -> Iterator[ApacheKafka]:
    """A cluster of the test's own, of as many brokers as it asks for."""
    try:
        cluster = ApacheKafka(brokers=getattr(request, "param", 1)).start()
    except KafkaUnavailable as reason:
        pytest.skip(str(reason))
    yield cluster
    cluster.stop()


async def test_a_broker_that_is_stopped_and_started_flows_again_by_itself(brokers, tmp_path, full, base, figures):
    """Within 10 s of its return the provider has a context for what is said then, and everybody is ready.

    The logs say since when nobody answers and that somebody does again, and are not flooded.
    """
    (node,) = brokers.nodes
    async with Fleet(brokers.bootstrap, tmp_path) as fleet:
        async with fleet.under(base) as load:
            tail = follow(fleet)
            await until(lambda: tail.said, 30)
            watched = [*fleet.processes, tail]
            said = {process.name: len(process.said) for process in watched}
            gone_s = time.monotonic()
            await asyncio.to_thread(node.stop)
            await asyncio.sleep(20 if full else 8)
            await asyncio.to_thread(node.start)
            returned_s = time.monotonic()
            flowing = await flowing_s(fleet, load)
            await asyncio.gather(*(process.ready() for process in fleet.processes))
            ready = time.monotonic() - returned_s
            told = {process.name: process.said[said[process.name] :].splitlines() for process in watched}
            assert tail.runs, tail.last_words
            tail.kill()
        proof = await verify(fleet, load)
    warnings = {name: [line for line in lines if "WARNING" in line or "ERROR" in line] for name, lines in told.items()}
    figures |= {"away (s)": round(returned_s - gone_s), "flowing again after (s)": round(flowing, 1)}
    figures |= {"all ready after (s)": round(ready, 1)}
    figures |= {"warnings": {name: len(lines) for name, lines in warnings.items()}, "proof": proof}
    assert flowing < 10
    assert max(map(len, warnings.values())) < 60
    for process in fleet.processes:
        assert any(f"no broker at {brokers.bootstrap} answers since" in line for line in warnings[process.name])
        assert any(": yes, after" in line for line in told[process.name])


def follow(fleet: Fleet) -> Process:
    """Start `contextengine tail`; its records are in its log."""
    tail = Process("tail", "tail", fleet._environ("load"), fleet.folder)
    with tail.log.open("wb") as log:
        command = [sys.executable, "-m", "contextengine", "tail", "events"]
        tail.popen = subprocess.Popen(command, env=tail.environ, stdout=log, stderr=log)
    return tail


@pytest.mark.full_faults
async def test_a_broker_that_stands_still_costs_no_memory_and_loses_nothing(brokers, tmp_path, base, figures):
    """For 20 s it answers nothing, its connections stay open: at most 64 MiB more in every process."""
    (node,) = brokers.nodes
    async with Fleet(brokers.bootstrap, tmp_path) as fleet:
        async with fleet.under(base) as load:
            await asyncio.sleep(base.seconds / 5)
            async with watched_memory(fleet) as grown:
                node.freeze()
                await asyncio.sleep(20)
                node.thaw()
                flowing = await flowing_s(fleet, load)
        proof = await verify(fleet, load)
    figures |= {"MiB more": {name: round(mib) for name, mib in grown.items()}}
    figures |= {"flowing again after (s)": round(flowing, 1), "proof": proof}
    assert max(grown.values()) < 64
    assert flowing < 10


@pytest.mark.full_faults
@pytest.mark.parametrize("brokers", [3], indirect=True)
async def test_of_three_brokers_one_after_another_is_killed_under_load(brokers, tmp_path, base, figures):
    """Replication 3, min in-sync 2: what was acknowledged is there, and contexts keep flowing with two of them."""
    flowing = []
    async with Fleet(brokers.bootstrap, tmp_path, replication=3) as fleet:
        async with fleet.under(base) as load:
            for node in brokers.nodes:
                await asyncio.sleep(base.seconds / 10)
                node.kill()
                flowing.append(await flowing_s(fleet, load))
                await asyncio.to_thread(node.start)
        proof = await verify(fleet, load)
    figures |= {"flowing again after (s)": [round(took_s, 1) for took_s in flowing], "proof": proof}
    assert max(flowing) < 20
