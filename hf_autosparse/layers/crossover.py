"""Is a layer trained faster with sparse products? Measured on this machine before training, and kept in a file."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import kernels
from ..kernels import autotune
from ..kernels.autotune import SPARSITIES, Measurement, Ranges
from .product import Forms, sparse_product

if TYPE_CHECKING:
    from .sparse import SparseLayer

logger = logging.getLogger(__name__)

TOKENS = (64, 256, 1024)
_ROUNDS, _SECONDS = 2, 0.025  # at least, of each timing

# (threads, shape, bias, entry of SPARSITIES, sampled) -> the numbers of tokens for which sparse products are faster
_picked: dict[tuple[int, tuple[int, int], bool, float, bool], Ranges] = {}


def measure_layers(layers: Iterable[SparseLayer]) -> None:
    """Measure the layers whose configuration says `compute="auto"`, for every sparsity that they may come to.

    Called before training. It takes a few seconds for each new shape; the results are kept for this machine and number
    of threads. Fewer zeros are no faster: below the first sparsity at which nothing is gained, nothing is measured.
    """
    library = kernels.library()
    if library is None:
        return
    cases = {
        (layer.kind.matrix(layer.weight).shape, layer.bias is not None)
        for layer in layers
        if layer.sparsifier.config.compute == "auto" and layer.weight.dim() == 2
    }
    if not cases:
        return
    known = autotune.Store("cpu", library.version)
    for (outputs, inputs), bias in sorted(cases):
        for sampled in (True, False):
            for zeros in reversed(SPARSITIES):
                if not _pick(known, (outputs, inputs), bias, zeros, sampled):
                    break


def is_faster(shape: tuple[int, int], bias: bool, tokens: int, zeros: float, sampled: bool) -> bool:
    """Whether `measure_layers` found sparse products faster; False for what it was not asked about.

    Args:
        shape: (outputs, inputs) of the weight.
        bias: whether there is one.
        tokens: rows of the input.
        zeros: fraction of zeros of the weight, at least `SPARSITIES[0]`.
        sampled: whether the weight's gradient is only needed in some places.
    """
    key = (torch.get_num_threads(), shape, bias, autotune.measured_sparsity(zeros), sampled)
    return any(low <= tokens <= high for low, high in _picked.get(key, ()))


def _pick(known: autotune.Store, shape: tuple[int, int], bias: bool, zeros: float, sampled: bool) -> Ranges:
    case = (torch.get_num_threads(), shape, bias, zeros, sampled)
    if case in _picked:
        return _picked[case]
    gradient = "sampled" if sampled else "dense"
    key = f"training {shape[0]}x{shape[1]} bias={bias} zeros={zeros} weight_gradient={gradient}"
    speedups = known.speedups(key, lambda: _measure(shape, bias, zeros, sampled))
    known.save()
    _picked[case] = picked = autotune.ranges(speedups)
    logger.info(
        "compute='auto', a %d x %d weight with %.0f %% zeros, its gradient %s: %s (%s)",
        *shape,
        100 * zeros,
        gradient,
        _words(picked),
        ", ".join(f"{count:,} tokens {ratio:.2f}x" for count, ratio in speedups.items()),
    )
    return picked


def _words(picked: Ranges) -> str:
    spans = [f"{low:,} to {high:,} tokens" if high < float("inf") else f"{low:,} tokens on" for low, high in picked]
    return f"sparse products for {' and '.join(spans)}" if picked else "dense products"


@torch.enable_grad()
def _measure(shape: tuple[int, int], bias: bool, zeros: float, sampled: bool) -> Measurement:
    """Times a forward and backward pass that makes its sparse forms itself."""
    library = kernels.library()
    assert library is not None
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator)
    weight *= torch.rand(shape, generator=generator) >= zeros
    weight.requires_grad_()
    shift = torch.zeros(shape[0], requires_grad=True) if bias else None
    compared: dict[int, tuple[float, float]] = {}
    for tokens in TOKENS:
        if compared and tokens * weight.numel() > autotune.MOST_WORK["cpu"]:
            break
        x = torch.randn(tokens, shape[1], generator=generator, requires_grad=True)
        grad = torch.randn(tokens, shape[0], generator=generator)
        leaves = [leaf for leaf in (x, weight, shift) if leaf is not None]

        def dense(x: Tensor = x, grad: Tensor = grad, leaves: list[Tensor] = leaves) -> None:
            torch.autograd.grad(F.linear(x, weight, shift), leaves, grad)

        def sparse(x: Tensor = x, grad: Tensor = grad, leaves: list[Tensor] = leaves) -> None:
            forms = Forms(weight.detach(), library, sampled)
            torch.autograd.grad(sparse_product(x, weight, shift, forms, sampled), leaves, grad)

        compared[tokens] = autotune.compare(dense, sparse, _ROUNDS, _SECONDS)
    return Measurement.of(compared)
