"""A partition's record follows the events that concern all of its sessions."""

from __future__ import annotations

from contextengine.engine.partition import follow
from contextengine.schemas.events import PartitionAssigned, RulesChanged
from contextengine.schemas.session import Partition


def test_a_newer_rule_set_is_put_in_force_and_an_older_one_is_ignored():
    partition = Partition(0)
    for version, rules_hash in [(3, "three"), (2, "two"), (3, "three again"), (7, "seven"), (0, "zero")]:
        follow(partition, RulesChanged(version=version, rules_hash=rules_hash))
    assert (partition.rules_version, partition.rules_hash) == (7, "seven")


def test_a_worker_that_takes_over_changes_no_rules():
    partition = Partition(0, rules_version=3, rules_hash="three")
    follow(partition, PartitionAssigned(worker="w", generation=8))
    assert partition == Partition(0, rules_version=3, rules_hash="three")
