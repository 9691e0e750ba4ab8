"""What a layer does in its model, told from its name and shape, so that reports can sum over layers of one kind."""

from __future__ import annotations

import re

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
