"""The records of one partition, judged as a worker judges them, without a worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from contextengine.engine.decide import decide
from contextengine.engine.decision import Decision
from contextengine.engine.partition import follow, subject
from contextengine.engine.rules import NO_RULES, RuleSet
from contextengine.errors import ConfigurationError
from contextengine.replay.recording import Output
from contextengine.rulefile import parse_rules
from contextengine.schemas.events import PARTITION_EVENTS, AnyEvent
from contextengine.schemas.session import Partition, Session


class RuleSets:
    """Rule sets by the hash that the log has of them, each compiled when it is first asked for."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = texts
        self._compiled = {"": NO_RULES}

    def of(self, rules_hash: str) -> RuleSet:
        """The rule set. ConfigurationError when its text is not there, or this engine cannot read it."""
        if rules_hash not in self._compiled:
            if rules_hash not in self.texts:
                raise ConfigurationError(f"no rule set {rules_hash} is known, and events were judged by it")
            self._compiled[rules_hash] = parse_rules(self.texts[rules_hash], f"rule set {rules_hash}")
        return self._compiled[rules_hash]


class PartitionReplay:
    """A partition and its sessions, by id, as they are after the last record judged; it changes what it is given."""

    def __init__(self, partition: Partition, sessions: dict[str, Session], rule_sets: RuleSets) -> None:
        self.partition = partition
        self.sessions = sessions
        self._rule_sets = rule_sets

    def judge(self, offset: int, appended_ms: int, event: AnyEvent | None) -> Decision | None:
        """What follows from the next record, None when nothing is to be decided; a bad record has no event."""
        partition = self.partition
        if offset <= partition.floor:
            return None
        partition.now_ms = max(partition.now_ms, appended_ms)
        partition.floor = offset
        if event is None:
            return None
        if isinstance(event, PARTITION_EVENTS):
            follow(partition, event)
            return None
        session = subject(event, offset, self.sessions.get(event.session_id))
        if session is None:
            return None
        decision = decide(session, partition, event, partition.now_ms, self._rule_sets.of(partition.rules_hash))
        session.offset = offset
        if decision.forget:
            self.sessions.pop(session.session_id, None)
        else:
            self.sessions[session.session_id] = session
        return decision


def outputs_of(decision: Decision) -> Iterator[Output]:
    """What a worker writes because of a decision, each topic's in its order; dead letters are not among it."""
    yield from decision.attempts
    yield from decision.cancellations
    yield from decision.retries
    yield from decision.results
    if decision.explanation is not None:
        yield decision.explanation
