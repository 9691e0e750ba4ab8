"""Phrases by chance."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from .determiners import BARE, EVERY, MANY, NO, NUMBERS, POSSESSIVES, THE, THESE, THIS, A, Determiner
from .lexicon import adjectives, nouns
from .phrases import PRONOUNS, Nominal, Phrase, Prepositional, Pronoun

T = TypeVar("T")

# As often as they stand here.
DEFINITE_SINGULAR = (THE, THE, THE, THE, THIS, *POSSESSIVES)
DEFINITE_PLURAL = (THE, THE, THE, THESE, *POSSESSIVES)
SINGULAR = (*DEFINITE_SINGULAR, THE, A, A, A, A, A, EVERY, NO)
PLURAL = (*DEFINITE_PLURAL, BARE, BARE, MANY, *NUMBERS)
PLACE_SINGULAR = (THE, THE, THE, THE, THE, A, THIS, *POSSESSIVES[:2])


class DrawPhrases:
    """A stream of chance, and the phrases drawn with it."""

    def __init__(self, seed: int):
        self._random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self._random() * len(options))]

    def weighted(self, options: Sequence[tuple[T, int]]) -> T:
        point = self._random() * sum(weight for _, weight in options)
        for option, weight in options[:-1]:
            point -= weight
            if point < 0:
                return option
        return options[-1][0]

    def nominal(
        self,
        kinds: str,
        singular: Sequence[Determiner] = SINGULAR,
        plural: Sequence[Determiner] = PLURAL,
        rich: bool = False,
    ) -> Nominal:
        """A noun phrase; a `rich` one may have a possessor."""
        noun = self.pick(nouns(kinds))
        is_plural = bool(plural) and self.chance(0.25)
        determiner = self.pick(plural if is_plural else singular)
        adjective = self.pick(adjectives(noun.kind)) if self.chance(0.35) else None
        possessor = None
        if rich and determiner is THE and self.chance(0.15):
            possessor = self.nominal("P", (THE, THE, *POSSESSIVES), (THE,))
        return Nominal(determiner, noun, is_plural, adjective, possessor)

    def definite(self, kinds: str) -> Nominal:
        return self.nominal(kinds, DEFINITE_SINGULAR, DEFINITE_PLURAL)

    def object(self, kinds: str, subject: Phrase, determiners: str) -> Nominal | Pronoun:
        """`determiners`: "all", "negated" (those that go with a negated verb) or "definite"."""
        if "P" in kinds and self.chance(0.15):
            others = [p for p in PRONOUNS if p.person[0] == "3" or p.person[0] != subject.person[0]]
            return self.pick(others)
        if determiners == "definite":
            return self.definite(kinds)
        if determiners == "negated":
            return self.nominal(kinds, (*DEFINITE_SINGULAR, A, A, A), (*DEFINITE_PLURAL, BARE), rich=True)
        without_no = [determiner for determiner in SINGULAR if determiner is not NO]
        return self.nominal(kinds, without_no if subject.determiner is NO else SINGULAR, PLURAL, rich=True)

    def prepositional(self, table: Sequence[tuple[str, str, str, str]]) -> Prepositional:
        english, kinds, german, case = self.pick(table)
        return Prepositional(english, german, case, self.nominal(kinds, PLACE_SINGULAR, ()))
