"""Kernels for the sparse products and the soft threshold of training: C for the CPU, Triton for a GPU.

`gpu` chooses those in Triton; the rest of this file is about C. The sources in csrc/ are compiled when the package is
installed, else at first use into the user's cache; where neither works, callers take the plain torch route, and the log
says so once. Importing this package compiles and loads nothing.
"""

from __future__ import annotations

import logging
import os
import threading

import torch

from .backends import BACKENDS, Backend, Matrix
from .cpu import screen, sparse_matrix, threshold
from .cpu.binding import Library, bind, cache_directory, library_file, supported_isas, threads
from .cpu.build import BuildError, instruction_sets
from .cpu.sparse_matrix import SparseMatrix, convolved
from .triton import availability as gpu
from .triton.availability import VARIABLE

__all__ = [
    "BACKENDS",
    "Backend",
    "Library",
    "Matrix",
    "SparseMatrix",
    "cache_directory",
    "convolved",
    "gpu",
    "library",
    "screen",
    "sparse_matrix",
    "status",
    "threads",
    "threshold",
]

logger = logging.getLogger(__name__)

_lock = threading.RLock()
_choice: tuple[Library | None, str] | None = None


def library() -> Library | None:
    """The C kernels for this machine, or None where it has to be plain torch. The first call may compile for seconds.

    The environment variable HF_AUTOSPARSE_KERNELS decides: "auto" (default), "torch" for none, or the name of an
    instruction set.

    Raises:
        ValueError: the variable has another value, or names what this machine cannot run.
    """
    return _choose()[0]


def status() -> str:
    """Which route is taken on this machine, and why."""
    return _choose()[1]


def _choose() -> tuple[Library | None, str]:
    global _choice
    if _choice is None:
        with _lock:
            if _choice is None:
                _choice = _load(os.environ.get(VARIABLE, "auto"))
                logger.log(logging.INFO if _choice[0] else logging.WARNING, "hf_autosparse kernels: %s", _choice[1])
    return _choice


def _load(wanted: str) -> tuple[Library | None, str]:
    isas = supported_isas()
    if wanted not in ("auto", "torch", *isas):
        known = wanted in instruction_sets()
        raise ValueError(
            f"{VARIABLE}={wanted!r}: {'this processor cannot run it' if known else 'unknown'}; allowed here are 'auto',"
            f" 'torch' and {isas}"
        )
    if wanted == "torch":
        return None, f"plain torch ({VARIABLE}=torch)"
    reasons = []
    try:
        path = library_file()
    except (BuildError, OSError) as error:
        return None, f"plain torch, because the C library cannot be built: {error}"
    for isa in isas if wanted == "auto" else [wanted]:
        try:
            candidate = bind(path, isa)
        except (BuildError, OSError) as error:
            reasons.append(str(error))
            continue
        if _computes(candidate):
            return candidate, f"C for {isa}, {path}" + "".join(f" ({reason})" for reason in reasons)
        reasons.append(f"{path} computes wrong results with {isa}")
    return None, f"plain torch, because {'; '.join(reasons)}"


def _computes(candidate: Library) -> bool:
    """Whether the kernels agree with torch on one small example: compilers have bugs, and wrong results are silent."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(70, 300, generator=generator)
    cut = torch.ones(1)
    sparse = threshold.forward(candidate, weight, cut, threshold.layout(weight, cut))
    if not torch.equal(sparse, weight - weight.clamp(-1, 1)):
        return False
    x = torch.randn(61, 300, generator=generator)  # tiles of every size
    matrix = SparseMatrix(sparse, candidate)
    for tokens in (1, 5, 12, 61):
        product, expected = matrix.product(x[:tokens]), x[:tokens] @ sparse.T
        if product is None or not torch.allclose(product, expected, rtol=1e-4, atol=1e-4):
            return False
    grad, found = torch.randn(61, 70, generator=generator), torch.zeros(70, 300)
    clean = matrix.gradient(grad, x, found)
    return clean and torch.allclose(found, (grad.T @ x) * (sparse != 0), rtol=1e-4, atol=1e-4)
