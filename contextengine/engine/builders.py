"""What to say: a builder fills a context's three dimensions.

Templates are Jinja's, in its immutable sandbox; a name that no template can know is an error when rules load, a value
that is missing when the context is built suppresses it. What people said (`said`, `history`) is untrusted text: a
template that quotes it makes its context untrusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from contextengine.engine.moment import Moment
from contextengine.engine.strategies.strategy import Evidence
from contextengine.engine.vocabulary import OF_SESSION
from contextengine.errors import TemplateFailed
from contextengine.schemas.context import Facts
from contextengine.schemas.events import MessageCompleted

QUOTING_NAMES: Final = frozenset({"said", "history"})
QUOTING_EVIDENCE: Final = frozenset({"query", "topic", "request_id", "code", *dir(dict)})
"""What rules fire on that is somebody's words: a request, what a topic is known by, and all of it at once."""
TEMPLATE_NAMES: Final = QUOTING_NAMES | {"session", "facts", "evidence"}

_jinja = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)
del _jinja.filters["random"]  # the same moment must always give the same text


@dataclass(frozen=True, slots=True)
class Content:
    """The three dimensions that a builder fills."""

    information: Facts
    strategy: Facts
    attention: Facts


class Builder(Protocol):
    """Makes a context's content from a moment and the evidence of the rule that fired."""

    @property
    def quotes_people(self) -> bool:
        """Whether what people said gets into the content."""

    def build(self, moment: Moment, evidence: Evidence) -> Content:
        """The content. Raises TemplateFailed when a value is missing."""


@dataclass(frozen=True, slots=True)
class Text:
    """Texts as they stand, or Jinja templates over the session where they contain `{{` or `{%`."""

    information: Mapping[str, str | list[str]] = field(default_factory=dict)
    strategy: Mapping[str, str | list[str]] = field(default_factory=dict)
    attention: Mapping[str, str | list[str]] = field(default_factory=dict)

    _templates: dict[str, jinja2.Template] = field(init=False, repr=False, default_factory=dict)
    quotes_people: bool = field(init=False, repr=False, default=False)
    attends: frozenset[str] = field(init=False, repr=False, default=frozenset())

    def __post_init__(self) -> None:
        quotes, attends = False, set()
        for source in self._sources():
            mistakes = template_mistakes(source)
            if mistakes:
                raise ValueError("; ".join(mistakes))
            tree = _jinja.parse(source)
            quotes = quotes or _quotes_people(tree)
            attends |= {OF_SESSION[name].attends for name in _asked_of("session", tree)} - {None}
            self._templates[source] = _jinja.from_string(source)
        object.__setattr__(self, "quotes_people", quotes)
        object.__setattr__(self, "attends", frozenset(attends))
        if not (self.information or self.strategy or self.attention):
            raise ValueError("at least one of information, strategy and attention must say something")

    def _sources(self) -> list[str]:
        return [
            text
            for dimension in (self.information, self.strategy, self.attention)
            for told in dimension.values()
            for text in ([told] if isinstance(told, str) else told)
            if _is_template(text)
        ]

    def build(self, moment: Moment, evidence: Evidence) -> Content:
        """The texts, templates rendered. Raises TemplateFailed when a value is missing or a template goes wrong."""
        names = _names(moment, evidence) if self._templates else {}
        return Content(
            self._render(self.information, names),
            self._render(self.strategy, names),
            self._render(self.attention, names),
        )

    def _render(self, dimension: Mapping[str, str | list[str]], names: dict[str, Any]) -> Facts:
        def render(text: str) -> str:
            template = self._templates.get(text)
            if template is None:
                return text
            try:
                rendered = template.render(names)
                rendered.encode()  # half a character could not be written to any topic
            except Exception as error:  # a template is a program of its user's: whatever it raises is its failure
                raise TemplateFailed(f"template {text!r}: {type(error).__name__}: {error}") from error
            return rendered

        return {
            name: render(told) if isinstance(told, str) else [render(text) for text in told]
            for name, told in dimension.items()
        }


def template_mistakes(text: str) -> list[str]:
    """What no session could ever make good: wrong syntax, names that no template knows. Plain text has no mistakes."""
    if not _is_template(text):
        return []
    try:
        tree = _jinja.parse(text)
        _jinja.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        return [f"template {text!r}: {error.message}"]
    names = meta.find_undeclared_variables(tree)
    of_session = _asked_of("session", tree) if "session" in names else set()
    return _unknown("", names, TEMPLATE_NAMES) + _unknown("session.", of_session, frozenset(OF_SESSION))


def _quotes_people(tree: nodes.Template) -> bool:
    """Whether what somebody said can be in the text; evidence that is not asked for by name may be anything."""
    if meta.find_undeclared_variables(tree) & QUOTING_NAMES:
        return True
    uses = sum(_is(name, "evidence") for name in tree.find_all(nodes.Name))
    named = [part for part in tree.find_all(nodes.Getattr) if _is(part.node, "evidence")]
    return uses != len(named) or any(part.attr in QUOTING_EVIDENCE for part in named)


def _is_template(text: str) -> bool:
    return "{{" in text or "{%" in text


def _unknown(owner: str, names: set[str], known: frozenset[str]) -> list[str]:
    unknown = ", ".join(owner + name for name in sorted(names - known))
    return [f"no template knows {unknown}; known: {', '.join(sorted(known))}"] if unknown else []


def _asked_of(owner: str, tree: nodes.Template) -> set[str]:
    """The names that the template asks of a mapping; what every mapping has is none of them."""
    asked = {part.attr for part in tree.find_all(nodes.Getattr) if _is(part.node, owner)} - set(dir(dict))
    items = [part.arg for part in tree.find_all(nodes.Getitem) if _is(part.node, owner)]
    return asked | {str(item.value) for item in items if isinstance(item, nodes.Const)}


def _is(node: nodes.Node, name: str) -> bool:
    return isinstance(node, nodes.Name) and node.name == name


def _names(moment: Moment, evidence: Evidence) -> dict[str, Any]:
    session = moment.session
    return {
        "session": {name: asked.of(session, moment.now_ms) for name, asked in OF_SESSION.items()},
        "facts": session.facts,
        "evidence": evidence,
        "history": [{"speaker": line.speaker, "text": line.text} for line in session.history],
        "said": moment.event.text if isinstance(moment.event, MessageCompleted) else "",
    }
