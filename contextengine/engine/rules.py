"""Rules, and the plan they are compiled into.

A rule says when to inject, what, how important it is and where to place it. The plan knows which rules an event can
fire: those that listen to its type and, of these, the worded ones only where the message contains one of their
phrases. So a thousand rules cost about what the few cost that have a chance.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

from contextengine.engine.builders import Builder
from contextengine.engine.conditions import Condition
from contextengine.engine.moment import Moment
from contextengine.engine.strategies.strategy import Strategy, Timed, Worded, attended_by, digest_of, vocabulary_of
from contextengine.engine.triggers.keywords import PhraseIndex
from contextengine.engine.triggers.notice import DETECTORS, notice
from contextengine.schemas.context import Criticality, Respond, Trust
from contextengine.schemas.events import AnyEvent, MessageCompleted, Tick
from contextengine.schemas.injection import FailurePolicy, FailureStrategy
from contextengine.schemas.session import Place, Session

RULE_TIMER: Final = "rule:"

DEFAULT_POLICIES: Final = {
    Criticality.CRITICAL: FailurePolicy(FailureStrategy.RETRY_ASYNC, max_attempts=5, delay_ms=500),
    Criticality.IMPORTANT: FailurePolicy(FailureStrategy.RETRY_ASYNC, max_attempts=3, delay_ms=1_000),
    Criticality.HELPFUL: FailurePolicy(FailureStrategy.SKIP),
    Criticality.OPTIONAL: FailurePolicy(FailureStrategy.SKIP),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """When to inject what, how important it is, and where to place it. Times are the session's own.

    `condition` is asked when `when` fires, and again each time its context is about to go in.
    `key` is the slot (the rule's name by default); `cooldown_ms` keeps the same content out of the slot for so long
    after it went in; `quiet_ms` and `fallback_ms` belong to the placement; `timeout_ms` is for one attempt (wall
    clock); in `shadow` a rule decides and explains, and injects nothing; with a `share` below 1 it is so for the other
    sessions. `reassert` puts a context in again when the model has lost it; by default what is critical or important.
    """

    name: str
    when: Strategy
    build: Builder
    condition: Condition | None = None
    criticality: Criticality = Criticality.HELPFUL
    priority: int = 0
    ttl_ms: int = 60_000
    key: str = ""
    place: Place = Place.NOW
    quiet_ms: int = 700
    fallback_ms: int | None = None
    cooldown_ms: int = 300_000
    respond: Respond = Respond.NEVER
    trust: Trust = Trust.TRUSTED
    timeout_ms: int = 2_000
    policy: FailurePolicy | None = None
    shadow: bool = False
    share: float = 1.0
    reassert: bool | None = None

    when_digest: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "when_digest", digest_of(self.when))
        if not self.name:
            raise ValueError("name must not be empty")
        unknown = attended_by(self.when) - DETECTORS
        if unknown:
            raise ValueError(f"there is no detector {min(unknown)!r}; known: {', '.join(sorted(DETECTORS))}")
        if self.when is not None and not self.when.listens:
            raise ValueError("its `when` can never fire")
        if self.ttl_ms < 1 or self.timeout_ms < 1:
            raise ValueError("ttl and timeout must be at least 1 ms")
        if not 0 <= self.share <= 1:
            raise ValueError("share is from 0 to 1")
        if self.failure_policy.max_attempts < 1:
            raise ValueError("max_attempts must be at least 1")
        if self.failure_policy.strategy is FailureStrategy.SKIP and self.failure_policy.max_attempts > 1:
            raise ValueError("strategy skip makes one attempt; for more, on_failure must say `strategy: retry_async`")

    @property
    def slot(self) -> str:
        """The key under which a session has one live context."""
        return self.key or self.name

    @property
    def is_reasserted(self) -> bool:
        """Whether its contexts are put in again when the model has lost them."""
        weighty = self.criticality in (Criticality.CRITICAL, Criticality.IMPORTANT)
        return weighty if self.reassert is None else self.reassert

    def has_in_share(self, session_id: str) -> bool:
        """Whether the session is one of the rule's share: the same one wherever and whenever it is asked."""
        return self.share >= 1 or _place_in(self.name, session_id) < self.share

    @property
    def failure_policy(self) -> FailurePolicy:
        """The rule's own policy, or its criticality's."""
        return self.policy or DEFAULT_POLICIES[self.criticality]


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All rules in force, compiled; `rules_hash` names them in the log."""

    rules: tuple[Rule, ...]
    rules_hash: str = ""

    timed: tuple[tuple[Rule, Timed], ...] = field(init=False, repr=False)
    phrases: PhraseIndex = field(init=False, repr=False)
    attends: frozenset[str] = field(init=False, repr=False)
    _by_name: dict[str, Rule] = field(init=False, repr=False)
    _open: dict[type, tuple[Rule, ...]] = field(init=False, repr=False)
    _worded: dict[str, tuple[Rule, ...]] = field(init=False, repr=False)
    _order: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ordered = sorted(self.rules, key=lambda rule: -rule.priority)
        by_type: dict[type, list[Rule]] = defaultdict(list)
        by_phrase: dict[str, list[Rule]] = defaultdict(list)
        for rule in ordered:
            phrases = rule.when.phrases if isinstance(rule.when, Worded) else frozenset()
            for phrase in phrases:
                by_phrase[phrase].append(rule)
            for listened in rule.when.listens - ({Tick, MessageCompleted} if phrases else {Tick}):
                by_type[listened].append(rule)
        derived = {
            "timed": tuple(
                (rule, rule.when) for rule in ordered if isinstance(rule.when, Timed) and Tick in rule.when.listens
            ),
            "phrases": PhraseIndex(frozenset().union(*(vocabulary_of(rule.when) for rule in ordered))),
            "attends": frozenset().union(
                *(attended_by(rule.when) for rule in ordered),
                *(rule.condition.attends for rule in ordered if rule.condition is not None),
                *(getattr(rule.build, "attends", frozenset()) for rule in ordered),
            ),
            "_by_name": {rule.name: rule for rule in ordered},
            "_open": {listened: tuple(rules) for listened, rules in by_type.items()},
            "_worded": {phrase: tuple(rules) for phrase, rules in by_phrase.items()},
            "_order": {rule.name: at for at, rule in enumerate(ordered)},
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def moment(self, session: Session, event: AnyEvent, now_ms: int) -> Moment:
        """What strategies see of `event`, which the session has taken in; the detectors have remembered it too."""
        noticed = notice(session, event, self.attends) if isinstance(event, MessageCompleted) else None
        return Moment(session, event, now_ms, self.phrases, noticed)

    def rule(self, name: str) -> Rule | None:
        """The rule of this name, if there is one."""
        return self._by_name.get(name)

    def concerned(self, moment: Moment) -> Iterable[Rule]:
        """The rules that this event can fire, highest priority first."""
        event = moment.event
        if isinstance(event, Tick):
            rule = self.rule(event.timer.removeprefix(RULE_TIMER))
            return [rule] if rule is not None and Tick in rule.when.listens else []
        concerned = self._open.get(type(event), ())
        if not isinstance(event, MessageCompleted) or not moment.phrases:
            return concerned
        worded = {rule.name: rule for phrase in moment.phrases for rule in self._worded.get(phrase, ())}
        return sorted([*concerned, *worded.values()], key=lambda rule: self._order[rule.name])


def _place_in(rule: str, session_id: str) -> float:
    """From 0 to 1, spread evenly over sessions; for each rule another order of them."""
    digest = blake2b(f"{rule}\x1f{session_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


NO_RULES: Final = RuleSet(())
