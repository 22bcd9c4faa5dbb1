"""A network that resets connections, delays or swallows everything: nothing is lost, and readiness tells the truth."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from apache_kafka import ApacheKafka, KafkaUnavailable
from broker_log import until
from fleet import Fleet, verify
from outage import flowing_s
from tcp_proxy import TcpProxy

PROXIED = "PROXIED"


@pytest.fixture(scope="module")
def apache() -> Iterator[ApacheKafka]:
    """A broker with a listener that tells its clients to come through a proxy."""
    try:
        cluster = ApacheKafka(listeners={PROXIED: "PLAINTEXT"})
        with TcpProxy(int(cluster.address(PROXIED).rpartition(":")[2])) as proxy:
            advertised = f"PLAINTEXT://{cluster.bootstrap},{PROXIED}://127.0.0.1:{proxy.port}"
            cluster._properties["advertised.listeners"] = advertised
            cluster.start()
            yield cluster, proxy
            cluster.stop()
    except KafkaUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def proxy(apache) -> TcpProxy:
    """The way of workers, delivery consumers and the publisher to the broker; the judge goes straight."""
    proxy = apache[1]
    proxy.heal()
    proxy.latency_ms, proxy.jitter_ms, proxy.both_ways = 0, 0, False
    return proxy


@pytest.fixture
def fleet(apache, proxy, tmp_path) -> Fleet:
    """Everybody behind the proxy."""
    way = f"127.0.0.1:{proxy.port}"
    return Fleet(apache[0].bootstrap, tmp_path, through={"worker": way, "deliver": way, "load": way})


async def test_connections_that_are_reset_every_two_seconds_lose_nothing(fleet, proxy, base, figures):
    resets = 0
    async with fleet:
        async with fleet.under(base) as load:
            until_s = time.monotonic() + base.seconds * 0.8
            while time.monotonic() < until_s:
                await asyncio.sleep(2)
                await asyncio.to_thread(proxy.reset)
                resets += 1
            flowing = await flowing_s(fleet, load)
        proof = await verify(fleet, load)
    figures |= {"resets": resets, "flowing again after (s)": round(flowing, 1), "proof": proof}
    assert flowing < 10


@pytest.mark.full_faults
@pytest.mark.parametrize("both_ways", [False, True], ids=["answers", "both-ways"])
async def test_latency_of_half_a_second_starts_no_rebalance(fleet, proxy, base, figures, both_ways):
    """500 +/- 200 ms on each answer, then on each request too."""
    async with fleet:
        async with fleet.under(base) as load:
            await asyncio.sleep(2)
            joined = {process.name: process.said.count("(Re-)joining group") for process in fleet.processes}
            proxy.latency_ms, proxy.jitter_ms, proxy.both_ways = 500, 200, both_ways
            await asyncio.sleep(base.seconds - 5)
            flowing = await flowing_s(fleet, load)
            rejoined = {p.name: p.said.count("(Re-)joining group") - joined[p.name] for p in fleet.processes}
        proof = await verify(fleet, load, within_s=120)
    figures |= {"rejoined": rejoined, "a context takes (s)": round(flowing, 1), "proof": proof}
    assert not any(rejoined.values())


@pytest.mark.full_faults
async def test_who_is_behind_a_black_hole_is_not_ready_and_comes_back_by_itself(fleet, proxy, base, figures):
    """For 30 s: not ready within 10 s, ready and flowing within 15 s of its end."""
    async with fleet:
        async with fleet.under(base) as load:
            await asyncio.sleep(base.seconds / 6)
            proxy.swallow()
            unready = await asyncio.gather(*(unready_s(process) for process in fleet.processes))
            await asyncio.sleep(30 - max(unready))
            proxy.heal()
            healed_s = time.monotonic()
            flowing = await flowing_s(fleet, load)
            await asyncio.gather(*(process.ready() for process in fleet.processes))
            ready = time.monotonic() - healed_s
        proof = await verify(fleet, load)
    figures |= {
        "not ready after (s)": [round(took_s, 1) for took_s in unready],
        "flowing again after (s)": round(flowing, 1),
        "all ready after (s)": round(ready, 1),
        "proof": proof,
    }
    assert max(unready) < 10
    assert max(flowing, ready) < 15


async def unready_s(process) -> float:
    """How long it takes until it says that it is not ready."""
    began_s = time.monotonic()

    async def says_so() -> bool:
        return not await process.is_ready()

    await until(says_so, 30)
    return time.monotonic() - began_s
