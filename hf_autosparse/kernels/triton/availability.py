"""Whether the Triton kernels can be used. Triton is imported, and CUDA touched, when a tensor on a GPU first asks."""

from __future__ import annotations

import logging
import os
from types import ModuleType

import torch
from torch import Tensor

from ..environment import VARIABLE
from ..isolation import run_isolated

logger = logging.getLogger(__name__)

_choice: tuple[bool, str] | None = None


def takes(tensor: Tensor) -> bool:
    """Whether the kernels for a tensor are these, and not those in C."""
    return tensor.is_cuda


def is_available() -> bool:
    """Whether the Triton kernels can be used. The first call compiles one and logs the answer.

    HF_AUTOSPARSE_KERNELS=torch turns them off.
    """
    return _choose()[0]


def status() -> str:
    """Which route tensors on a GPU take, and why."""
    return _choose()[1]


def threshold() -> ModuleType | None:
    """The module of the threshold's kernels, or None where plain torch has to compute."""
    if not is_available():
        return None
    from . import threshold as triton_threshold

    return triton_threshold


def _choose() -> tuple[bool, str]:
    global _choice
    if _choice is None:
        _choice = _load()
        logger.log(logging.INFO if _choice[0] else logging.WARNING, "hf_autosparse GPU kernels: %s", _choice[1])
    return _choice


def _load() -> tuple[bool, str]:
    if os.environ.get(VARIABLE) == "torch":
        return False, f"plain torch ({VARIABLE}=torch)"
    try:
        import triton
    except ImportError as error:
        return False, f"plain torch, because triton cannot be imported: {error}"
    try:
        device = f"cuda:{torch.cuda.current_device()}"
        right = run_isolated(lambda: _computes(device))
    except Exception as error:  # no compiler for the launcher, an old card, a driver that does not fit: all differ
        first_line = str(error).strip().partition("\n")[0]
        return False, f"plain torch, because triton {triton.__version__} fails: {type(error).__name__}: {first_line}"
    if not right:
        return False, f"plain torch, because triton {triton.__version__} computes wrong results"
    return True, f"triton {triton.__version__}"


def _computes(device: str) -> bool:
    """Whether a kernel agrees with torch on one small example: wrong results would be silent."""
    from . import threshold as triton_threshold

    weight = torch.linspace(-2, 2, 300, dtype=torch.float32, device=device)
    cut = torch.ones(1, dtype=torch.float32, device=device)
    shape = triton_threshold.layout(weight, cut)
    assert shape is not None
    sparse = triton_threshold.forward(weight, cut, shape, torch.float32)
    return torch.equal(sparse, weight - weight.clamp(-1, 1))
