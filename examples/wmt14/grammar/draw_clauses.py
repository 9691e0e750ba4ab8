"""Clauses by chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .clauses import Clause
from .determiners import EVERY, NO
from .draw_phrases import DEFINITE_PLURAL, DEFINITE_SINGULAR, PLURAL, SINGULAR, DrawPhrases
from .lexicon import BE, TIME_LIST, VERB_LIST, Verb, adjectives
from .phrases import PRONOUNS, Coordination, Nominal, Phrase, Prepositional, Pronoun, relative_for
from .words import DIRECTIONS, FREQUENCIES, MANNERS, PLACES

# Tense, weight, which times go with it. "must not" and "had not to" mean something else than in German.
TENSES = (
    ("present", 32, "present"), ("past", 26, "past"), ("will", 10, "future"), ("can", 8, "future"),
    ("could", 3, "past"), ("must", 6, "future"), ("had to", 3, "past"), ("want to", 5, "future"),
    ("wanted to", 2, "past"), ("should", 3, "future"), ("may", 2, "future"),
)  # fmt: skip
TIME_CLASS = {tense: times for tense, _, times in TENSES}
NOT_NEGATED = ("must", "had to")


class DrawClauses(DrawPhrases):
    """Subjects, which may have a clause in them, and clauses."""

    def subject(self, kinds: str, negated: bool = False, plain: bool = False) -> Phrase:
        """A subject; a `plain` one has no clause or second phrase in it."""
        singular, plural = (DEFINITE_SINGULAR, DEFINITE_PLURAL) if negated else (SINGULAR, PLURAL)
        if "P" in kinds and self.chance(0.25):
            return self.pick(PRONOUNS)
        if not plain and self.chance(0.07):
            return Coordination(self.definite(kinds), self.definite(kinds))
        phrase = self.nominal(kinds, singular, plural, rich=not plain)
        if not plain and not phrase.possessor and phrase.determiner not in (NO, EVERY) and self.chance(0.12):
            phrase = replace(phrase, relative=self.relative(phrase))
        return phrase

    def relative(self, head: Nominal) -> Clause:
        """A clause about `head`, which is its subject or its object."""
        pronoun = relative_for(head)
        tense = self.pick(("present", "present", "past"))
        if head.noun.kind in "PA" and self.chance(0.6):
            verb = self.pick([v for v in VERB_LIST if head.noun.kind in v.subjects and v.frame in ("a", "d", "i")])
            clause = Clause(pronoun, verb, tense)
            return self._with_object(clause, "definite") if verb.frame != "i" else clause
        verb = self.pick([v for v in VERB_LIST if head.noun.kind in v.objects and v.frame in ("a", "d")])
        role = "accusative" if verb.frame == "a" else "dative"
        subject = self.pick(PRONOUNS) if "P" in verb.subjects and self.chance(0.3) else self.definite(verb.subjects)
        return replace(Clause(subject, verb, tense, gap=role), **{role: pronoun})

    def clause(
        self,
        subject: Nominal | Pronoun | None = None,
        *,
        tense: str | None = None,
        verbs: Callable[[Verb], bool] = lambda verb: True,
        adverbs: float = 1.0,
        plain: bool = False,
    ) -> Clause:
        """Any active clause; `adverbs` scales how often it says when and where."""
        verb = self.pick([v for v in VERB_LIST if verbs(v) and (subject is None or self._fits(subject, v))])
        tense = tense or self.weighted([(name, weight) for name, weight, _ in TENSES])
        negated = tense not in NOT_NEGATED and self.chance(0.15)
        if subject is None:
            subject = self.subject(verb.subjects, negated, plain)
        negated = negated and self._may_be_negated(subject)
        clause = Clause(subject, verb, tense, negated)
        if verb.frame in ("i", "m") and not negated and self.chance(0.2 * adverbs):
            clause = replace(clause, manner=self.pick(MANNERS))
        if verb.frame in ("m", "am"):
            clause = replace(clause, direction=self.prepositional(DIRECTIONS))
        elif ":" not in verb.frame and verb.frame not in ("da", "dt") and self.chance(0.3 * adverbs):
            clause = replace(clause, place=self.prepositional(PLACES))
        return self._with_time(self._with_object(clause, "negated" if negated else "all"), adverbs)

    @staticmethod
    def _fits(subject: Nominal | Pronoun, verb: Verb) -> bool:
        return (subject.noun.kind if subject.noun else "P") in verb.subjects

    @staticmethod
    def _may_be_negated(subject: Phrase) -> bool:
        """Whether "not" can only mean the verb: not so behind "every man", for one."""
        return subject.determiner is None or subject.determiner.definite

    def _with_object(self, clause: Clause, determiners: str) -> Clause:
        """The clause with the objects that its verb asks for. Two of them never both have "no"."""
        verb, subject = clause.verb, clause.subject
        if verb.frame in ("a", "am"):
            return replace(clause, accusative=self.object(verb.objects, subject, determiners))
        if verb.frame == "d":
            determiners = "definite" if determiners == "negated" else determiners
            return replace(clause, dative=self.object(verb.objects, subject, determiners))
        if verb.frame in ("da", "dt"):
            accusative = self.object(verb.objects, subject, determiners)
            refused = clause.negated or accusative.determiner is NO
            dative = self.object("P", subject, "definite" if refused else determiners)
            with_to = verb.frame == "dt" or isinstance(accusative, Pronoun) or self.chance(0.4)
            return replace(clause, accusative=accusative, dative=dative, with_to=with_to)
        if ":" in verb.frame:
            english, german, case = verb.frame.split(":")
            phrase = self.object(verb.objects, subject, "definite" if determiners == "negated" else determiners)
            return replace(clause, prepositional=Prepositional(english, german, case, phrase))
        return clause

    def _with_time(self, clause: Clause, adverbs: float) -> Clause:
        if not clause.negated and clause.tense in ("present", "past") and self.chance(0.15 * adverbs):
            said_no = any(phrase.determiner is NO for phrase in (clause.subject, *clause.complements()))
            return replace(clause, frequency=self.pick(FREQUENCIES[:4] if said_no else FREQUENCIES))
        if self.chance(0.35 * adverbs):
            return replace(clause, time=self.time(clause.tense))
        return clause

    def time(self, tense: str) -> tuple[str, str]:
        return self.pick([(en, de) for when, en, de in TIME_LIST if when in ("any", TIME_CLASS[tense])])

    def state(self, subject: Phrase | None = None, tense: str | None = None, plain: bool = False) -> Clause:
        """A clause with "be" and an adjective, a comparison or a place."""
        tense = tense or self.pick(("present", "present", "past", "will"))
        negated = self.chance(0.15)
        if subject is None:
            subject = self.subject(self.pick("PPAATTO"), negated, plain)
        noun = subject.first.noun if isinstance(subject, Coordination) else subject.noun
        kind = noun.kind if noun else "P"
        negated = negated and self._may_be_negated(subject)
        clause = Clause(subject, BE, tense, negated)
        if kind != "O" and self.chance(0.2):
            return replace(clause, place=self.prepositional(PLACES))
        adjective = self.pick(adjectives(kind))
        predicate = [adjective.en], [adjective.de]
        if adjective.de_more != "-" and self.chance(0.3):
            other = self.definite(kind)
            predicate = (
                [*adjective.en_more.split(), "than", *other.english("A")],
                [adjective.de_more, "als", *other.german("N")],
            )
        return self._with_time(replace(clause, predicate=predicate), 0.5)

    def any_clause(self, tense: str | None = None, adverbs: float = 0.5) -> Clause:
        if self.chance(0.2):
            return self.state(tense=tense, plain=True)
        return self.clause(tense=tense, adverbs=adverbs, plain=True)
