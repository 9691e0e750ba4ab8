"""The name of every file that a run or a saved model has, and which of them are private.

A private file serves a run (training state, optimizer state, drafts). It is never published and never copied beside a
packed model. Pickles are private whatever they hold: loading one runs its code.
"""

from __future__ import annotations

import fnmatch
import re
from pathlib import PurePath

from ..utils.io import StrPath

# A saved model.
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MODEL_CONFIG = "config.json"
QUANT_METHOD = "autosparse"  # of the quantization_config in a packed model's config.json
CARD = "README.md"
TRAJECTORY = "autosparse_trajectory.json"  # how sparsity developed over the run
PRUNING = "autosparse_pruning.json"  # what one-shot pruning did to each layer
PLOTS = "plots"  # a directory

# A checkpoint, for resuming.
NATIVE_STATE = "autosparse_state.safetensors"  # raw weights, thresholds and method buffers
MANIFEST = "autosparse_manifest.json"  # every other file with its size: the checkpoint is whole
TRAINER_STATE = "trainer_state.json"  # transformers'

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.distcp")
PRIVATE = (
    *PICKLES,
    *(".*", "*.tmp"),  # hidden files and directories, drafts
    *("autosparse_state*", MANIFEST, "autosparse_loss_*", TRAINER_STATE),
    *("zero_to_fp32.py", "latest"),  # DeepSpeed's
)
"""Patterns of the names of private files and directories."""

_WEIGHT = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def loss_window(process: int) -> str:
    """Name of the file with the loss that one process has summed since the last log."""
    return f"autosparse_loss_{process}.json"


def is_private(name: str) -> bool:
    """Whether a file or directory of this name (without its parents) stays with the run."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in PRIVATE)


def is_weight_file(name: str) -> bool:
    """Whether this is the name of a model's weights, of one of their shards, or of the index of the shards."""
    return _WEIGHT.fullmatch(name) is not None


def checkpoint_step(directory: StrPath) -> int | None:
    """The optimizer step of a run's `checkpoint-*` directory, told from its name; None for any other name."""
    match = _CHECKPOINT.fullmatch(PurePath(directory).name)
    return int(match[1]) if match else None
