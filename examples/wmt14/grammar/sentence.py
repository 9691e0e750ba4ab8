"""A finished sentence: words joined to text, and what the sentence is about."""

from __future__ import annotations

from dataclasses import dataclass

from .clauses import Clause


@dataclass(frozen=True)
class Sentence:
    """A sentence in both languages and the combinations of subject, verb and object in it."""

    english: str
    german: str
    roles: tuple[str, ...]

    @classmethod
    def of(cls, english: list[str], german: list[str], *clauses: Clause, end: str = ".") -> Sentence:
        """The sentence of these words, which `clauses` have spoken."""
        return cls(_spell(english, end), _spell(german, end), tuple(role for c in clauses for role in c.roles()))


def _spell(words: list[str], end: str) -> str:
    """Text with one comma where two meet, and none at the end."""
    text = " ".join(words).replace(" , ,", " ,").replace(" ,", ",").removesuffix(",")
    return text[0].upper() + text[1:] + end
