"""Is a layer trained faster with sparse products? Measured on this machine, both ways, and kept in a file."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F

from .. import kernels
from ..inference.measure import _MOST_WORK, SPARSITIES, Crossover, Ranges, Speedups, best_times, ranges
from .product import Forms, SparseProduct

logger = logging.getLogger(__name__)

TOKENS = (64, 256, 1024)
_ROUNDS, _SECONDS = 4, 0.05  # at least, of each measurement
_picked: dict[tuple, Ranges] = {}
_measurements: dict[int, TrainingCrossover] = {}


class TrainingCrossover(Crossover):
    """The measurements of training, in the same file as those of inference."""

    def training_speedups(self, shape: tuple[int, int], bias: bool, floor: float, sampled: bool) -> Speedups:
        """Number of tokens -> dense time / sparse time, of a forward and backward that makes its sparse forms itself.

        Args:
            shape: (outputs, inputs) of the weight.
            bias: whether there is one.
            floor: its fraction of zeros, one of `SPARSITIES`.
            sampled: whether the weight's gradient is only needed where the weight is not 0.
        """
        kind = "sampled" if sampled else "dense"
        key = f"training {shape[0]}x{shape[1]} bias={bias} zeros={floor} weight_gradient={kind}"
        if key not in self._known:
            self._known[key] = self._new[key] = _measure(shape, bias, floor, sampled)
            self.save()
        return self._known[key]


def is_faster(shape: tuple[int, int], bias: bool, tokens: int, zeros: float, sampled: bool) -> bool:
    """Whether sparse products are to be taken. `zeros`: fraction of zeros, at least `SPARSITIES[0]`."""
    floor = max(step for step in SPARSITIES if step <= zeros + 0.005)
    threads = torch.get_num_threads()
    key = (threads, shape, bias, floor, sampled)
    if key not in _picked:
        if threads not in _measurements:
            _measurements[threads] = TrainingCrossover()
        speedups = _measurements[threads].training_speedups(shape, bias, floor, sampled)
        _picked[key] = ranges(speedups)
        logger.info(
            "compute='auto', a %d x %d weight with %.0f %% zeros, its gradient %s: %s (%s)",
            *shape,
            100 * floor,
            "sampled" if sampled else "dense",
            _words(_picked[key]),
            ", ".join(f"{count:,} tokens {ratio:.2f}x" for count, ratio in speedups.items()),
        )
    return any(low <= tokens <= high for low, high in _picked[key])


def _words(picked: Ranges) -> str:
    spans = [f"{low:,} to {high:,} tokens" if high < float("inf") else f"{low:,} tokens on" for low, high in picked]
    return f"sparse products for {' and '.join(spans)}" if picked else "dense products"


@torch.enable_grad()
def _measure(shape: tuple[int, int], bias: bool, floor: float, sampled: bool) -> Speedups:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator)
    weight *= torch.rand(shape, generator=generator) >= floor
    weight.requires_grad_()
    shift = torch.zeros(shape[0], requires_grad=True) if bias else None
    library = kernels.library()
    result = {}
    for tokens in TOKENS:
        if result and tokens * weight.numel() > _MOST_WORK["cpu"]:
            break
        x = torch.randn(tokens, shape[1], generator=generator, requires_grad=True)
        grad = torch.randn(tokens, shape[0], generator=generator)
        leaves = [leaf for leaf in (x, weight, shift) if leaf is not None]

        def dense(x=x, grad=grad, leaves=leaves):
            torch.autograd.grad(F.linear(x, weight, shift), leaves, grad)

        def sparse(x=x, grad=grad, leaves=leaves):
            forms = Forms(weight.detach(), library, sampled)
            torch.autograd.grad(SparseProduct.apply(x, weight, shift, forms, sampled), leaves, grad)

        seconds = best_times((dense, sparse), _ROUNDS, _SECONDS)
        result[tokens] = round(seconds[0] / seconds[1], 3)
    return result
