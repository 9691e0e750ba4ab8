"""Nouns, adjectives and verbs with the forms they take in both languages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from .words import ADJECTIVES, MATRIX_VERBS, NOUNS, TIMES, VERBS

# Persons: 1s I, 2s you, 3s he, 1p we, 3p they.
PERSONS = ("1s", "2s", "3s", "1p", "3p")


def _by_person(forms: str) -> dict[str, str]:
    return dict(zip(PERSONS, forms.split(), strict=True))


FINITE = {  # German auxiliaries, and the modal verbs under their English names
    "haben": _by_person("habe hast hat haben haben"),
    "sein": _by_person("bin bist ist sind sind"),
    "war": _by_person("war warst war waren waren"),
    "will": _by_person("werde wirst wird werden werden"),
    "wurde": _by_person("wurde wurdest wurde wurden wurden"),
    "can": _by_person("kann kannst kann können können"),
    "could": _by_person("konnte konntest konnte konnten konnten"),
    "must": _by_person("muss musst muss müssen müssen"),
    "had to": _by_person("musste musstest musste mussten mussten"),
    "want to": _by_person("will willst will wollen wollen"),
    "wanted to": _by_person("wollte wolltest wollte wollten wollten"),
    "should": _by_person("soll sollst soll sollen sollen"),
    "may": _by_person("darf darfst darf dürfen dürfen"),
}
ENGLISH_BE = {"present": _by_person("am are is are are"), "past": _by_person("was were was were were")}


@dataclass(frozen=True)
class Noun:
    kinds: str
    en: str
    en_plural: str
    de: str
    gender: str
    de_plural: str
    genitive: str
    oblique: str  # accusative and dative

    @property
    def kind(self) -> str:
        """P, A, T or O: what an adjective must suit."""
        return self.kinds[0] if self.kinds[0] in "PAT" else "O"

    def german(self, case: str, plural: bool) -> str:
        if plural:
            return self.de_plural + ("n" if case == "D" and self.de_plural[-1] not in "ns" else "")
        return {"N": self.de, "G": self.genitive}.get(case, self.oblique)


@dataclass(frozen=True)
class Adjective:
    kinds: str
    en: str
    en_more: str
    de: str
    stem: str  # before endings
    de_more: str  # "-" where it is not compared


@dataclass(frozen=True)
class Verb:
    frame: str
    subjects: str  # kinds of noun
    objects: str
    base: str
    third: str
    past: str
    participle: str  # of English; "" where the verb has no passive here
    auxiliary: str
    particle: str
    infinitive: str  # without the particle
    forms: dict[str, str]
    de_participle: str

    @property
    def full_infinitive(self) -> str:
        return self.particle + self.infinitive

    @property
    def zu_infinitive(self) -> list[str]:
        return [f"{self.particle}zu{self.infinitive}"] if self.particle else ["zu", self.infinitive]


def _rows(table: str) -> list[list[str]]:
    return [line.replace("|", " ").split() for line in table.strip().split("\n")]


def _noun(kinds, en, en_plural, de, gender, de_plural, genitive, oblique=None) -> Noun:
    return Noun(kinds, en, en_plural, de, gender, de_plural, genitive, oblique or de)


def _verb(frame, subjects, objects, base, third, past, participle, auxiliary, infinitive, ich, du, er, ge) -> Verb:
    particle, _, infinitive = infinitive.rpartition("+")
    forms = _by_person(f"{ich} {du} {er} {infinitive} {infinitive}")
    english = [word.replace("_", " ") for word in (base, third, past, participle.strip("-"))]
    return Verb(frame, subjects, objects, *english, auxiliary, particle, infinitive, forms, ge)


LEXICON = [_noun(*row) for row in _rows(NOUNS)]
ADJECTIVE_LIST = [Adjective(*(word.replace("_", " ") for word in row)) for row in _rows(ADJECTIVES)]
VERB_LIST = [_verb(*row) for row in _rows(VERBS)]
MATRIX_LIST = [_verb(row[0], "P", "-", *row[1:]) for row in _rows(MATRIX_VERBS)]
TIME_LIST = [tuple(part.strip() for part in line.split("|")) for line in TIMES.strip().split("\n")]
BE = Verb("be", "PATO", "-", "be", "is", "was", "", "sein", "", "sein", FINITE["sein"], "gewesen")


@lru_cache
def nouns(kinds: str) -> tuple[Noun, ...]:
    """The nouns of any of these kinds."""
    return tuple(noun for noun in LEXICON if set(kinds) & {noun.kind, *noun.kinds})


@lru_cache
def adjectives(kind: str) -> tuple[Adjective, ...]:
    """The adjectives that suit nouns of this kind."""
    return tuple(adjective for adjective in ADJECTIVE_LIST if kind in adjective.kinds)
