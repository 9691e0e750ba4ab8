"""Corpora of drawn sentences, and splits that hold combinations of words which training does not."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import islice

from .draw_sentences import Draw
from .sentence import Sentence

SHORTEST, LONGEST = 4, 20  # words of a sentence, on both sides
HELD_OUT = 20  # one in so many combinations of subject, verb and object goes to each of validation and test


def _sentences(seed: int) -> Iterator[Sentence]:
    """Distinct sentences of fitting length, without end."""
    draw, seen = Draw(seed), set()
    while True:
        sentence = draw.sentence()
        if sentence is None or sentence.english in seen:
            continue
        lengths = len(sentence.english.split()), len(sentence.german.split())
        if SHORTEST <= min(lengths) and max(lengths) <= LONGEST:
            seen.add(sentence.english)
            yield sentence


def generate_pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """`count` (English, German) pairs with distinct English sides; equal arguments give equal pairs everywhere."""
    _check_count("count", count)
    return [(sentence.english, sentence.german) for sentence in islice(_sentences(seed), count)]


def demo_corpus(train: int, validation: int, test: int, seed: int = 0) -> dict[str, tuple[list[str], list[str]]]:
    """Three corpora `{"train", "validation", "test"}` of (English sentences, German sentences).

    No English sentence occurs twice. Moreover, one in `HELD_OUT` combinations of subject, verb and object (or place)
    belongs to validation and as many to test. Each sentence of these splits has such a combination, in active or
    passive, and no training sentence has one: who does what to whom must be understood, it cannot be remembered.
    """
    sizes = {"train": train, "validation": validation, "test": test}
    for name, size in sizes.items():
        _check_count(name, size)
    corpus: dict[str, tuple[list[str], list[str]]] = {name: ([], []) for name in sizes}
    stream = _sentences(seed)
    while any(len(corpus[name][0]) < size for name, size in sizes.items()):
        sentence = next(stream)
        owners = {_owner(role) for role in sentence.roles} - {"train"} or {"train"}
        if len(owners) > 1:
            continue
        (name,) = owners
        if len(corpus[name][0]) < sizes[name]:
            corpus[name][0].append(sentence.english)
            corpus[name][1].append(sentence.german)
    return corpus


def _owner(role: str) -> str:
    """The split that a combination belongs to, by its checksum: independent of seed and sizes."""
    return {0: "validation", 1: "test"}.get(zlib.crc32(role.encode()) % HELD_OUT, "train")


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} must be a number of sentences >= 0, got {value!r}.")
