"""Theoretical FLOPs as the literature on sparse training counts them. They are arithmetic, never a measured time.

Unit: one MAC is one multiply-accumulate, two FLOPs; fractions are the same in either. Counted are the layers that ran:
nn.Linear, nn.Conv1d/2d/3d (with their subclasses) and transformers' Conv1D, tied output layers included; biases,
normalisation, activations, pooling and embeddings are not. Padding is computed like anything else.

    MAC_l   = (elements of the layer's output) * (weights that each of them depends on), summed over the layer's calls,
              for one example: divided by the batch size, which is the first dimension of the first input tensor
    F       = sum(density_l * MAC_l) / sum(MAC_l)                                           inference, "Test F"
    F_step  = (F_forward + F_input_gradient + F_weight_gradient) / 3                        one optimizer step
    F_train = mean of F_step over all optimizer steps                                       training, "Train F"

The input gradient multiplies by the same sparse weights as the forward: F_input_gradient = F_forward. The weight
gradient has the sparsity that the method gave it: dense while alpha > 0, that of the set B under `backward_sparsity`
(AutoSparse, eq. 8), that of the forward once alpha is 0. The first layer's input gradient counts, though nobody needs
it, and thresholding and the optimizer do not: so do the papers.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..layers.kinds import kind_of, matrix_of
from ..layers.sparse import SparseLayer
from ..utils.tables import as_text, table
from .trajectory import Trajectory

# ---- Fractions, on numbers alone ----


def layer_fraction(macs: Sequence[float], density: Sequence[float]) -> float:
    """`sum(density * MAC) / sum(MAC)`: the share of a dense pass that a sparse one computes.

    Args:
        macs: of each layer when dense.
        density: fraction of non-zeros of each layer, in [0, 1], in the same order.

    Raises:
        ValueError: the lengths differ, or there is nothing to compute.
    """
    if not sum(macs) > 0:
        raise ValueError("no layer has MACs: there is nothing to take a fraction of")
    return sum(m * d for m, d in zip(macs, density, strict=True)) / sum(macs)


def step_fraction(forward: float, weight_gradient: float) -> float:
    """`(2 F_forward + F_weight_gradient) / 3`: one optimizer step, relative to a dense one."""
    return (2 * forward + weight_gradient) / 3


def training_fraction(trajectory: Trajectory, macs: Mapping[str, float] | None = None) -> float:
    """Training FLOPs of a run relative to a dense one: the mean of `step_fraction` over the steps that were made.

    Each moment of the trajectory counts for the steps until the next one, the last until `steps_done`.

    Args:
        macs: MACs of every layer, dense ones included; None for those that the trajectory recorded.

    Raises:
        ValueError: the costs are not known, the beginning of the run is not, or it has made no step.
    """
    if macs is None:
        macs = {name: cost.macs for name, cost in trajectory.layers.items()}
    unknown = [name for name in trajectory.sparse if name not in macs]
    if unknown:
        raise ValueError(f"no MACs are known for the trajectory's sparse layers {unknown}: pass macs with all layers'")
    moments = trajectory.moments
    if not moments or moments[0].step != 0:
        raise ValueError(
            "the trajectory does not begin at step 0, so the training FLOPs are not known: it was resumed from a"
            " checkpoint without one"
        )
    done = trajectory.max_steps if trajectory.steps_done is None else trajectory.steps_done
    if done <= 0:
        raise ValueError("the trajectory has no optimizer step yet, so it has no training FLOPs")

    def fraction(sparsity: tuple[float, ...]) -> float:
        density = dict.fromkeys(macs, 1.0) | {n: 1 - s for n, s in zip(trajectory.sparse, sparsity, strict=True)}
        return layer_fraction(list(macs.values()), list(density.values()))

    total = 0.0
    for moment, end in zip(moments, [m.step for m in moments[1:]] + [done], strict=True):
        total += (end - moment.step) * step_fraction(fraction(moment.sparsity), fraction(moment.backward_sparsity))
    return total / done


# ---- Counting ----


def counted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer, in registration order: what a FLOPs count covers. A layer that wraps another one is left out."""
    layers = {name: module for name, module in model.named_modules() if _is_layer(module)}
    return {name: m for name, m in layers.items() if not any(_is_layer(child) for child in list(m.modules())[1:])}


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) or kind_of(module) is not None


