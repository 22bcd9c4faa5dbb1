"""The container files, as far as they can be checked without Docker: it is not there where they were written.

compose_spec/compose-spec.json is the Compose Specification's own schema, unchanged (Apache License 2.0, see beside it).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import fastjsonschema
import pytest
import yaml
from apache_kafka import VERSION, KafkaUnavailable, Node, free_port_for_long, java

from contextengine.monitoring.health import Health, MonitoringServer
from contextengine.settings import load

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SCHEMA = ROOT / "tests" / "compose_spec" / "compose-spec.json"
OURS = ("topics", "worker", "deliver")


def test_the_compose_file_is_one_by_the_specification():
    valid = fastjsonschema.compile(json.loads(SCHEMA.read_text()))
    valid(COMPOSE)
    with pytest.raises(fastjsonschema.JsonSchemaException, match="imag"):
        valid({"services": {"kafka": {"imag": "typo"}}})


def test_every_image_is_pinned_and_kafka_is_the_version_that_the_tests_run():
    images = [service["image"] for service in SERVICES.values() if "build" not in service]
    images += re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert [image for image in images if not re.search(r":\d+\.\d+\.\d+", image)] == []
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{VERSION}"


def test_nothing_of_ours_runs_as_root_or_may_write_outside_its_volume():
    assert re.search(r"^USER 10001$", DOCKERFILE, re.MULTILINE)
    for name in OURS:
        service = SERVICES[name]
        assert (service["user"], service["read_only"], service["cap_drop"]) == ("10001", True, ["ALL"])
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def environment(service):
    """What a service is told, where nobody sets a variable."""
    return {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for name, value in SERVICES[service]["environment"].items()}


@pytest.mark.parametrize("name", OURS)
def test_the_settings_in_the_files_are_settings(name, tmp_path):
    (tmp_path / "key").write_text("planted")
    told = environment(name) | dict(re.findall(r"(CONTEXTENGINE_\w+)=(\S+)", DOCKERFILE))
    if "CONTEXTENGINE_OPENAI_API_KEY_FILE" in told:
        told["CONTEXTENGINE_OPENAI_API_KEY_FILE"] = str(tmp_path / "key")
    assert load(environ=told).broker == "kafka:19092"


def test_the_health_check_tells_a_ready_process_from_one_that_is_not():
    check = json.loads(re.search(r"^HEALTHCHECK .*\\\n +CMD (.*)$", DOCKERFILE, re.MULTILINE)[1])
    health = Health("partitions")
    with MonitoringServer(health, "127.0.0.1", 0) as monitoring:
        command = [sys.executable, "-c", check[2].replace("8800", str(monitoring.port))]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 1
        health.meet("partitions")
        health.beat()
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_the_image_s_lock_is_a_part_of_the_project_s_lock():
    """`make lock` writes both."""

    def pins(lock):
        blocks = re.split(r"\n(?=\w)", (ROOT / lock).read_text())
        return {block.split()[0]: frozenset(re.findall(r"sha256:\w{64}", block)) for block in blocks}

    image, project = pins("requirements-image.lock"), pins("requirements.lock")
    assert all(image.values())
    assert image.items() <= project.items()


def test_what_the_image_is_built_from_exists_and_is_all_that_docker_is_sent():
    sent = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    copied = {
        name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()
    }
    assert sent == copied
    assert [name for name in sent if not (ROOT / name).exists()] == []


@pytest.mark.kafka
def test_its_kafka_starts_with_its_settings_and_takes_our_topics(tmp_path):
    """The image's own program turns the environment into properties; hosts, ports and folders are this machine's."""
    try:
        setup = [*java("256m"), "kafka.docker.KafkaDockerWrapper", "setup"]
    except KafkaUnavailable as reason:
        pytest.skip(str(reason))
    ports = {number: str(free_port_for_long()) for number in ("19092", "9092", "9093")}
    moved = {"kafka:": "127.0.0.1:", "localhost:": "127.0.0.1:", "/var/lib/kafka/data": str(tmp_path / "formatted")}
    told = environment("kafka")
    for here, there in (ports | moved).items():
        told = {name: value.replace(here, there) for name, value in told.items()}
    for folder in ("default", "mounted", "final"):
        (tmp_path / folder).mkdir()
    setup += ["-D", str(tmp_path / "default"), "-M", str(tmp_path / "mounted"), "-F", str(tmp_path / "final")]
    subprocess.run(setup, env=told, check=True, capture_output=True)
    properties = dict(
        line.split("=", 1) for line in (tmp_path / "final" / "server.properties").read_text().splitlines() if line
    )
    node = Node(tmp_path / "node", properties, format_with=["-t", told["CLUSTER_ID"]], heap="1g")
    node.start()
    try:
        ours = environment("topics") | {"CONTEXTENGINE_BROKER": f"127.0.0.1:{ports['19092']}"}
        for command in ("apply", "check"):
            ran = subprocess.run(
                [sys.executable, "-m", "contextengine", "topics", command],
                env=os.environ | ours,
                capture_output=True,
                text=True,
                check=False,
            )
            assert ran.returncode == 0, ran.stderr
    finally:
        node.kill()
