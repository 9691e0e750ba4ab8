"""Report on any saved model with zeros, made by any tool, without loading its class and in bounded memory."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import RenderableType
from rich.filesize import decimal

from ..serialization.bitmask_format import Entry, PackedFile
from ..serialization.files import NATIVE_STATE, TRAJECTORY
from ..serialization.reader import FLOATING, SavedModel, zeros_in
from ..utils.io import StrPath
from ..utils.progress import progress_bar
from ..utils.tables import table
from .flops import layer_fraction, training_fraction
from .sparsity import LayerRow, SparsityReport, grouped
from .trajectory import Moment, Trajectory

# A padding row of an embedding, or small values that bfloat16 rounds to 0, do not make a layer sparse.
LEAST_SPARSITY = 0.01
_THRESHOLD = ".sparsifier.threshold"  # the end of a threshold's name in the native state
_NO_MATRIX = "no weight matrix (bias, norm, ...)"


@dataclass(frozen=True)
class CheckpointReport(SparsityReport):
    """A `SparsityReport` on files, with totals.

    `layers` are the weight matrices (`*.weight` with two or more dimensions, stacked experts) that the run trained
    sparse; those of which 1 % or more is zero where no run says so by these names. `dense` says of every other tensor
    why it is not among them.

    Args:
        source: what was asked for.
        stored_bytes: size of the weight files.
        packed: number of tensors in the packed format.
        values: number of floating-point values in all tensors, biases, norms and embeddings included.
        zeros: how many of them are zero.
        inference_fraction, training_fraction: theoretical FLOPs relative to the dense model's (see `reports.flops`);
            None where no trajectory tells what the layers cost.
        training_unknown: why `training_fraction` is not known although the costs are.
    """

    source: str
    stored_bytes: int
    packed: int
    values: int
    zeros: int
    inference_fraction: float | None
    training_fraction: float | None
    training_unknown: str | None

    def to_dict(self) -> dict[str, Any]:
        totals = ("source", "stored_bytes", "packed", "values", "zeros", "inference_fraction", "training_fraction")
        return {name: getattr(self, name) for name in totals} | super().to_dict()

    def parts(self) -> list[RenderableType]:
        form = f" ({self.packed} tensors packed)" if self.packed else ""
        share = self.zeros / max(1, self.values)
        lines = [f"zeros: {share:.2%} of all {self.values:,} values. Size: {decimal(self.stored_bytes)}{form}"]
        if self.inference_fraction is not None:
            lines.append(f"theoretical FLOPs of inference: {self.inference_fraction:.2%} of the dense model's")
        if self.training_fraction is not None:
            lines.append(f"theoretical FLOPs of training: {self.training_fraction:.2%} of the dense model's")
        if self.training_unknown is not None:
            lines.append(f"theoretical FLOPs of training: {self.training_unknown}")
        return super().parts() + lines

    def _dense_table(self) -> RenderableType:
        rows = grouped({name: why for name, why in self.dense.items() if why != _NO_MATRIX})
        if others := len(self.dense) - sum(why != _NO_MATRIX for why in self.dense.values()):
            rows.append((f"{others} other tensors", _NO_MATRIX))
        return table("left dense", ["tensor", "why"], rows, words=2)


def checkpoint_report(path_or_repo: StrPath, progress: bool = False) -> CheckpointReport:
    """Report on a saved model: ours or anybody's, plain or packed, one file or sharded.

    Every plain tensor is read once, a few megabytes at a time; of a packed one only the header, which tells the number
    of its zeros (unpacking checks it). Thresholds and costs come from the run's `autosparse_trajectory.json` beside the
    model, or thresholds from a checkpoint's native state. Those name layers as the live model does; a layer that the
    saved model calls otherwise (transformers renames some) has neither.

    Args:
        path_or_repo: the directory of a saved model, one .safetensors file, or a repository of the Hub.
        progress: show a bar on a terminal if it takes longer than two seconds.

    Raises:
        FileNotFoundError, PermissionError, ConnectionError: there is no such model, or the Hub does not give it.
        PackedFormatError: a damaged file; the message names it.
        ValueError: a damaged trajectory.
    """
    with SavedModel(path_or_repo) as model:
        zeros = _count_zeros(model, progress)
        run = _Run.beside(model)
        sparse = _sparse_layers(model, zeros, run)
        rows = [
            LayerRow(
                layer,
                model.entries[name].shape,
                zeros[name] / max(1, model.entries[name].count),
                run.thresholds.get(layer),
                model.entries[name].dtype,
                run.mac_share(layer),
            )
            for layer, name in sparse.items()
        ]
        listed = set(sparse.values())
        dense = {name: _why_dense(name, model.entries, zeros) for name in model.entries if name not in listed}
        return CheckpointReport(
            rows,
            dense,
            source=model.name,
            stored_bytes=model.stored_bytes,
            packed=sum(entry.packed for entry in model.entries.values()),
            values=sum(model.entries[name].count for name in zeros),
            zeros=sum(zeros.values()),
            inference_fraction=run.inference_fraction({row.name: row.sparsity for row in rows}),
            training_fraction=run.training_fraction,
            training_unknown=run.training_unknown,
        )


def _count_zeros(model: SavedModel, progress: bool) -> dict[str, int]:
    """Of each floating-point tensor."""
    zeros = {}
    with progress_bar(model.stored_bytes, "reading" if progress else None) as bar:
        for name, entry in model.entries.items():
            if entry.values is not None:
                zeros[name] = entry.count - entry.values
            elif entry.dtype in FLOATING:
                zeros[name] = 0
                for piece in model.pieces(name):
                    zeros[name] += zeros_in(piece)
                    bar.update(piece.nbytes)
    return zeros


def _sparse_layers(model: SavedModel, zeros: dict[str, int], run: _Run) -> dict[str, str]:
    """Layer name -> tensor name: in the run's order if the model has all that the run trained sparse."""
    matrices = {
        "" if name == "weight" else name.removesuffix(".weight"): name
        for name, entry in model.entries.items()
        if _is_matrix(name, entry)
    }
    if run.sparsity and run.sparsity.keys() <= matrices.keys():
        return {layer: matrices[layer] for layer in run.sparsity}
    return {
        layer: name
        for layer, name in matrices.items()
        if layer in run.sparsity or 0 < zeros[name] >= LEAST_SPARSITY * model.entries[name].count
    }


