"""A TCP proxy that makes a network as bad as a test wants it.

| the network   | connections that there are               | new connections                       |
|---------------|------------------------------------------|---------------------------------------|
| as it is      | pass everything on, `latency_ms` later   | are made                              |
| black hole    | stay, nothing passes either way          | are made, nothing passes either way   |
| cut           | are reset                                | are refused                           |

As TCP does, a black hole loses nothing: what was sent into it arrives when it ends, unless its connection was given up.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Coroutine

CHUNK: Final = 64 * 1024
CHUNKS_UNDER_WAY: Final = 256
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class TcpProxy:
    """Passes what comes to `port` of 127.0.0.1 on to `target_port`, both ways, in an event loop of its own thread.

    `port` is taken at once and kept, also while the network is cut; the proxy works while its block lasts.
    `latency_ms` and `jitter_ms` may be changed at any time: what travels on towards the client (`both_ways`: towards
    the server too) arrives so much later, drawn evenly from latency +/- jitter, and overtakes nothing.
    """

    def __init__(self, target_port: int) -> None:
        self.latency_ms, self.jitter_ms, self.both_ways = 0, 0, False
        self.accepted = 0
        self._target_port = target_port
        self._listener = _listen()
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"tcp proxy {self.port}", daemon=True)
        self._passing = asyncio.Event()
        self._passing.set()
        self._connections: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._random = random.Random(0)  # noqa: S311  a run like the last one

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._serve())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._cut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def reset(self) -> None:
        """Reset every connection; new ones are made."""
        self._call(self._reset())

    def swallow(self) -> None:
        """Be a black hole until `heal`."""
        self._loop.call_soon_threadsafe(self._passing.clear)

    def cut(self) -> None:
        """Reset every connection, and refuse new ones until `heal`."""
        self._call(self._cut())

    def heal(self) -> None:
        """Be a network again."""
        self._call(self._heal())

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _serve(self) -> None:
        self._server = await asyncio.start_server(self._accept, sock=self._listener)

    async def _heal(self) -> None:
        self._passing.set()
        if not self._server.is_serving():
            self._listener = _listen(self.port)
            await self._serve()

    async def _cut(self) -> None:
        self._server.close()
        await self._reset()

    async def _reset(self) -> None:
        for writers in self._connections.values():
            for writer in writers:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                writer.transport.abort()
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        if connections:
            await asyncio.wait(connections)

    async def _accept(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        writers = self._connections[task] = [client]
        try:
            server_reader, server = await asyncio.open_connection("127.0.0.1", self._target_port)
            writers.append(server)
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._carry(client_reader, server, to_client=False))
                ways.create_task(self._carry(server_reader, client, to_client=True))
        except* (OSError, asyncio.CancelledError):
            pass  # either end is gone, or this is a reset: both ends are to go
        finally:
            del self._connections[task]
            for writer in writers:
                writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_client: bool) -> None:
        """Carry one direction of a connection; its end arrives as late as its bytes."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_UNDER_WAY)

        async def arrive() -> None:
            while True:
                due_s, chunk = await under_way.get()
                await asyncio.sleep(due_s - time.monotonic())
                await self._passing.wait()
                if not chunk:
                    with suppress(OSError):
                        writer.write_eof()
                    return
                writer.write(chunk)
                await writer.drain()

        async with asyncio.TaskGroup() as both:
            both.create_task(arrive())
            due_s, chunk = 0.0, b"first"
            while chunk:
                chunk = await reader.read(CHUNK)
                due_s = max(due_s, time.monotonic() + self._delay_s(to_client=to_client))
                await under_way.put((due_s, chunk))

    def _delay_s(self, *, to_client: bool) -> float:
        if not (to_client or self.both_ways):
            return 0.0
        return max(0.0, self.latency_ms + self._random.uniform(-self.jitter_ms, self.jitter_ms)) / 1_000


def _listen(port: int | None = None) -> socket.socket:
    """Listen there; else on a free port that no outgoing connection is ever given, as it must be free after a cut."""
    while True:
        try:
            listener = socket.create_server(("127.0.0.1", port or random.randrange(20_000, 32_000)), backlog=128)  # noqa: S311
        except OSError:
            if port is not None:
                raise
        else:
            listener.setblocking(False)
            return listener
