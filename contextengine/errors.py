"""The errors.

The tree says what can go wrong, and whether trying again helps:

    ContextEngineError
    ├── ConfigurationError      a setting, a rule file or a topic is wrong; trying again does not help
    │   ├── SettingsInvalid     an unknown or impossible setting
    │   ├── RulesInvalid        a rules file says something that cannot be meant
    │   ├── TopicMismatch       a topic's settings would lose or misorder events
    │   ├── LogReplaced         the events topic is not the one that the state was made from
    │   └── PluginNotFound      a name in a rule or a setting that no installed plug-in provides
    ├── UndecodableRecord       bytes that are no record of ours; the record is dead-lettered, never retried
    ├── EngineDefect            the engine went wrong on an event; it is dead-lettered, and the defect is to be reported
    ├── TemplateFailed          a template met a missing or wrong value; the context is suppressed
    ├── Unrenderable            a provider cannot carry this injection; the attempt is refused
    ├── BrokerUnavailable       no broker answers; trying again helps once it does
    ├── RegistryUnavailable     no schema registry answers; trying again helps once it does
    └── RecordRefused           the broker will not have a record; trying again does not help
"""

from __future__ import annotations


class ContextEngineError(Exception):
    """Anything that ContextEngine raises on purpose."""


class ConfigurationError(ContextEngineError):
    """A setting, a rule file or a topic is wrong; trying again does not help."""


class SettingsInvalid(ConfigurationError):
    """A setting is unknown or impossible."""


class RulesInvalid(ConfigurationError):
    """A rules file says something that cannot be meant: file, line, what was found, what was expected."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class TopicMismatch(ConfigurationError):
    """A topic exists with settings that would lose or misorder events."""

    def __init__(self, topic: str, setting: str, found: object, wanted: object) -> None:
        super().__init__(
            f"topic {topic}: {setting} is {found}, must be {wanted}; `contextengine topics check` shows all differences"
        )
        self.topic, self.setting, self.found, self.wanted = topic, setting, found, wanted


class LogReplaced(ConfigurationError):
    """The events topic is not the one that the state was made from; going on would ignore events."""


class PluginNotFound(ConfigurationError):
    """No installed plug-in provides this name."""

    def __init__(self, group: str, name: str, known: list[str]) -> None:
        super().__init__(f"no {group} named {name!r}; installed: {', '.join(sorted(known)) or 'none'}")
        self.group, self.name = group, name


class UndecodableRecord(ContextEngineError):
    """Bytes that are no record of ours: the reason goes into the dead letter, with the bytes."""


class EngineDefect(ContextEngineError):
    """The engine itself went wrong on an event: the event goes to the dead letters, and its session goes on."""


class TemplateFailed(ContextEngineError):
    """A template met a missing or wrong value while it was rendered."""


class Unrenderable(ContextEngineError):
    """A provider cannot carry this injection in any form."""


class RegistryUnavailable(ContextEngineError):
    """No schema registry answers; trying again helps once it does."""


class BrokerUnavailable(ContextEngineError):
    """No broker answers at the configured address; trying again helps once it does."""


class RecordRefused(ContextEngineError):
    """The broker answers, and will not have a record (its size, our rights, a fenced producer)."""
