"""From where on a partition can be judged again, and with what."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from contextengine.errors import UndecodableRecord
from contextengine.schemas.events import SessionStarted
from contextengine.schemas.session import Partition

if TYPE_CHECKING:
    from collections.abc import Mapping

    from contextengine.replay.log import Bounds
    from contextengine.replay.states import States
    from contextengine.schemas.events import ConversationEvent, SessionFeedback
    from contextengine.schemas.session import Session


class StateUnknown(Exception):
    """A session goes on here, and nobody knows its state: what comes of its events cannot be repeated."""


@dataclass(frozen=True, slots=True)
class Opening:
    """Where to begin: a little before what was asked for, at the last point where the partition's record is known.

    `is_known` says that it is: then every session that goes on there has a state. Else the rules in force are taken
    from what was written later, and a session without a state may have begun earlier.
    """

    start: int
    partition: Partition
    states: States
    is_known: bool

    @classmethod
    def of(
        cls, number: int, log: Bounds, states: States, *, log_id: str, versions: Mapping[str, int], rules_hash: str
    ) -> Opening:
        """The opening of a partition whose changelog is `states`.

        `versions` are those of the rule sets; `rules_hash` is in force at the log's start, where no record says it.
        """
        known = states.partition_before
        if known is not None and known.floor + 1 >= log.start:
            return cls(known.floor + 1, copy.copy(known), states, is_known=True)
        partition = Partition(
            number,
            log_id=log_id,
            floor=log.start - 1,
            rules_version=versions.get(rules_hash, -1),
            rules_hash=rules_hash if rules_hash in versions else "",
        )
        if log.start and states.partition_first is not None:  # the nearest that is known of the switches
            partition.switches_version = states.partition_first.switches_version
            partition.off = states.partition_first.off
        return cls(log.start, partition, states, is_known=log.start == 0)

    def session(self, event: ConversationEvent | SessionFeedback) -> Session | None:
        """The state of a session whose first event here is `event`, None when it begins here. Raises StateUnknown."""
        try:
            return self._session(event, event.session_id.encode())
        except UndecodableRecord as error:
            raise StateUnknown(str(error)) from error

    def _session(self, event: ConversationEvent | SessionFeedback, key: bytes) -> Session | None:
        if key in self.states.before:
            return self.states.session_before(key)
        if self.is_known or isinstance(event, SessionStarted):
            return None
        first = self.states.session_first(key)
        if first is None:
            raise StateUnknown(f"it goes on at offset {self.start}, and the changelog has no state of it")
        return first
