"""What a partition's records mean to all of its sessions, whoever reads them: a worker, a replay, an audit."""

from __future__ import annotations

from contextengine.schemas.events import (
    ConversationEvent,
    InjectionRedriven,
    PartitionEvent,
    RulesChanged,
    SessionFeedback,
    SwitchesChanged,
)
from contextengine.schemas.session import Partition, Session, State


def follow(partition: Partition, event: PartitionEvent) -> None:
    """Take `event` into the partition's record, in place; rules and switches older than those in force are ignored."""
    if isinstance(event, RulesChanged) and event.version > partition.rules_version:
        partition.rules_version = event.version
        partition.rules_hash = event.rules_hash
    elif isinstance(event, SwitchesChanged) and event.version > partition.switches_version:
        partition.switches_version = event.version
        partition.off = event.off


def subject(event: ConversationEvent | SessionFeedback, offset: int, found: State | None) -> Session | None:
    """The session that `event` is to be decided for: the one found, or a new one; None when there is nothing to do.

    Only an event of a conversation, or a redrive, begins a session; what a session has applied is not decided again.
    """
    if isinstance(found, Session):
        return found if found.offset < offset else None
    return Session(event.session_id) if isinstance(event, ConversationEvent | InjectionRedriven) else None
