"""How a partition's record follows the events that concern all of its sessions."""

from __future__ import annotations

from contextengine.schemas.events import PartitionEvent, RulesChanged
from contextengine.schemas.session import Partition


def follow(partition: Partition, event: PartitionEvent) -> None:
    """Take `event` into the partition's record, in place; a rule set older than the one in force is ignored."""
    if isinstance(event, RulesChanged) and event.version > partition.rules_version:
        partition.rules_version = event.version
        partition.rules_hash = event.rules_hash