def _weights_per_output(layer: nn.Module) -> int:
    """How many weights one element of the layer's output depends on."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    if isinstance(layer, nn.modules.conv._ConvNd):
        return layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    return matrix_of(layer).shape[1]


@contextmanager
def count_macs(model: nn.Module) -> Iterator[dict[str, int]]:
    """MACs by layer name, all calls and the whole batch, of what the model computes inside the block.

    By forward hooks that only read shapes: results, gradients and random numbers are what they would be without.
    Compiled modules run uncompiled inside, because compiled code calls no new hooks.
    """
    layers = counted_layers(model)
    macs = dict.fromkeys(layers, 0)

    def count(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(layer: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                macs[name] += output.numel() * _weights_per_output(layer)

        return hook

    handles = [layer.register_forward_hook(count(name)) for name, layer in layers.items()]
    # Nothing can be compiled before torch._dynamo is imported, and importing it takes a second.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    try:
        with eager:
            yield macs
    finally:
        for handle in handles:
            handle.remove()


def batch_size(inputs: Any) -> int | None:
    """First dimension of the first tensor in a tensor, tuple, list or mapping; None where there is none."""
    tensor = _first_tensor(inputs)
    return tensor.shape[0] or None if tensor is not None and tensor.dim() > 0 else None


def _first_tensor(inputs: Any) -> Tensor | None:
    if isinstance(inputs, Tensor):
        return inputs
    values = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, (tuple, list)) else ()
    return next((tensor for tensor in map(_first_tensor, values) if tensor is not None), None)


# ---- The report ----


@dataclass(frozen=True)
class LayerFlops:
    """One layer. `kind`: its dense class. `macs`: of one example, when dense. `density`: of its effective weight."""

    name: str
    kind: str
    macs: int
    weights: int
    density: float


@dataclass(frozen=True)
class FlopsReport:
    """Theoretical FLOPs of a model, for one example; `print(report)` shows a table.

    Args:
        layers: in registration order; a layer that did not run has 0 MACs.
        attention_macs: products of activations with each other (queries with keys, weights with values), dense. Not
            part of the fractions.
        other_macs: products with weights outside the layers: experts stored as stacked parameters, the projections of
            nn.MultiheadAttention, transposed convolutions. Not part of the fractions either: where they are large, the
            fractions say little.
        training_fraction: "Train F"; None without a trajectory.
    """

    layers: list[LayerFlops]
    attention_macs: int
    other_macs: int
    training_fraction: float | None = None

    @property
    def macs(self) -> int:
        """MACs of all layers when dense."""
        return sum(row.macs for row in self.layers)

    @property
    def sparse_macs(self) -> int:
        """MACs with non-zero weights."""
        return round(sum(row.macs * row.density for row in self.layers))

    @property
    def inference_fraction(self) -> float:
        """`sum(density * MAC) / sum(MAC)`: "Test F"."""
        return layer_fraction([row.macs for row in self.layers], [row.density for row in self.layers])

    def to_dict(self) -> dict[str, Any]:
        return {
            "macs": self.macs,
            "sparse_macs": self.sparse_macs,
            "inference_fraction": self.inference_fraction,
            "training_fraction": self.training_fraction,
            "attention_macs": self.attention_macs,
            "other_macs": self.other_macs,
            "layers": [asdict(row) for row in self.layers],
        }

    def __str__(self) -> str:
        title = f"theoretical inference FLOPs {self.inference_fraction:.2%} of dense"
        if self.training_fraction is not None:
            title += f", training FLOPs {self.training_fraction:.2%}"
        headers = ["layer", "kind", "MACs", "share", "weights", "density", "sparse MACs"]
        weights = sum(row.weights for row in self.layers)
        totals = ["all layers", "", f"{self.macs:,}", "100.00%", f"{weights:,}", "", f"{self.sparse_macs:,}"]
        rows = [
            (row.name or "(the model itself)", row.kind, f"{row.macs:,}", f"{row.macs / self.macs:.2%}")
            + (f"{row.weights:,}", f"{row.density:.2%}", f"{round(row.macs * row.density):,}")
            for row in self.layers
        ]
        notes = [f"MACs of one example. Not counted in: attention products, {self.attention_macs:,} MACs"]
        if self.other_macs:
            notes.append(f"; weights outside the layers, {self.other_macs:,} MACs")
        return as_text([table(title, headers, rows, words=2, totals=totals), "".join(notes)], width=140)


def flops(model: nn.Module, example_inputs: Any, trajectory: Trajectory | None = None) -> FlopsReport:
    """Count the theoretical FLOPs of a model by running it once, without gradients and in evaluation mode.

    The module's docstring has the convention: F = sum(density * MAC) / sum(MAC) over convolutions and linear layers,
    MACs for one example. Works on dense, sparse, folded and finalized models; the model, its mode, gradients, hooks and
    the random state are left as they were.

    Args:
        example_inputs: a tensor, a tuple of positional or a mapping of keyword inputs, on the model's device. The first
            dimension of the first tensor is the batch size.
        trajectory: of the run that trained the model (`trainer.trajectory`, `Trajectory.load`): gives
            `training_fraction`, with the MACs of these inputs.

    Raises:
        TypeError: example_inputs is none of these.
        ValueError: it holds no tensor with a batch dimension, no counted layer ran, or the trajectory is of another
            model.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    if isinstance(example_inputs, Mapping):
        args, kwargs = (), dict(example_inputs)
    elif isinstance(example_inputs, (Tensor, tuple)):
        args, kwargs = (example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)), {}
    else:
        raise TypeError(
            f"example_inputs is a {type(example_inputs).__name__}: pass a tensor, a tuple of positional inputs or a"
            " dict of keyword inputs"
        )
    examples = batch_size(example_inputs)
    if examples is None:
        raise ValueError("example_inputs has no batch dimension: its first tensor must have shape (batch, ...)")
    macs, outside = _trace(model, args, kwargs)
    layers = [_row(name, layer, round(macs[name] / examples)) for name, layer in counted_layers(model).items()]
    if not any(row.macs for row in layers):
        raise ValueError(f"no nn.Linear, nn.Conv or Conv1D layer of {type(model).__name__} ran on example_inputs")
    training = None if trajectory is None else training_fraction(trajectory, {row.name: row.macs for row in layers})
    other = sum(outside[op] for op in _WITH_WEIGHTS)
    attention = sum(outside.values()) - other
    return FlopsReport(layers, round(attention / 2 / examples), round(other / 2 / examples), training)


