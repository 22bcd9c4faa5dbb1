"""What the operator reads while a library says the same thing a thousand times."""

from __future__ import annotations

import logging

import pytest

from contextengine.monitoring.log import REMEMBERED, Repetitions


class Log:
    """Writes through the filter; `read` is what came through."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.read: list[str] = []
        self._filter = Repetitions(30, lambda: self.now_s)

    def write(self, name: str, level: int, message: str, *arguments: object) -> None:
        """As a logger of this name."""
        record = logging.LogRecord(name, level, __file__, 1, message, arguments, None)
        if self._filter.filter(record):
            self.read.append(record.getMessage())


@pytest.fixture
def log() -> Log:
    return Log()


def test_what_a_library_repeats_is_written_twice_a_minute_with_a_count_whatever_it_names(log):
    for second in range(61):
        log.now_s = float(second)
        for node in range(100):
            log.write("aiokafka.client", logging.ERROR, "Unable connect to node with id %s", node)
    assert log.read == [
        "Unable connect to node with id 0",
        "Unable connect to node with id 0 (and 2999 like it in the last 30 s)",
        "Unable connect to node with id 0 (and 2999 like it in the last 30 s)",
    ]


def test_another_message_is_written_at_once(log):
    log.write("aiokafka.client", logging.ERROR, "Unable connect to node with id %s", 1)
    log.write("aiokafka.client", logging.ERROR, "Unable to update metadata from %s", [1])
    log.write("aiokafka.conn", logging.ERROR, "Unable to update metadata from %s", [1])
    assert len(log.read) == 3


def test_of_our_own_only_the_same_words_are_a_repetition(log):
    """Two attempts that fail are two lines."""
    for session in ("s1", "s2", "s1"):
        log.write("contextengine.adapters.consumer", logging.WARNING, "session %s: failed", session)
    assert log.read == ["session s1: failed", "session s2: failed"]


def test_what_is_no_warning_is_always_written(log):
    for _ in range(3):
        log.write("aiokafka.consumer.group_coordinator", logging.INFO, "(Re-)joining group %s", "g")
    assert len(log.read) == 3


def test_what_is_remembered_is_bounded(log):
    for number in range(3 * REMEMBERED):
        log.write("contextengine", logging.WARNING, f"number {number}")
    assert len(log._filter._seen) <= REMEMBERED
