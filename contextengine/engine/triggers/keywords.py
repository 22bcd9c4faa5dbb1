"""Words and phrases, many at once.

A word is a run of letters, marks and digits, with apostrophes inside it; case and Unicode composition do not matter. A
phrase is found where its words follow each other, whatever stands between them that is no word. One pass finds all
phrases of all rules: the first word of each is looked up, so the cost grows with the text and with what it nearly
matches, not with the rules.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Final

_MARKS: Final = "".join(char for char in map(chr, range(0x300, 0x10000)) if unicodedata.category(char)[0] == "M")
"""What stands above, below and beside letters: no letter for `re`, and yet a part of a Hindi word."""
_ORDERED: Final = rf"[{_MARKS}\U0001d165-\U0001d1ad\U0001e8d0-\U0001e94a]"
_TOO_MANY_MARKS: Final = re.compile(rf"({_ORDERED}{{30}}){_ORDERED}+")
"""More marks in a row than any language writes (Unicode's stream-safe format): to order them costs their square."""
_LONG: Final = 1_000
_RUN: Final = rf"[^\W_]+(?:[{_MARKS}]+[^\W_]*)*"
_WORD: Final = re.compile(rf"{_RUN}(?:['\u2019]{_RUN})*")


def words_of(text: str) -> list[str]:
    """The words of `text` in order, folded."""
    return _WORD.findall(folded(text))


def folded(text: str) -> str:
    """`text` case-folded and composed (NFC), typographic apostrophes made plain: each of its words occurs there."""
    text = text.casefold()
    if len(text) > _LONG:
        text = _TOO_MANY_MARKS.sub(r"\1", text)
    return unicodedata.normalize("NFC", text).replace("\u2019", "'")


def with_words(text: str, replaced: Callable[[str], str]) -> str:
    """`text` with each of its words, as it stands there, replaced; what is between them stays."""
    return _WORD.sub(lambda word: replaced(word[0]), text)


def must_have_words(phrases: Iterable[str]) -> None:
    """Raise ValueError for a phrase that no message can contain."""
    for phrase in phrases:
        if not words_of(phrase):
            raise ValueError(f"{phrase!r} contains no word")


class PhraseIndex:
    """Finds which of many phrases occur in a text."""

    __slots__ = ("_by_first",)

    def __init__(self, phrases: Iterable[str]) -> None:
        self._by_first: dict[str, list[tuple[list[str], str]]] = {}
        for phrase in phrases:
            first, *rest = words_of(phrase)
            self._by_first.setdefault(first, []).append((rest, phrase))

    def found_in(self, words: Sequence[str]) -> frozenset[str]:
        """The phrases that occur in `words`."""
        by_first = self._by_first
        return frozenset(
            phrase
            for at, word in enumerate(words)
            if word in by_first
            for rest, phrase in by_first[word]
            if words[at + 1 : at + 1 + len(rest)] == rest
        )
