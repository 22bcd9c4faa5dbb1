"""Plug-ins, by entry point: what is built in comes through the same door as anybody's.

contextengine.strategies    when to inject     name in a rule's `when` -> a frozen dataclass (engine.strategies)
contextengine.adapters      how to deliver     a session's provider -> a factory that takes the settings (adapters)
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, TypeAlias

from contextengine.errors import PluginNotFound

Group: TypeAlias = Literal["strategies", "adapters"]


def names(group: Group) -> list[str]:
    """The names that installed packages provide, in alphabetical order."""
    return sorted(_found(group))


@cache
def load(group: Group, name: str) -> Any:
    """The plug-in of this name. PluginNotFound names those that there are."""
    if name not in _found(group):
        raise PluginNotFound(group, name, names(group))
    return _found(group)[name].load()


@cache
def _found(group: Group) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=f"contextengine.{group}")}
