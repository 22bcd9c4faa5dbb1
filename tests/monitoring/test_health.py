"""A process says over HTTP whether it lives and what it still waits for."""

from __future__ import annotations

import asyncio
import http.client
import json
import time

import pytest

from contextengine.errors import SettingsInvalid
from contextengine.monitoring.health import Health, MonitoringServer
from contextengine.monitoring.metrics import DEAD_LETTERS


def ask(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.fixture
def health():
    return Health("broker", "state", stale_ms=1_000)


@pytest.fixture
def port(health):
    with MonitoringServer(health, "127.0.0.1", 0) as server:
        yield server.port


def test_it_is_ready_once_every_condition_is_met_and_names_the_missing_ones(health, port):
    health.meet("state")
    status, body = ask(port, "/health/ready")
    assert (status, json.loads(body)) == (503, {"ready": False, "missing": {"broker": "not yet"}})
    health.meet("broker")
    assert ask(port, "/health/ready") == (200, '{"ready": true, "missing": {}}')
    health.miss("broker", "no answer for 10 s")
    status, body = ask(port, "/health/ready")
    assert (status, json.loads(body)["missing"]) == (503, {"broker": "no answer for 10 s"})


def test_a_condition_that_nobody_announced_is_a_mistake(health):
    with pytest.raises(KeyError, match="brokr"):
        health.meet("brokr")


def test_a_process_is_live_only_while_its_event_loop_moves():
    now = [100.0]
    health = Health("broker", stale_ms=1_000, clock=lambda: now[0])
    health.meet("broker")
    now[0] += 1.0
    assert health.live() == {"live": True, "heartbeat_age_ms": 1000}
    now[0] += 0.5
    assert not health.live()["live"]
    assert health.ready()["missing"] == {"heartbeat": "the event loop has not moved for 1500 ms"}
    health.beat()
    assert health.ready()["ready"]


async def test_a_hung_event_loop_is_seen_from_outside():
    health = Health(stale_ms=50)
    with MonitoringServer(health, "127.0.0.1", 0) as server:
        beating = asyncio.create_task(health.keep_beating())
        await asyncio.sleep(0)
        assert (await asyncio.to_thread(ask, server.port, "/health/live"))[0] == 200
        time.sleep(0.1)  # noqa: ASYNC251  this is the hang
        assert ask(server.port, "/health/live")[0] == 503
        beating.cancel()


def test_the_metrics_are_served_beside_it(port):
    DEAD_LETTERS.labels("decode").inc()
    status, body = ask(port, "/metrics")
    assert status == 200
    assert 'contextengine_dead_letters_total{stage="decode"}' in body


def test_another_path_is_not_found_and_says_what_there_is(port):
    status, body = ask(port, "/")
    assert status == 404
    assert "/health/ready" in body


def test_a_port_in_use_is_refused_by_number(health, port):
    with pytest.raises(SettingsInvalid, match=f"port {port}"):
        MonitoringServer(health, "127.0.0.1", port)


def test_a_stopped_server_frees_its_port_at_once(health):
    with MonitoringServer(health, "127.0.0.1", 0) as server:
        ask(server.port, "/health/live")
    with MonitoringServer(health, "127.0.0.1", server.port) as again:
        assert again.port == server.port
