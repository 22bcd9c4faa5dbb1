"""The proxy of the network tests does what they rely on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from tcp_proxy import TcpProxy


@pytest.fixture
async def proxy() -> AsyncIterator[TcpProxy]:
    """In front of a server that sends everything back."""

    async def send_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while chunk := await reader.read(1_000):
                writer.write(chunk)
        writer.close()

    server = await asyncio.start_server(send_back, "127.0.0.1", 0)
    # In a thread, because its own waits for this loop would be in the way of the server.
    proxy = await asyncio.to_thread(TcpProxy(server.sockets[0].getsockname()[1]).__enter__)
    yield proxy
    await asyncio.to_thread(proxy.__exit__)
    server.close()
    await server.wait_closed()


@pytest.fixture
async def line(proxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection through it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    yield reader, writer
    writer.transport.abort()
    await asyncio.sleep(0)


async def there_and_back_s(line, sent=b"hello"):
    """How long it takes, with everything that was sent before in order."""
    began_s = time.monotonic()
    line[1].write(sent)
    assert await line[0].readexactly(len(sent)) == sent
    return time.monotonic() - began_s


async def test_it_passes_everything_on_both_ways_and_the_end_too(line):
    large = bytes(range(256)) * 4_000
    await there_and_back_s(line, large)
    line[1].write_eof()
    assert await line[0].read() == b""


async def test_latency_delays_each_answer_within_its_jitter_and_keeps_their_order(proxy, line):
    proxy.latency_ms, proxy.jitter_ms = 100, 40
    took_s = [await there_and_back_s(line) for _ in range(10)]
    assert min(took_s) >= 0.06
    assert max(took_s) < 0.3
    assert max(took_s) - min(took_s) > 0.01
    for number in range(20):
        line[1].write(bytes([number]))
        await asyncio.sleep(0.005)
    assert await line[0].readexactly(20) == bytes(range(20))


async def test_latency_limits_no_throughput(proxy, line):
    """What follows does not wait until what precedes it has arrived."""
    proxy.latency_ms = 100
    sending = [line[1].write(bytes(1_000)) or await asyncio.sleep(0.01) for _ in range(30)]
    began_s = time.monotonic()
    await line[0].readexactly(1_000 * len(sending))
    assert time.monotonic() - began_s < 0.3


async def test_a_black_hole_passes_nothing_and_loses_nothing(proxy, line):
    await there_and_back_s(line)
    proxy.swallow()
    line[1].write(b"into it")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(line[0].read(1), 0.3)
    another = await asyncio.open_connection("127.0.0.1", proxy.port)
    another[1].write(b"too")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(another[0].read(1), 0.3)
    proxy.heal()
    assert await line[0].readexactly(7) == b"into it"
    assert await another[0].readexactly(3) == b"too"
    another[1].transport.abort()


async def test_a_reset_ends_the_connections_that_there_are(proxy, line):
    await there_and_back_s(line)
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await line[0].read(1)
    again = await asyncio.open_connection("127.0.0.1", proxy.port)
    await there_and_back_s(again)
    assert proxy.accepted == 2
    again[1].transport.abort()


async def test_a_cut_network_refuses_connections_until_it_is_healed(proxy, line):
    await there_and_back_s(line)
    for _ in range(2):
        proxy.cut()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)
        proxy.heal()
        again = await asyncio.open_connection("127.0.0.1", proxy.port)
        await there_and_back_s(again)
        again[1].transport.abort()
