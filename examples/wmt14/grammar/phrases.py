"""Noun phrases, pronouns and prepositional phrases, which speak both languages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .determiners import CASES, DER, THE, A, Determiner
from .lexicon import Adjective, Noun


class RelativeClause(Protocol):
    """What a noun phrase asks of the clause about it; `clauses.Clause` is one."""

    def english_relative(self) -> list[str]: ...

    def german_relative(self) -> list[str]: ...

    def roles(self) -> list[str]: ...


@dataclass(frozen=True)
class Nominal:
    """A determiner and a noun, perhaps with an adjective, a possessor or a relative clause."""

    determiner: Determiner
    noun: Noun
    plural: bool = False
    adjective: Adjective | None = None
    possessor: Nominal | None = None
    relative: RelativeClause | None = None

    @property
    def person(self) -> str:
        return "3p" if self.plural else "3s"

    @property
    def gender(self) -> str:
        return "p" if self.plural else self.noun.gender

    def english(self, case: str) -> list[str]:
        words = [self.adjective.en] if self.adjective else []
        words.append(self.noun.en_plural if self.plural else self.noun.en)
        determiner = "an" if self.determiner is A and words[0][0] in "aeiou" else self.determiner.en
        words = [determiner, *words] if determiner else words
        if self.possessor:
            words += ["of", *self.possessor.english("G")]
        return words + (self.relative.english_relative() if self.relative else [])

    def german(self, case: str) -> list[str]:
        determiner = self.determiner.german(self.gender, case)
        words = [determiner] if determiner else []
        if self.adjective:
            words.append(self.adjective.stem + self.determiner.adjective_ending(self.gender, case))
        words.append(self.noun.german(case, self.plural))
        if self.possessor:
            words += self.possessor.german("G")
        return words + ([",", *self.relative.german_relative(), ","] if self.relative else [])


@dataclass(frozen=True)
class Pronoun:
    """A phrase of one word on each side, given by its forms, and the noun it stands for where there is one."""

    person: str
    en: tuple[str, str]  # subject, object
    de: tuple[str, str, str]  # N, A, D
    noun: Noun | None = None
    determiner = None  # only a Nominal has one

    def english(self, case: str) -> list[str]:
        return [self.en[case != "N"]]

    def german(self, case: str) -> list[str]:
        return [self.de[CASES.index(case)]]


@dataclass(frozen=True)
class Coordination:
    """Two phrases joined by "and"."""

    first: Nominal
    second: Nominal
    person = "3p"
    determiner = None  # only a Nominal has one

    def english(self, case: str) -> list[str]:
        return [*self.first.english(case), "and", *self.second.english(case)]

    def german(self, case: str) -> list[str]:
        return [*self.first.german(case), "und", *self.second.german(case)]


Phrase = Nominal | Pronoun | Coordination

# ---- pronouns --------------------------------------------------------------------------------------------------------

PRONOUNS = [
    Pronoun("1s", ("I", "me"), ("ich", "mich", "mir")),
    Pronoun("2s", ("you", "you"), ("du", "dich", "dir")),
    Pronoun("3s", ("he", "him"), ("er", "ihn", "ihm")),
    Pronoun("3s", ("she", "her"), ("sie", "sie", "ihr")),
    Pronoun("1p", ("we", "us"), ("wir", "uns", "uns")),
    Pronoun("3p", ("they", "them"), ("sie", "sie", "ihnen")),
]
WHO = Pronoun("3s", ("who", "whom"), ("wer", "wen", "wem"))
WHAT = Pronoun("3s", ("what", "what"), ("was", "was", ""))

_PERSONAL = {"m": ("he", "him"), "f": ("she", "her")}
_GERMAN_PERSONAL = {
    "m": ("er", "ihn", "ihm"),
    "f": ("sie", "sie", "ihr"),
    "n": ("es", "es", "ihm"),
    "p": ("sie", "sie", "ihnen"),
}
_GERMAN_RELATIVE = {gender: forms[:3] for gender, forms in DER.items()} | {"p": ("die", "die", "denen")}


def pronoun_for(phrase: Nominal) -> Pronoun:
    """The pronoun that takes up `phrase`; in German it has the noun's gender, whatever that means."""
    english = ("it", "it")
    if phrase.plural:
        english = ("they", "them")
    elif phrase.noun.kind == "P":
        english = _PERSONAL[phrase.noun.gender]
    return Pronoun(phrase.person, english, _GERMAN_PERSONAL[phrase.gender], phrase.noun)


def relative_for(phrase: Nominal) -> Pronoun:
    """The relative pronoun that begins a clause about `phrase`."""
    english = ("who", "whom") if phrase.noun.kind == "P" else ("that", "that")
    return Pronoun(phrase.person, english, _GERMAN_RELATIVE[phrase.gender], phrase.noun)


# ---- prepositions ----------------------------------------------------------------------------------------------------

CONTRACTIONS = {
    ("in", "dem"): "im",
    ("in", "das"): "ins",
    ("an", "dem"): "am",
    ("von", "dem"): "vom",
    ("zu", "dem"): "zum",
    ("zu", "der"): "zur",
}


@dataclass(frozen=True)
class Prepositional:
    """A preposition and its phrase, in both languages."""

    en: str
    de: str
    case: str
    phrase: Nominal | Pronoun

    def english(self) -> list[str]:
        return [*self.en.split(), *self.phrase.english("A")]

    def german(self) -> list[str]:
        first, *rest = self.phrase.german(self.case)
        if self.phrase.determiner is THE and (self.de, first) in CONTRACTIONS:
            return [CONTRACTIONS[self.de, first], *rest]
        return [self.de, first, *rest]
