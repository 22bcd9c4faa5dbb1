"""The demo's worker and delivery consumer: processes of their own, which end with this one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Final, Self
from urllib.error import URLError
from urllib.request import urlopen

from contextengine.broker import RUN_WHILE_WE_LIVE, free_port
from contextengine.errors import ContextEngineError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

READY_S: Final = 30.0
GOODBYE_S: Final = 10.0
LOG_LINES: Final = 6


class PartFailed(ContextEngineError):
    """A process of the demo ended, or did not become ready; with the last lines of its log."""


class Part:
    """`contextengine NAME ...` in a process, from `async with` on; leaving the block stops it in order."""

    def __init__(self, name: str, arguments: list[str], environ: Mapping[str, str], host: str, log: Path) -> None:
        self.name, self.log = name, log
        self._port = free_port(0)
        self._ready = f"http://{host}:{self._port}/health/ready"
        self._command = [sys.executable, "-m", "contextengine", name, *arguments, "--port", str(self._port)]
        self._environ = dict(environ)
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220, S603  it returns at once; the command is ours
                ["/bin/sh", "-c", RUN_WHILE_WE_LIVE, *self._command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C reaches us first, and we stop it in order
                env=self._environ,
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        process = self._process
        assert process is not None  # noqa: S101  the block was entered
        with process:
            for last_word in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, last_word)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    await asyncio.to_thread(process.wait, GOODBYE_S)
                    break

    async def become_ready(self) -> None:
        """Wait until it says that it is ready. Raises PartFailed when it ends, or takes longer than `READY_S`."""
        try:
            async with asyncio.timeout(READY_S):
                while not await asyncio.to_thread(self._is_ready):
                    self.must_run()
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise self._failed(f"was not ready within {READY_S:.0f} s") from None

    def must_run(self) -> None:
        """Raise PartFailed if it has ended."""
        if self._process is not None and (status := self._process.poll()) is not None:
            raise self._failed(f"ended with status {status}")

    @property
    def status(self) -> int | None:
        """Its exit status, once it has ended."""
        return self._process.returncode if self._process is not None else None

    def _is_ready(self) -> bool:
        try:
            with urlopen(self._ready, timeout=1) as answer:  # noqa: S310  our own, over http
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def _failed(self, what: str) -> PartFailed:
        last = self.log.read_text(errors="replace").strip().splitlines()[-LOG_LINES:]
        return PartFailed("\n".join([f"{self.name} {what}; the end of {self.log}:", *last]))
