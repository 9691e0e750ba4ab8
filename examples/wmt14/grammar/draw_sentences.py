"""Sentences by chance: one method for each kind of sentence."""

from __future__ import annotations

from dataclasses import replace

from .clauses import Clause, Passive
from .determiners import BARE, EVERY, MANY, NO, NUMBERS, A
from .draw_clauses import DrawClauses
from .lexicon import BE, ENGLISH_BE, MATRIX_LIST, VERB_LIST
from .phrases import PRONOUNS, WHAT, WHO, Nominal, Prepositional, Pronoun, pronoun_for
from .sentence import Sentence
from .words import PLACES


class Draw(DrawClauses):
    """Draws a `sentence` of any kind. A method that finds no fitting sentence returns None; one draws again."""

    def sentence(self) -> Sentence | None:
        return self.weighted(KINDS)(self)

    def statement(self) -> Sentence:
        """One main clause; time or place may come first, and then the German subject follows its verb."""
        clause = self.state() if self.chance(0.15) else self.clause()
        if clause.time and self.chance(0.4):
            return self._time_first(clause)
        if clause.place and not clause.negated and clause.verb is not BE and self.chance(0.3):
            rest = replace(clause, place=None)
            english, german = clause.place.english(), clause.place.german()
            return Sentence.of([*english, *rest.english()], [*german, *rest.german_inverted()], clause)
        return Sentence.of(clause.english(), clause.german(), clause)

    def passive(self) -> Sentence:
        """The cake was eaten by the boy. - Der Kuchen wurde vom Jungen gegessen."""
        verb = self.pick([v for v in VERB_LIST if v.frame == "a" and v.participle])
        tense = self.pick(("present", "past"))
        agent = self.definite(verb.subjects)
        if "P" in verb.subjects and self.chance(0.1):
            agent = self.pick(PRONOUNS)
        subject = self.nominal(verb.objects)
        clause = Passive(subject, verb, tense, prepositional=Prepositional("by", "von", "D", agent))
        if self.chance(0.3):
            clause = replace(clause, time=self.time(tense))
            if self.chance(0.4):
                return self._time_first(clause)
        return Sentence.of(clause.english(), clause.german(), clause)

    @staticmethod
    def _time_first(clause: Clause) -> Sentence:
        """Today the man sleeps. - Heute schläft der Mann."""
        rest = replace(clause, time=None)
        return Sentence.of([clause.time[0], *rest.english()], [clause.time[1], *rest.german_inverted()], clause)

    def existence(self) -> Sentence:
        """There is a dog in the garden. - Es gibt einen Hund im Garten."""
        phrase = self.nominal("PAT", (A, A, NO), (BARE, MANY, *NUMBERS))
        place = self.prepositional(PLACES)
        tense, german = ("past", "gab") if self.chance(0.4) else ("present", "gibt")
        english = ["there", ENGLISH_BE[tense][phrase.person], *phrase.english("N"), *place.english()]
        return Sentence.of(english, ["es", german, *phrase.german("A"), *place.german()])

    def question(self) -> Sentence:
        """Answered by yes or no."""
        clause = self.any_clause(adverbs=0.7)
        return Sentence.of(clause.english_question(), clause.german_inverted(), clause, end="?")

    def adverb_question(self) -> Sentence:
        """Where does the dog sleep? - Wo schläft der Hund?"""
        english, german, asked = self.pick(
            (("where", "wo", {"place": None}), ("when", "wann", {"time": None}), ("why", "warum", {}))
        )
        clause = self.clause(verbs=lambda verb: verb.frame not in ("m", "am"), adverbs=0.5, plain=True)
        clause = replace(clause, **asked)
        return Sentence.of([english, *clause.english_question()], [german, *clause.german_inverted()], clause, end="?")

    def subject_question(self) -> Sentence:
        """Who sees the dog? - Wer sieht den Hund?"""
        clause = self.clause(WHO, adverbs=0.6)
        return Sentence.of(clause.english(), clause.german(), clause, end="?")

    def object_question(self) -> Sentence:
        """Whom does the dog see? - Wen sieht der Hund?"""
        clause = self.clause(verbs=lambda verb: verb.frame in ("a", "d", "da"), adverbs=0.5, plain=True)
        frame, person = clause.verb.frame, "P" in clause.verb.objects
        gap, case = ("dative", "D") if frame == "d" else ("accusative", "A")
        word = WHO if frame == "d" or (frame == "a" and person) else WHAT
        clause = replace(clause, **{gap: word}, gap=gap, with_to=False)
        english = [*word.english(case), *clause.english_question()]
        return Sentence.of(english, [*word.german(case), *clause.german_inverted()], clause, end="?")

    def reported(self) -> Sentence:
        """She says that ... - Sie sagt, dass ... (finite verb last)"""
        verb = self.pick([v for v in MATRIX_LIST if v.frame != "to/zu"])
        english, german = verb.frame.split("/")
        main = Clause(self.subject("P", plain=True), verb, self.pick(("present", "past")))
        inner = self.any_clause()
        words = [*main.english(), english, *inner.english()]
        return Sentence.of(words, [*main.german(), ",", german, *inner.german_final()], main, inner)

    def intention(self) -> Sentence:
        """She tries to ... - Sie versucht, ... zu ..."""
        verb = self.pick([v for v in MATRIX_LIST if v.frame == "to/zu"])
        tense = self.pick(("present", "past"))
        main = Clause(self.subject("P", plain=True), verb, tense)
        time = self.time(tense) if self.chance(0.2) else None
        inner = self._infinitive(main.subject)
        english, german = main.english(), main.german()
        if time:
            inner = replace(inner, time=None)
            english, german = [time[0], *english], [time[1], *main.german_inverted()]
        words = [*english, "to", *inner.english_infinitive()]
        return Sentence.of(words, [*german, ",", *inner.german_infinitive()], main, inner)

    def purpose(self) -> Sentence:
        """She goes to the city to ... - Sie geht in die Stadt, um ... zu ..."""
        main = self.clause(verbs=lambda verb: verb.frame == "m" and "P" in verb.subjects, adverbs=0.0, plain=True)
        inner = self._infinitive(main.subject)
        words = [*main.english(), "to", *inner.english_infinitive()]
        return Sentence.of(words, [*main.german(), ",", "um", *inner.german_infinitive()], main, inner)

    def _infinitive(self, subject: Nominal | Pronoun) -> Clause:
        """A clause in the infinitive, whose subject is that of the clause before it."""
        frames = ("a", "d", "da", "dt")
        clause = self.clause(subject, tense="present", verbs=lambda verb: verb.frame in frames, adverbs=0.4)
        return replace(clause, negated=False, frequency=None)

    def subordinate(self) -> Sentence:
        """A clause of reason or time before or behind the main clause."""
        english, german = self.pick(
            (("because", "weil"), ("although", "obwohl"), ("if", "wenn"), ("when", "wenn"), ("when", "als"))
        )
        tense = {"als": "past", "wenn": "present"}.get(german) or self.pick(("present", "past"))
        main, inner = self.any_clause(tense, adverbs=0.3), self.any_clause(tense, adverbs=0.3)
        return self._joined(main, inner, english, german, front=self.chance(0.4))

    def reason(self) -> Sentence | None:
        """A reason that takes up a phrase of the main clause by a pronoun: "it" is er, sie or es."""
        tense = self.pick(("present", "past"))
        main = self.clause(
            tense=tense, verbs=lambda verb: verb.frame in ("a", "da") and verb.subjects == "P", adverbs=0.3, plain=True
        )
        subject, thing = main.subject, main.accusative
        if not isinstance(thing, Nominal) or thing.noun.kind == "P" or thing.determiner in (NO, EVERY, A):
            return None
        if main.negated or subject.determiner in (NO, EVERY):
            return None
        if self.chance(0.5):
            inner = self.state(pronoun_for(thing), tense)
        else:
            if isinstance(subject, Nominal):
                if subject.noun.gender == "n" and not subject.plural:
                    return None  # "the girl ... she": German hesitates between es and sie
                subject = pronoun_for(subject)
            verbs = [v for v in VERB_LIST if v.frame == "a" and v.subjects == "P"]
            verb = self.pick([v for v in verbs if thing.noun.kind in v.objects])
            inner = Clause(subject, verb, tense, accusative=pronoun_for(thing))
        english, german = self.pick((("because", "weil"), ("although", "obwohl")))
        return self._joined(main, inner, english, german, front=False)

    @staticmethod
    def _joined(main: Clause, inner: Clause, english: str, german: str, front: bool) -> Sentence:
        if front:
            words = [english, *inner.english(), ",", *main.english()]
            return Sentence.of(words, [german, *inner.german_final(), ",", *main.german_inverted()], main, inner)
        words = [*main.english(), english, *inner.english()]
        return Sentence.of(words, [*main.german(), ",", german, *inner.german_final()], main, inner)

    def sequence(self) -> Sentence | None:
        """The man finds the key and hides it. - Der Mann findet den Schlüssel und versteckt ihn."""
        tense = self.pick(("present", "past"))
        first = self.clause(tense=tense, verbs=lambda verb: verb.frame == "a", adverbs=0.0, plain=True)
        thing = first.accusative
        if first.negated or not isinstance(thing, Nominal) or thing.determiner in (NO, EVERY):
            return None
        if thing.noun.kind == "P" and thing.noun.gender == "n":
            return None
        verbs = [v for v in VERB_LIST if v.frame == "a" and thing.noun.kind in v.objects and v is not first.verb]
        verbs = [v for v in verbs if self._fits(first.subject, v)]
        if not verbs:
            return None
        second = Clause(first.subject, self.pick(verbs), tense, accusative=pronoun_for(thing))
        subject_words = len(second.subject.english("N"))
        words = [*first.english(), "and", *second.english()[subject_words:]]
        return Sentence.of(words, [*first.german(), "und", *second.german_inverted(subject=False)], first, second)

    def contrast(self) -> Sentence:
        """Two main clauses; in German, too, the second keeps its order behind "aber" and "und"."""
        first, second = self.any_clause(adverbs=0.4), self.any_clause(adverbs=0.4)
        comma, english, german = self.pick((([","], "but", "aber"), ([], "and", "und")))
        words = [*first.english(), *comma, english, *second.english()]
        return Sentence.of(words, [*first.german(), *comma, german, *second.german()], first, second)


KINDS = (
    (Draw.statement, 40), (Draw.passive, 7), (Draw.existence, 2), (Draw.question, 7), (Draw.adverb_question, 4),
    (Draw.subject_question, 2), (Draw.object_question, 4), (Draw.reported, 8), (Draw.intention, 5), (Draw.purpose, 3),
    (Draw.subordinate, 8), (Draw.reason, 7), (Draw.sequence, 4), (Draw.contrast, 5),
)  # fmt: skip