def _is_matrix(name: str, entry: Entry) -> bool:
    if entry.dtype not in FLOATING:
        return False
    if ".experts." in name and len(entry.shape) >= 3:  # stacked, and not called weight
        return True
    return len(entry.shape) >= 2 and name.split(".")[-1] == "weight"


def _why_dense(name: str, entries: dict[str, Entry], zeros: dict[str, int]) -> str:
    stem = re.sub("_(orig|mask)$", "", name)
    if stem != name and {f"{stem}_orig", f"{stem}_mask"} <= entries.keys():
        return "masked by torch.nn.utils.prune: call prune.remove before saving"
    if name not in zeros:
        return f"zeros are not counted in dtype {entries[name].dtype}"
    if not _is_matrix(name, entries[name]):
        return _NO_MATRIX
    return f"{zeros[name] / entries[name].count:.2%} zeros" if zeros[name] else "no zeros"


@dataclass(frozen=True)
class _Run:
    """What lies beside a model of the run that made it, by layer: empty for a model of another making."""

    thresholds: dict[str, float]
    sparsity: dict[str, float]  # the last that was recorded, of the layers that were trained sparse
    macs: dict[str, int]
    training_fraction: float | None = None
    training_unknown: str | None = None

    @classmethod
    def beside(cls, model: SavedModel) -> _Run:
        if not (model.directory / TRAJECTORY).is_file():
            thresholds = _native_thresholds(model.directory)
            return cls(thresholds, dict.fromkeys(thresholds, 0.0), {})
        run = Trajectory.load(model.directory)
        macs = {name: cost.macs for name, cost in run.layers.items()}
        unsaid = (0.0,) * len(run.sparse)
        last = run.moments[-1] if run.moments else Moment(0, 0.0, None, unsaid, unsaid, None)
        thresholds = dict(zip(run.sparse, last.threshold or (), strict=False))
        sparsity = dict(zip(run.sparse, last.sparsity, strict=True))
        if not any(macs.values()):
            return cls(thresholds, sparsity, {})
        try:
            return cls(thresholds, sparsity, macs, training_fraction(run))
        except ValueError as error:  # such as a run whose beginning was not recorded
            return cls(thresholds, sparsity, macs, None, str(error))

    def mac_share(self, layer: str) -> float | None:
        return self.macs[layer] / sum(self.macs.values()) if layer in self.macs else None

    def inference_fraction(self, sparsity: dict[str, float]) -> float | None:
        """`sparsity`: as found in the files. A layer that they call by another name counts with its recorded one."""
        if not self.macs:
            return None
        found = self.sparsity | sparsity
        return layer_fraction(list(self.macs.values()), [1 - found.get(layer, 0.0) for layer in self.macs])


def _native_thresholds(directory: Path) -> dict[str, float]:
    """T = sigmoid(s), the mean of a layer that has several, from the training state in a `checkpoint-*` directory."""
    if not (directory / NATIVE_STATE).is_file():
        return {}
    thresholds = {}
    with PackedFile(directory / NATIVE_STATE) as file:
        for name, entry in file.entries.items():
            if name.endswith(_THRESHOLD) and entry.dtype in FLOATING and entry.count:
                total = sum(torch.sigmoid(piece.float()).sum().item() for piece in file.pieces(name))
                thresholds[name.removesuffix(_THRESHOLD)] = total / entry.count
    return {name: threshold for name, threshold in thresholds.items() if math.isfinite(threshold)}
