"""The metrics have endless names nowhere, and each is in the catalogue."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import REGISTRY, generate_latest
from prometheus_client.metrics import MetricWrapperBase

import contextengine
from contextengine.monitoring import metrics

ENDLESS = re.compile(r"session|user|injection_id|rule|event_id|(^|_)id$")


def ours():
    return [value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)]


def test_sessions_users_and_ids_are_never_labels():
    for metric in ours():
        assert not [label for label in metric._labelnames if ENDLESS.search(label)], metric
    exposed = re.findall(r"^contextengine_\w+\{(.*)\}", generate_latest(REGISTRY).decode(), re.MULTILINE)
    labels = {pair.split("=")[0] for sample in exposed for pair in sample.split(",")}
    assert not [label for label in labels if ENDLESS.search(label)]


def test_every_metric_has_our_prefix_and_a_unit_or_total():
    names = {sample.name for metric in ours() for sample in metric.describe()}
    assert names
    for metric in ours():
        assert metric._name.startswith("contextengine_")
        assert metric._type == "counter" or metric._name.endswith(("_seconds", "_partitions"))


def test_events_that_name_ever_new_providers_make_no_endless_metric(monkeypatch):
    monkeypatch.setattr(metrics.InjectionsEnded, "seen", set())
    for number in range(100):
        metrics.INJECTIONS.labels("refused", "test", f"invented-{number}").inc()
    labels = {"outcome": "refused", "criticality": "test", "provider": "other"}
    assert REGISTRY.get_sample_value("contextengine_injections_total", labels) == 68
    assert generate_latest(REGISTRY).decode().count('injections_total{criticality="test"') == 33


def test_metrics_are_made_in_the_catalogue_and_nowhere_else():
    root = Path(contextengine.__file__).parent
    makers = [
        path
        for path in root.rglob("*.py")
        if re.search(r"from prometheus_client import .*(Counter|Gauge)", path.read_text())
    ]
    assert makers == [root / "monitoring" / "metrics.py"]
