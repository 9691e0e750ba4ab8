"""Kernels for the sparse products and the soft threshold of training: C for the CPU, Triton and CUDA for a GPU.

Importing this package compiles and loads nothing. `library` loads the C kernels at first use, and the Triton kernels
are compiled when a tensor on a GPU first asks for them. `registered_backends` lists the sparse forms for inference.
"""

from __future__ import annotations

from .backends import Backend, ConvolvingMatrix, Matrix, get_backend, register_backend, registered_backends
from .cpu import bitmask_matrix as cpu_bitmask_matrix  # noqa: F401  # registers its backends
from .cpu.binding import Library
from .cpu.library import library, status
from .cpu.sparse_matrix import SparseMatrix, convolved
from .cuda import semi_structured  # noqa: F401  # registers its backend
from .environment import VARIABLE, cache_directory
from .soft_threshold import annealed_soft_threshold
from .triton import bitmask_matrix  # noqa: F401  # registers its backend

__all__ = [
    "VARIABLE",
    "Backend",
    "ConvolvingMatrix",
    "Library",
    "Matrix",
    "SparseMatrix",
    "annealed_soft_threshold",
    "cache_directory",
    "convolved",
    "get_backend",
    "library",
    "register_backend",
    "registered_backends",
    "status",
]
