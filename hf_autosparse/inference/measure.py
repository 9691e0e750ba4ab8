"""For which numbers of tokens is a layer faster sparse than dense on this machine? Measured, and kept in a file.

Both layers are timed as they are called, in turns, the best time of each, with random weights of the layer's shape and
about its number of zeros. For few tokens it matters where a weight comes from: a large model's from memory, a small
one's from the processor's caches. So as many copies are gone through in turn as make up the model's size.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import nn

from .. import kernels
from ..functional import n_of_m_mask
from ..kernels.autotune import EVERY_NUMBER, MOST_WORK, Measurements, Speedups, best_times, measured_sparsity
from ..layers.kinds import matrix_of, require_kind
from .layers import swap_in

TOKENS = (1, 4, 16, 64, 256, 1024)
_ROUNDS, _SECONDS = 5, 0.03  # at least, of each measurement
_FEW_TOKENS = 16  # up to here reading the weight takes longer than computing with it
_LARGE = {"cpu": 64, "cuda": 512}  # MiB of dense weights: more than caches hold, of a GPU in their sparse form too


class Crossover(Measurements):
    """The measurements of layers for inference on one device."""

    def speedups(self, layer: nn.Module, sparsity: float, model_bytes: int, backend: str = "sparse") -> Speedups:
        """Number of tokens -> dense time / sparse time, for a layer of this kind, shape and sparsity.

        Args:
            layer: a Linear, Conv1D or Conv2d (the pixels of its result are the tokens).
            sparsity: at least `SPARSITIES[0]`.
            model_bytes: of all weights that a forward pass of the model reads.
            backend: the sparse form, of `kernels.BACKENDS`.
        """
        floor = measured_sparsity(sparsity)
        large = _LARGE.get(layer.weight.device.type, _LARGE["cpu"])
        mebibytes = min(large, 2 ** int(math.log2(max(1, model_bytes / 2**20))))
        shape = "x".join(map(str, layer.weight.shape))
        key = f"{require_kind(layer).name} {shape} bias={layer.bias is not None} zeros={floor} model={mebibytes}MiB"
        if isinstance(layer, nn.Conv2d) and (layer.kernel_size, layer.stride) != ((1, 1), (1, 1)):
            key += f" stride={layer.stride} dilation={layer.dilation} padding={layer.padding}"
        if backend != "sparse":
            key += f" {backend} {layer.weight.dtype}"
        return self.get(key, lambda: _measure(layer, floor, mebibytes, backend))


@torch.no_grad()
def _measure(layer: nn.Module, sparsity: float, mebibytes: int, backend: str = "sparse") -> Speedups:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(layer.weight.shape, generator=generator)
    if backend == "semi_structured":
        view = require_kind(layer).matrix(weight)
        view *= n_of_m_mask(view.abs(), 2, 4)
    weight *= torch.rand(weight.shape, generator=generator) >= sparsity
    weight = weight.to(layer.weight)
    dense = []
    for _ in range(max(1, mebibytes * 2**20 // weight.nbytes)):
        dense.append(copy.deepcopy(layer))
        dense[-1].weight = nn.Parameter(weight.clone(), requires_grad=False)
    sparse = copy.deepcopy(dense)
    for module in sparse:
        swap_in(module, EVERY_NUMBER, backend)
    result = {}
    for tokens in TOKENS:
        beyond = tokens * weight.numel() > MOST_WORK.get(weight.device.type, MOST_WORK["cpu"])
        if tokens > 1 and (beyond or tokens > kernels.BACKENDS[backend].most_tokens):
            break
        x = torch.randn(_input_shape(layer, tokens), generator=generator).to(weight)
        copies = len(dense) if tokens <= _FEW_TOKENS else 1
        calls = [_call(modules[:copies], x) for modules in (dense, sparse)]
        seconds = best_times(calls, _ROUNDS, _SECONDS)
        result[tokens] = round(seconds[0] / seconds[1], 3)
    return result


def _input_shape(layer: nn.Module, tokens: int) -> tuple[int, ...]:
    """Of an input that makes so many tokens, a square number, or so many pixels of a convolution's result."""
    if not isinstance(layer, nn.Conv2d):
        return tokens, matrix_of(layer).shape[1]
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    steps = math.isqrt(tokens) - 1
    sides = [
        max(1, steps * stride + dilation * (kernel - 1) + 1 - padding)
        for kernel, stride, dilation, padding in zip(
            layer.kernel_size, layer.stride, layer.dilation, (top + bottom, left + right), strict=True
        )
    ]
    return 1, layer.in_channels, *sides


def _call(modules: list[nn.Module], x: torch.Tensor) -> Callable[[], None]:
    """Runs the layers one after the other, and on a GPU waits for the last."""

    def call() -> None:
        for module in modules:
            module(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)

    return call
