"""Layer names for people: what a layer does, told from its name; repeated blocks as one; long names shortened."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

# The last part of a layer's name -> its type, in the spellings of transformers' models.
_TYPES = {
    "attention query": "q q_proj query query_proj q_lin linear_q to_q wq",
    "attention key": "k k_proj key key_proj k_lin linear_k to_k wk",
    "attention value": "v v_proj value value_proj v_lin linear_v to_v wv",
    "attention query, key and value": "c_attn qkv qkv_proj query_key_value in_proj Wqkv W_pack",
    "attention output": "o o_proj out_proj out_lin linear_out to_out",
    "feed-forward in": "fc1 wi wi_0 wi_1 w1 w3 up_proj gate_proj gate_up_proj lin1 linear1 c_fc dense_h_to_4h"
    " pwconv1 ffn",
    "feed-forward out": "fc2 wo w2 down_proj lin2 linear2 dense_4h_to_h pwconv2 ffn_output",
}
_BY_ENDING = {ending: kind for kind, endings in _TYPES.items() for ending in endings.split()}
# These say something only together with what they are part of.
_GENERIC = {"c_proj", "dense", "proj", "fc", "linear", "layer", "conv", "convolution"}
_NUMBER = re.compile(r"\d+")
_STAGE = re.compile(r"(?:^|\.)(?:stages?[._]|layer)(\d+)(?:\.|$)")


def layer_type(name: str, shape: tuple[int, ...]) -> str:
    """The type of a layer: its part in attention or feed-forward, a convolution's stage or kernel, else its name's end.

    Args:
        name: module name, such as "encoder.layers.0.self_attn.q_proj".
        shape: of its weight; four sizes mean a convolution, (out, in / groups, height, width).
    """
    if len(shape) == 4:
        return _convolution(name, shape)
    parts = [part for part in name.split(".") if not part.isdigit()] or ["layer"]
    last, above = parts[-1], parts[:-1]
    if last in _GENERIC and above:
        if above[-1] == "intermediate":
            return "feed-forward in"
        if any("attention" in part.lower() or "attn" in part.lower() for part in above):
            return "attention output"
        if above[-1] in ("output", "mlp"):
            return "feed-forward out"
        return f"{above[-1]}.{last}"
    return _BY_ENDING.get(last, last)


def _convolution(name: str, shape: tuple[int, ...]) -> str:
    depthwise = shape[1] == 1 and shape[0] > 1
    if stage := _STAGE.search(name):
        return f"{'depthwise ' if depthwise else ''}convolutions, stage {stage[1]}"
    return f"{'depthwise' if depthwise else f'{shape[2]} x {shape[3]}'} convolutions"


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
