"""hf_autosparse: train sparse Hugging Face models from the first step (AutoSparse, arXiv 2304.06941)."""

import importlib
from typing import TYPE_CHECKING, Any

from .layers.sparsify import finalize, folded, layer_sparsity, sparse_layers, sparsify, sparsity
from .methods import (
    AutoSparseConfig,
    ContinuousConfig,
    DSTConfig,
    FixedMaskConfig,
    GMPConfig,
    ITOPConfig,
    LTPConfig,
    MESTConfig,
    NMConfig,
    OptGConfig,
    RigLConfig,
    SCLConfig,
    SETConfig,
    SNFSConfig,
    SparseConfig,
    STRConfig,
    SWATConfig,
    TopKASTConfig,
)
from .serialization import autoload
from .utils.version import __version__

if TYPE_CHECKING:
    from .hub.push import push_to_hub
    from .inference.convert import InferenceReport, inference_report, to_inference
    from .inference.screen import screen_output
    from .oneshot.prune import prune
    from .oneshot.report import PruneReport
    from .reports.checkpoint import checkpoint_report
    from .reports.diff import checkpoint_diff
    from .reports.flops import FlopsReport, flops
    from .reports.sparsity import SparsityReport, sparsity_report
    from .serialization.bitmask_format import PackedFormatError
    from .serialization.pack import pack, unpack
    from .training.callbacks import AutoSparseCallback
    from .training.driver import SparseTraining
    from .training.trainer import AutoSparseMixin, AutoSparseSeq2SeqTrainer, AutoSparseTrainer

# Loaded at first use: importing the package must not import transformers.
_LAZY = {
    "AutoSparseCallback": "training.callbacks",
    "AutoSparseMixin": "training.trainer",
    "AutoSparseSeq2SeqTrainer": "training.trainer",
    "AutoSparseTrainer": "training.trainer",
    "SparseTraining": "training.driver",
    "checkpoint_diff": "reports.diff",
    "checkpoint_report": "reports.checkpoint",
    "FlopsReport": "reports.flops",
    "PackedFormatError": "serialization.bitmask_format",
    "flops": "reports.flops",
    "InferenceReport": "inference.convert",
    "inference_report": "inference.convert",
    "to_inference": "inference.convert",
    "pack": "serialization.pack",
    "prune": "oneshot.prune",
    "PruneReport": "oneshot.report",
    "push_to_hub": "hub.push",
    "screen_output": "inference.screen",
    "unpack": "serialization.pack",
    "SparsityReport": "reports.sparsity",
    "sparsity_report": "reports.sparsity",
}

__all__ = [
    "AutoSparseCallback",
    "AutoSparseConfig",
    "ContinuousConfig",
    "DSTConfig",
    "FixedMaskConfig",
    "GMPConfig",
    "ITOPConfig",
    "LTPConfig",
    "MESTConfig",
    "NMConfig",
    "OptGConfig",
    "RigLConfig",
    "SCLConfig",
    "SETConfig",
    "SNFSConfig",
    "STRConfig",
    "SWATConfig",
    "SparseConfig",
    "TopKASTConfig",
    "AutoSparseMixin",
    "AutoSparseSeq2SeqTrainer",
    "AutoSparseTrainer",
    "FlopsReport",
    "InferenceReport",
    "PackedFormatError",
    "PruneReport",
    "SparseTraining",
    "SparsityReport",
    "__version__",
    "checkpoint_diff",
    "checkpoint_report",
    "finalize",
    "flops",
    "folded",
    "inference_report",
    "layer_sparsity",
    "pack",
    "prune",
    "push_to_hub",
    "screen_output",
    "sparse_layers",
    "sparsify",
    "sparsity",
    "sparsity_report",
    "to_inference",
    "unpack",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


autoload.install()
