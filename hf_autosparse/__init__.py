"""hf_autosparse: train sparse Hugging Face models from the first step (AutoSparse, arXiv 2304.06941)."""

import importlib
from typing import TYPE_CHECKING

from . import autoload
from .config import AutoSparseConfig
from .sparsify import finalize, folded, layer_sparsity, sparse_layers, sparsify, sparsity

if TYPE_CHECKING:
    from .callbacks import AutoSparseCallback
    from .decoding import screen_output
    from .flop_counter import FlopsReport, flops
    from .hub import push_to_hub
    from .inference import InferenceReport, inference_report, to_inference
    from .packed import pack, unpack
    from .packed_format import PackedFormatError
    from .report import SparsityReport, sparsity_report
    from .trainer import AutoSparseMixin, AutoSparseSeq2SeqTrainer, AutoSparseTrainer

__version__ = "0.1.0"

# Loaded at first use: importing the package must not import transformers.
_LAZY = {
    "AutoSparseCallback": "callbacks",
    "AutoSparseMixin": "trainer",
    "AutoSparseSeq2SeqTrainer": "trainer",
    "AutoSparseTrainer": "trainer",
    "FlopsReport": "flop_counter",
    "PackedFormatError": "packed_format",
    "flops": "flop_counter",
    "InferenceReport": "inference",
    "inference_report": "inference",
    "to_inference": "inference",
    "pack": "packed",
    "push_to_hub": "hub",
    "screen_output": "decoding",
    "unpack": "packed",
    "SparsityReport": "report",
    "sparsity_report": "report",
}

__all__ = [
    "AutoSparseCallback",
    "AutoSparseConfig",
    "AutoSparseMixin",
    "AutoSparseSeq2SeqTrainer",
    "AutoSparseTrainer",
    "FlopsReport",
    "InferenceReport",
    "PackedFormatError",
    "SparsityReport",
    "finalize",
    "flops",
    "folded",
    "inference_report",
    "layer_sparsity",
    "pack",
    "push_to_hub",
    "screen_output",
    "sparse_layers",
    "sparsify",
    "sparsity",
    "sparsity_report",
    "to_inference",
    "unpack",
]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


autoload.install()
