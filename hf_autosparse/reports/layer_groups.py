"""Layer names for people: those of repeated blocks drawn together, long ones shortened."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

_NUMBER = re.compile(r"\d+")


def group_blocks(names: Sequence[str]) -> dict[str, dict[tuple[int, ...], str]]:
    """Kind -> numbers of the block -> name, both in the order given. A kind is a name with `*` for its block's numbers.

    `encoder.layers.0.fc1` and `encoder.layers.1.fc1` are blocks (0,) and (1,) of the kind `encoder.layers.*.fc1`. A
    number counts as a block's if some number at its place holds several layers, and two share one: so the 1 of `fc1`
    does not, nor those of `layers.0` to `layers.2` where each is one layer.
    """
    inside: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))  # text before -> number -> rests
    for name in names:
        for number in _NUMBER.finditer(name):
            inside[name[: number.start()]][int(number[0])].add(name[number.end() :])
    blocks = {before for before, rests in inside.items() if _counts_blocks(list(rests.values()))}
    kinds: dict[str, dict[tuple[int, ...], str]] = {}
    for name in names:
        numbers = [number for number in _NUMBER.finditer(name) if name[: number.start()] in blocks]
        kind, end = "", 0
        for number in numbers:
            kind += name[end : number.start()] + "*"
            end = number.end()
        kinds.setdefault(kind + name[end:], {})[tuple(int(number[0]) for number in numbers)] = name
    return kinds


def _counts_blocks(rests: list[set[str]]) -> bool:
    shared = len(set().union(*rests)) < sum(map(len, rests))
    return shared and any(len(rest) > 1 for rest in rests)


def short_names(names: Sequence[str], limit: int) -> list[str]:
    """Without the parts that all have in common at their beginning and end, and with `…` in long ones.

    Different names stay different, if need be by not being shortened to `limit` characters.
    """
    parts = [name.split(".") for name in names]
    first, last = (_shared(parts), _shared([part[::-1] for part in parts])) if len(names) > 1 else (0, 0)
    room = min(map(len, parts)) - 1  # something must be left of each
    first = min(first, room)
    last = min(last, room - first)
    whole = [".".join(part[first : len(part) - last]) or "(the model itself)" for part in parts]
    short = [elide(name, limit) for name in whole]
    return short if len(set(short)) == len(set(whole)) else whole


def _shared(parts: list[list[str]]) -> int:
    """How many first parts are the same in all."""
    count = 0
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        count += 1
    return count


def elide(text: str, limit: int) -> str:
    """At most `limit` characters: of a longer text the beginning and, as it says more in names, most of the end."""
    if len(text) <= limit:
        return text
    head = limit // 5
    return f"{text[:head]}…{text[len(text) - (limit - head - 1) :]}"
