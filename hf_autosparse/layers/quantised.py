"""Is a module's weight quantised? Found by how it is stored, for any library."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

_TRAINABLE = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_NAMES = ("weight", "w_q", "_blocks")  # qweight, weight_packed, HQQ's W_q, MXFP4's gate_up_proj_blocks


def quantised_weight(module: nn.Module) -> str | None:
    """What the module keeps its quantised weight as, such as "qweight of dtype torch.int32"; None where it has none."""
    for name, tensor in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
        if name.lower().endswith(_NAMES) and tensor.dtype not in _TRAINABLE:
            return f"{name} of dtype {tensor.dtype}"
        if name == "weight" and _is_torchao(tensor):
            return f"{name} as {type(tensor.data).__name__}"
    if type(module).__module__.startswith("torch.ao.nn.") and hasattr(module, "_packed_params"):
        return "packed parameters"
    return None


def _is_torchao(tensor: Tensor) -> bool:
    return any(cls.__module__.startswith("torchao.") for cls in type(tensor.data).__mro__)
