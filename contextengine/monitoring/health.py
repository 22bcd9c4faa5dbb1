"""Says over HTTP whether this process lives, is ready for work, and what it has counted.

| path          | 200 when                                                             | else |
|---------------|----------------------------------------------------------------------|------|
| /health/live  | the event loop has moved lately; restart the process when it has not | 503  |
| /health/ready | it is live and every condition is met; the body names the others     | 503  |
| /metrics      | always                                                               |      |

The server has a thread of its own: a loop that hangs cannot say so itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from contextengine.errors import SettingsInvalid

if TYPE_CHECKING:
    from collections.abc import Callable

    Page = Callable[[], dict[str, Any]]

log = logging.getLogger(__name__)

BEAT_MS: Final = 500
STALE_MS: Final = 10_000


class Health:
    """What a process knows about its own state. The program writes it, the server's thread reads it.

    Every one of `conditions` has to be met before the process is ready; the log tells each change. `clock` is
    monotonic, in seconds.
    """

    def __init__(self, *conditions: str, stale_ms: int = STALE_MS, clock: Callable[[], float] = time.monotonic) -> None:
        self._missing: dict[str, str | None] = dict.fromkeys(conditions, "not yet")
        self._stale_ms = stale_ms
        self._clock = clock
        self._beaten = clock()
        self._missing_since = dict.fromkeys(conditions, clock())

    def meet(self, condition: str) -> None:
        """`condition` holds from now on."""
        self._set(condition, None)

    def miss(self, condition: str, why: str) -> None:
        """`condition` does not hold from now on."""
        self._set(condition, why)

    def beat(self) -> None:
        """The event loop moves."""
        self._beaten = self._clock()

    async def keep_beating(self) -> None:
        """Beat until cancelled; a task of the loop that is to be watched."""
        while True:
            self.beat()
            await asyncio.sleep(BEAT_MS / 1000)

    def live(self) -> dict[str, Any]:
        """Whether the event loop has moved lately, and when it last did."""
        age_ms = round((self._clock() - self._beaten) * 1000)
        return {"live": age_ms <= self._stale_ms, "heartbeat_age_ms": age_ms}

    def ready(self) -> dict[str, Any]:
        """Whether the process can work, and which conditions are missing, each with the reason."""
        missing = {condition: why for condition, why in self._missing.items() if why is not None}
        live = self.live()
        if not live["live"]:
            missing["heartbeat"] = f"the event loop has not moved for {live['heartbeat_age_ms']} ms"
        return {"ready": not missing, "missing": missing}

    def _set(self, condition: str, why: str | None) -> None:
        if condition not in self._missing:
            raise KeyError(condition)
        before, self._missing[condition] = self._missing[condition], why
        if why == before:
            return
        if why is None:
            log.info("%s: yes, after %.0f s (%s)", condition, self._clock() - self._missing_since[condition], before)
        else:
            log.warning("%s: no: %s", condition, why)
        if before is None:
            self._missing_since[condition] = self._clock()


def silence(broker: str, silent_s: float) -> str:
    """The reason for which a condition is missed that needs the broker, with the time of its last answer."""
    return f"no broker at {broker} answers since {time.strftime('%H:%M:%S', time.localtime(time.time() - silent_s))}"


class MonitoringServer:
    """Serves `health` and the metrics while its block lasts; `port` is the one in use, also when 0 was asked for.

    Nothing asks for a password, so `host` is loopback unless the settings say otherwise. Raises SettingsInvalid when
    the address cannot be had.
    """

    def __init__(self, health: Health, host: str, port: int) -> None:
        class Handler(_Handler):
            pages: ClassVar[dict[str, Page]] = {"/health/live": health.live, "/health/ready": health.ready}

        class Server(socketserver.ThreadingTCPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
            allow_reuse_address = True
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """Say nothing: a client that goes away in the middle is its own affair."""

        try:
            self._server = Server((host, port), Handler)
        except OSError as taken:
            raise SettingsInvalid(
                f"monitoring cannot listen on {host} port {port}: {taken.strerror}; set another port, or 0 for any"
            ) from taken
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="monitoring", daemon=True).start()

    def stop(self) -> None:
        """Stop serving; the port is free afterwards."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Handler(BaseHTTPRequestHandler):
    timeout = 5  # a client that connects and says nothing holds a thread no longer
    pages: ClassVar[dict[str, Page]]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._answer(200, CONTENT_TYPE_LATEST, generate_latest(REGISTRY))
        elif path in self.pages:
            state = self.pages[path]()
            holds = state[path.removeprefix("/health/")]
            self._answer(200 if holds else 503, "application/json", json.dumps(state).encode())
        else:
            self._answer(404, "text/plain", b"/health/live, /health/ready, /metrics\n")

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *_: Any) -> None:  # noqa: A002  the name is inherited
        """Say nothing: a probe each second is no news."""
