"""For which numbers of tokens is a layer faster sparse than dense on this machine?

Both layers are timed as they are called, with random weights of the layer's shape and about its number of zeros. For
few tokens it matters where a weight comes from: a large model's from memory, a small one's from the processor's caches.
So as many copies are gone through in turn as make up the model's size.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from ..kernels import Backend
from ..kernels.autotune import EVERY_NUMBER, MOST_WORK, Action, Measurement, Speedups, Store, compare, measured_sparsity
from ..layers.kinds import matrix_of, require_kind
from .layers import swap_in

TOKENS = (1, 4, 16, 64, 256, 1024)
_ROUNDS, _SECONDS = 3, 0.015  # at least, of each timing
_FEW_TOKENS = 16  # up to here reading the weight takes longer than computing with it
_LARGE = {"cpu": 64, "cuda": 512}  # MiB of dense weights: more than caches hold, of a GPU in their sparse form too


def layer_speedups(store: Store, layer: nn.Module, sparsity: float, model_bytes: int, backend: Backend) -> Speedups:
    """Number of tokens -> dense time / sparse time, for a layer of this kind, shape and sparsity.

    Args:
        store: of the layer's device and the backend's version.
        layer: a dense layer; the pixels of a convolution's result are its tokens.
        sparsity: at least `SPARSITIES[0]`.
        model_bytes: of all weights that a forward pass of the model reads.
        backend: the sparse form.
    """
    floor = measured_sparsity(sparsity)
    weight = _weight(layer)
    large = _LARGE.get(weight.device.type, _LARGE["cpu"])
    mebibytes = min(large, 2 ** int(math.log2(max(1, model_bytes / 2**20))))
    shape = "x".join(map(str, weight.shape))
    key = f"{require_kind(layer).name} {shape} bias={layer.bias is not None} zeros={floor} model={mebibytes}MiB"
    if isinstance(layer, nn.Conv2d) and (layer.kernel_size, layer.stride) != ((1, 1), (1, 1)):
        key += f" stride={layer.stride} dilation={layer.dilation} padding={layer.padding}"
    key += f" {backend.name} {weight.dtype}"
    return store.speedups(key, lambda: _measure(layer, floor, mebibytes, backend))


@torch.no_grad()
def _measure(layer: nn.Module, sparsity: float, mebibytes: int, backend: Backend) -> Measurement:
    generator = torch.Generator().manual_seed(0)
    like = _weight(layer)
    weight = torch.randn(like.shape, generator=generator)
    matrix = require_kind(layer).matrix(weight)
    matrix.copy_(backend.restrict(matrix))
    weight *= torch.rand(weight.shape, generator=generator) >= sparsity
    weight = weight.to(like)
    dense = []
    for _ in range(max(1, mebibytes * 2**20 // weight.nbytes)):
        dense.append(copy.deepcopy(layer))
        dense[-1].weight = nn.Parameter(weight.clone(), requires_grad=False)
    sparse = copy.deepcopy(dense)
    for module in sparse:
        swap_in(module, EVERY_NUMBER, backend.name)
    compared = {}
    for tokens in TOKENS:
        beyond = tokens * weight.numel() > MOST_WORK.get(weight.device.type, MOST_WORK["cpu"])
        if tokens > 1 and (beyond or tokens > backend.most_tokens):
            break
        x = torch.randn(_input_shape(layer, tokens), generator=generator).to(weight)
        copies = len(dense) if tokens <= _FEW_TOKENS else 1
        compared[tokens] = compare(_call(dense[:copies], x), _call(sparse[:copies], x), _ROUNDS, _SECONDS)
    return Measurement.of(compared)


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight


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


def _call(modules: list[nn.Module], x: Tensor) -> Action:
    """Runs the layers one after the other, and waits for a device that computes beside the processor."""
    wait = None if x.device.type == "cpu" else torch.get_device_module(x.device).synchronize

    def call() -> None:
        for module in modules:
            module(x)
        if wait is not None:
            wait(x.device)

    return call
