"""The demo corpus: a small bilingual grammar that writes English sentences and their German translations.

Made for this example, so that it runs without any download. A sentence is first drawn as a structure (who does what to
whom, when, where) and then spoken in both languages, hence every pair is correct by construction and the English side
determines the German one. Translating it takes what makes German hard for a bag of words: case, gender and number in
articles, adjectives and pronouns; roles that English shows by word order alone; the finite verb in second place, at the
front of questions, at the end of subordinate clauses; participles, infinitives and separable particles at the end;
objects ordered by definiteness; negation by "nicht" or "kein".

Some choices make the map a function: "you" is "du", and the past tense is the German perfect ("war", "wurde" and modal
verbs apart). Only `Random.random()` is used, whose stream Python keeps for good.

Each module builds on those before it: `words` (tables), `lexicon` (their forms), `determiners`, `phrases`, `clauses`,
`sentence` (a structure spoken in both languages); `draw_phrases`, `draw_clauses`, `draw_sentences` (structures by
chance); `corpus` (the sentences of a split).
"""

from .corpus import demo_corpus, generate_pairs

__all__ = ["demo_corpus", "generate_pairs"]
