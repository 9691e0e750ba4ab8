"""Clauses: one verb and what belongs to it, in the word orders of both languages."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .determiners import BARE, NO, A
from .lexicon import BE, ENGLISH_BE, FINITE, Verb
from .phrases import Coordination, Nominal, Phrase, Prepositional, Pronoun


@dataclass(frozen=True)
class Clause:
    """One verb and what belongs to it; spoken by `english*` and `german*`.

    `predicate` is an (English, German) complement of "be"; `gap` names the object that stands in front of the clause as
    a relative pronoun or question word ("accusative" or "dative").
    """

    subject: Phrase
    verb: Verb
    tense: str = "present"
    negated: bool = False
    accusative: Nominal | Pronoun | None = None
    dative: Nominal | Pronoun | None = None
    with_to: bool = False
    prepositional: Prepositional | None = None
    place: Prepositional | None = None
    direction: Prepositional | None = None
    time: tuple[str, str] | None = None
    frequency: tuple[str, str] | None = None
    manner: tuple[str, str] | None = None
    predicate: tuple[list[str], list[str]] | None = None
    gap: str | None = None

    # English

    def _english_verb(self, inverted: bool) -> tuple[str, str]:
        """The auxiliary ("" for none) and the rest of the verb; "do" where English needs it."""
        third, tense, base = self.subject.person == "3s", self.tense, self.verb.base
        if self.verb is BE and tense in ("present", "past"):
            return ENGLISH_BE[tense][self.subject.person], ""
        if tense in ("will", "can", "could", "must", "should", "may"):
            return tense, base
        if inverted or self.negated:
            past = tense in ("past", "wanted to", "had to")
            plain = {"want to": f"want to {base}", "wanted to": f"want to {base}", "had to": f"have to {base}"}
            return "did" if past else "does" if third else "do", plain.get(tense, base)
        spoken = {
            "present": self.verb.third if third else base,
            "past": self.verb.past,
            "want to": f"wants to {base}" if third else f"want to {base}",
            "wanted to": f"wanted to {base}",
            "had to": f"had to {base}",
        }
        return "", spoken[tense]

    def _english(self, inverted: bool) -> list[str]:
        auxiliary, main = self._english_verb(inverted)
        negation = "not" if self.negated else ""
        if negation and auxiliary == "can" and not inverted:
            auxiliary, negation = "cannot", ""
        adverb = self.frequency[0] if self.frequency else ""
        verb = [word for word in (negation, adverb, main) if word]
        subject, auxiliary = self.subject.english("N"), [auxiliary] if auxiliary else []
        return [*(auxiliary + subject if inverted else subject + auxiliary), *verb, *self.english_rest()]

    def english(self) -> list[str]:
        """Statement order."""
        return self._english(inverted=False)

    def english_question(self) -> list[str]:
        """Question order, from the auxiliary on."""
        return self._english(inverted=True)

    def english_rest(self) -> list[str]:
        """Everything behind the verb, time included."""
        accusative = self.accusative.english("A") if self.accusative and self.gap != "accusative" else []
        dative = self.dative.english("D") if self.dative and self.gap != "dative" else []
        words = [*accusative, "to", *dative] if self.with_to and dative else [*dative, *accusative]
        words += self.prepositional.english() if self.prepositional else []
        words += self.predicate[0] if self.predicate else []
        words += [self.manner[0]] if self.manner else []
        for phrase in (self.direction, self.place):
            words += phrase.english() if phrase else []
        return words + ([self.time[0]] if self.time else [])

    def english_infinitive(self) -> list[str]:
        return [self.verb.base, *self.english_rest()]

    def english_relative(self) -> list[str]:
        return [*(getattr(self, self.gap).english("A") if self.gap else []), *self.english()]

    # German

    def _german_verb(self) -> tuple[str, str, list[str]]:
        """The particle that the finite verb has lost, the finite verb, and the infinitive or participle that closes."""
        person = self.subject.person
        if self.tense == "present":
            return self.verb.particle, self.verb.forms[person], []
        if self.tense == "past":
            if self.verb is BE:
                return "", FINITE["war"][person], []
            return "", FINITE[self.verb.auxiliary][person], [self.verb.de_participle]
        return "", FINITE[self.tense][person], [self.verb.full_infinitive]

    def german_middle(self) -> list[str]:
        """From behind the subject to before the closing verbs: pronouns, what is known, time, what is new, the rest."""
        accusative = self.accusative if self.gap != "accusative" else None
        dative = self.dative if self.gap != "dative" else None
        negation = ["nicht"] if self.negated else []
        if self.negated and accusative and accusative.determiner in (A, BARE):
            accusative, negation = replace(accusative, determiner=NO), []
        objects = [(dative, "D"), (accusative, "A")]
        if isinstance(accusative, Pronoun):
            objects.reverse()
        pronouns, known, new = [], [], []
        for phrase, case in objects:
            if isinstance(phrase, Pronoun):
                pronouns += phrase.german(case)
            elif phrase:
                (known if phrase.determiner.definite else new).extend(phrase.german(case))
        when = [adverb[1] for adverb in (self.time, self.frequency) if adverb]
        words = [*pronouns, *known, *when, *new, *negation]
        words += [self.manner[1]] if self.manner else []
        for phrase in (self.place, self.prepositional, self.direction):
            words += phrase.german() if phrase else []
        return words + (self.predicate[1] if self.predicate else [])

    def german_inverted(self, subject: bool = True) -> list[str]:
        """From the finite verb on, with the subject behind it: behind a fronted phrase, and in questions."""
        particle, finite, closing = self._german_verb()
        words = [finite, *(self.subject.german("N") if subject else []), *self.german_middle(), *closing]
        return words + ([particle] if particle else [])

    def german(self) -> list[str]:
        """Statement order: the subject, then the finite verb."""
        return [*self.subject.german("N"), *self.german_inverted(subject=False)]

    def german_final(self) -> list[str]:
        """The order of subordinate clauses: the finite verb last."""
        particle, finite, closing = self._german_verb()
        return [*self.subject.german("N"), *self.german_middle(), *closing, particle + finite]

    def german_infinitive(self) -> list[str]:
        return [*self.german_middle(), *self.verb.zu_infinitive]

    def german_relative(self) -> list[str]:
        case = {"accusative": "A", "dative": "D"}.get(self.gap)
        return [*(getattr(self, self.gap).german(case) if self.gap else []), *self.german_final()]

    # What it is about

    def complements(self) -> list[Nominal | Pronoun]:
        """All phrases but the subject."""
        parts = [part.phrase for part in (self.prepositional, self.direction, self.place) if part]
        return [phrase for phrase in (self.accusative, self.dative, *parts) if phrase]

    def roles(self) -> list[str]:
        """Who does what to whom, by lemmas, such as `["dog see man"]`; what is not a noun has no role."""
        objects = [phrase.noun for phrase in self.complements() if phrase.noun]
        phrases = [self.subject]
        if isinstance(self.subject, Coordination):
            phrases = [self.subject.first, self.subject.second]
        own = [f"{s.noun.en} {self.verb.base} {noun.en}" for s in phrases if s.noun for noun in objects]
        inner = [s.relative for s in phrases if isinstance(s, Nominal) and s.relative]
        return own + [role for clause in inner for role in clause.roles()]


@dataclass(frozen=True)
class Passive(Clause):
    """Subject and agent (the prepositional phrase) with the roles turned round; present and past only."""

    def _english_verb(self, inverted: bool) -> tuple[str, str]:
        return ENGLISH_BE[self.tense][self.subject.person], self.verb.participle

    def _german_verb(self) -> tuple[str, str, list[str]]:
        finite = FINITE["will" if self.tense == "present" else "wurde"]
        return "", finite[self.subject.person], [self.verb.de_participle]

    def roles(self) -> list[str]:
        agent, patient = self.prepositional.phrase.noun, self.subject.noun
        return [f"{agent.en} {self.verb.base} {patient.en}"] if agent and patient else []
