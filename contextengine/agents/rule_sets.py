"""The rule sets of the log, compiled once each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from contextengine.engine.rules import NO_RULES, RuleSet
from contextengine.errors import ConfigurationError
from contextengine.topics.rulebook import LOG_ID, Entry, is_no_rule_set, newest, switches


class RuleSets:
    """Finds a rule set by its hash; one that is not known yet is looked for in the rules topic.

    `version` and `latest` name the newest rule set: its offset in the rules topic, and its hash; -1 and "" before any.
    `off` is what is switched off, since `switches_version`.
    """

    def __init__(
        self, read: Callable[[], Awaitable[Mapping[str, Entry]]], parse: Callable[[str, str], RuleSet]
    ) -> None:
        self._read = read
        self._parse = parse
        self._compiled = {"": NO_RULES}
        self._texts: dict[str, str] = {}
        self.version = -1
        self.latest = ""
        self.log_id = ""
        self.off: list[str] = []
        self.switches_version = -1

    async def refresh(self) -> None:
        """Read the rules topic to its end."""
        entries = await self._read()
        self.latest, self.version = newest(entries)
        self.off, self.switches_version = switches(entries)
        self._texts = {key: entry.value.decode() for key, entry in entries.items() if not is_no_rule_set(key)}
        self.log_id = entries[LOG_ID].value.decode() if LOG_ID in entries else ""

    def known(self, rules_hash: str) -> RuleSet | None:
        """The rule set, if it has been asked for before."""
        return self._compiled.get(rules_hash)

    async def of(self, rules_hash: str) -> RuleSet:
        """The rule set of this hash. ConfigurationError when the rules topic has none: a partition cannot go on."""
        if rules_hash not in self._texts:
            await self.refresh()
        if rules_hash not in self._texts:
            raise ConfigurationError(f"no rule set {rules_hash} in the rules topic, and a partition is judged by it")
        compiled = self._compiled[rules_hash] = self._parse(self._texts[rules_hash], f"rule set {rules_hash}")
        return compiled
