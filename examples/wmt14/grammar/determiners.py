"""Articles and other determiners, and the endings that they give to themselves and to adjectives."""

from __future__ import annotations

from dataclasses import dataclass, replace

# Forms and endings by gender (p: plural) in the order of
CASES = "NADG"  # nominative, accusative, dative, genitive

Endings = dict[str, tuple[str, ...]]

DER: Endings = {
    "m": ("der", "den", "dem", "des"),
    "f": ("die", "die", "der", "der"),
    "n": ("das", "das", "dem", "des"),
    "p": ("die", "die", "den", "der"),
}
# of determiners
FULL: Endings = {
    "m": ("er", "en", "em", "es"),
    "f": ("e", "e", "er", "er"),
    "n": ("es", "es", "em", "es"),
    "p": ("e", "e", "en", "er"),
}
EIN: Endings = FULL | {"m": ("", "en", "em", "es"), "n": ("", "", "em", "es")}
UNCHANGED: Endings = {"p": ("", "", "", "")}
# of the adjectives behind them
WEAK: Endings = {
    "m": ("e", "en", "en", "en"),
    "f": ("e", "e", "en", "en"),
    "n": ("e", "e", "en", "en"),
    "p": ("en", "en", "en", "en"),
}
MIXED: Endings = WEAK | {"m": ("er", "en", "en", "en"), "n": ("es", "es", "en", "en")}
STRONG: Endings = {"p": FULL["p"]}


@dataclass(frozen=True)
class Determiner:
    en: str
    stem: str
    endings: Endings
    adjective_endings: Endings
    definite: bool

    def german(self, gender: str, case: str) -> str:
        return self.stem + self.endings[gender][CASES.index(case)]

    def adjective_ending(self, gender: str, case: str) -> str:
        return self.adjective_endings[gender][CASES.index(case)]


THE = Determiner("the", "", DER, WEAK, True)
A = Determiner("a", "ein", EIN, MIXED, False)
NO = Determiner("no", "kein", EIN, MIXED, False)
BARE = Determiner("", "", UNCHANGED, STRONG, False)
POSSESSIVES = [
    Determiner("my", "mein", EIN, MIXED, True),
    Determiner("your", "dein", EIN, MIXED, True),
    Determiner("his", "sein", EIN, MIXED, True),
    Determiner("her", "ihr", EIN, MIXED, True),
    Determiner("our", "unser", EIN, MIXED, True),
    Determiner("their", "ihr", EIN, MIXED, True),
]
THIS = Determiner("this", "dies", FULL, WEAK, True)
THESE = replace(THIS, en="these")
EVERY = Determiner("every", "jed", FULL, WEAK, False)
MANY = Determiner("many", "viel", STRONG, STRONG, False)
NUMBERS = [Determiner("two", "zwei", UNCHANGED, STRONG, False), Determiner("three", "drei", UNCHANGED, STRONG, False)]