@torch.no_grad()
def _row(name: str, layer: nn.Module, macs: int) -> LayerFlops:
    kind = kind_of(layer)
    label = type(layer).__name__ if kind is None else kind.name
    weight: Any = layer.sparse_weight() if isinstance(layer, SparseLayer) else layer.weight
    # Integers are packed or quantised values, among which a zero means nothing.
    kept = weight.count_nonzero().item() if weight.is_floating_point() else weight.numel()
    return LayerFlops(name, label, macs, weight.numel(), kept / weight.numel())


def _attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *args: object, **kwargs: object
) -> int:
    """Shapes (batch, heads, length, size). As torch counts its other attention kernels: no discount for a mask."""
    batch, heads, length, size = query
    return 2 * batch * heads * length * key[2] * (size + value[3])


def _grouped_flops(tokens: Sequence[int], experts: Sequence[int], *args: object, **kwargs: object) -> int:
    """Shapes (tokens, inputs) and (experts, inputs, outputs): each token goes through one expert."""
    return 2 * tokens[0] * tokens[1] * experts[-1]


_ATEN = torch.ops.aten
# Kernels that torch's counter does not know.
_FORMULAS = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    _ATEN._grouped_mm: _grouped_flops,
}
# Products with a weight where they occur outside a layer; all others multiply activations with each other.
_WITH_WEIGHTS = (_ATEN.mm, _ATEN.addmm, _ATEN._scaled_mm, _ATEN._grouped_mm, _ATEN.convolution)


def _trace(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, int], Counter[Any]]:
    """MACs by layer name, and FLOPs by operator of the products outside the layers, for the whole batch."""
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    inside: Counter[Any] = Counter()

    def enter(*_: object) -> None:
        inside.subtract(counter.flop_counts["Global"])

    def leave(*_: object) -> None:
        inside.update(counter.flop_counts["Global"])

    handles = []
    try:
        for layer in counted_layers(model).values():
            handles += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
        with _undisturbed(model), count_macs(model) as macs, counter:
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    outside = Counter(counter.flop_counts["Global"])
    outside.subtract(inside)
    return macs, outside


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each module's mode and the random state are what they were."""
    modes = [(module, module.training) for module in model.modules()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # nn.TransformerEncoderLayer's bypasses its layers
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(list(devices)):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        torch.backends.mha.set_fastpath_enabled(fast_path)
