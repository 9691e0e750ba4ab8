"""For which numbers of tokens is a layer faster sparse than dense on this machine? Measured, and kept in a file.

Both layers are timed as they are called, in turns, the best time of each, with random weights of the layer's shape and
about its number of zeros. For few tokens it matters where a weight comes from: a large model's from memory, a small
one's from the processor's caches. So as many copies are gone through in turn as make up the model's size.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import os
import platform
import time
from pathlib import Path

import torch
from torch import nn

from .. import kernels
from ..functional import n_of_m_mask
from ..layers.kinds import matrix_of, require_kind
from .layers import EVERY_NUMBER, Ranges, swap_in

logger = logging.getLogger(__name__)

TOKENS = (1, 4, 16, 64, 256, 1024)
SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
MARGIN = 1.05  # speed-up from which on the sparse layer is taken: noise must not make a model slower
_FORMAT_VERSION = 1
_ROUNDS, _SECONDS = 5, 0.03  # at least, of each measurement
_MOST_WORK = {"cpu": 3e9, "cuda": 1e12}  # multiply-adds of one dense call; beyond, the result for fewer tokens stands
_FEW_TOKENS = 16  # up to here reading the weight takes longer than computing with it
_LARGE = {"cpu": 64, "cuda": 512}  # MiB of dense weights: more than caches hold, of a GPU in their sparse form too

Speedups = dict[int, float]


def ranges(speedups: Speedups) -> Ranges:
    """The numbers of tokens to go sparse for: those measured faster, and those between two such neighbours.

    Beyond the largest that was measured, the ratio no longer changes.
    """
    points = sorted(speedups)
    found: list[tuple[int, float]] = []
    for i, point in enumerate(points):
        if speedups[point] < MARGIN:
            continue
        if i == len(points) - 1:
            end = math.inf
        else:
            end = points[i + 1] if speedups[points[i + 1]] >= MARGIN else point
        if found and found[-1][1] == point:
            found[-1] = (found[-1][0], end)
        else:
            found.append((point, end))
    return tuple(found)


class Crossover:
    """The measurements of this machine, compiler, torch release and number of threads, or of this GPU.

    Args:
        remeasure: forget what the cache says.
        device: where the layers are.
    """

    def __init__(self, remeasure: bool = False, device: torch.device | str = "cpu"):
        self.machine = _machine(torch.device(device))
        digest = hashlib.sha256(json.dumps(self.machine, sort_keys=True).encode()).hexdigest()[:16]
        self.path = kernels.cache_directory() / f"crossover-{digest}.json"
        self._known = {} if remeasure else self._read()
        self._new: dict[str, Speedups] = {}

    def speedups(self, layer: nn.Module, sparsity: float, model_bytes: int, backend: str = "sparse") -> Speedups:
        """Number of tokens -> dense time / sparse time, for a layer of this kind, shape and sparsity.

        Args:
            layer: a Linear, Conv1D or Conv2d (the pixels of its result are the tokens).
            sparsity: at least `SPARSITIES[0]`.
            model_bytes: of all weights that a forward pass of the model reads.
            backend: the sparse form, of `kernels.BACKENDS`.
        """
        floor = max(step for step in SPARSITIES if step <= sparsity + 0.005)
        large = _LARGE.get(layer.weight.device.type, _LARGE["cpu"])
        mebibytes = min(large, 2 ** int(math.log2(max(1, model_bytes / 2**20))))
        shape = "x".join(map(str, layer.weight.shape))
        key = f"{require_kind(layer).name} {shape} bias={layer.bias is not None} zeros={floor} model={mebibytes}MiB"
        if isinstance(layer, nn.Conv2d) and (layer.kernel_size, layer.stride) != ((1, 1), (1, 1)):
            key += f" stride={layer.stride} dilation={layer.dilation} padding={layer.padding}"
        if backend != "sparse":
            key += f" {backend} {layer.weight.dtype}"
        if key not in self._known:
            self._known[key] = self._new[key] = _measure(layer, floor, mebibytes, backend)
        return self._known[key]

    def save(self) -> None:
        """Add the new measurements to the file. A cache that cannot be written is no reason to fail, but is logged."""
        if not self._new:
            return
        entries = {key: {str(n): ratio for n, ratio in s.items()} for key, s in (self._read() | self._new).items()}
        content = {"format_version": _FORMAT_VERSION, "machine": self.machine, "speedups": entries}
        draft = self.path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
            os.replace(draft, self.path)
        except OSError as error:
            logger.warning("the measurements cannot be kept for the next time: %s", error)
        else:
            self._new = {}

    def _read(self) -> dict[str, Speedups]:
        try:
            content = json.loads(self.path.read_text())
            if content["format_version"] != _FORMAT_VERSION:
                raise ValueError(f"format_version {content['format_version']!r}, expected {_FORMAT_VERSION}")
            return {
                key: {int(n): float(ratio) for n, ratio in entry.items()} for key, entry in content["speedups"].items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s is damaged and will be measured again: %s: %s", self.path, type(error).__name__, error)
            return {}


def _machine(device: torch.device) -> dict[str, object]:
    """What the measurements depend on."""
    if device.type == "cuda":
        return {
            "gpu": torch.cuda.get_device_name(device),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "kernels": kernels.gpu.status(),
        }
    library = kernels.library()
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "library": library.path.stem,
        "isa": library.isa,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith(("model name", "CPU part")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


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
        beyond = tokens * weight.numel() > _MOST_WORK.get(weight.device.type, _MOST_WORK["cpu"])
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


def _call(modules: list[nn.Module], x: torch.Tensor):
    """Runs the layers one after the other, and on a GPU waits for the last."""

    def call() -> None:
        for module in modules:
            module(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)

    return call


def best_times(actions, rounds: int, seconds: float) -> list[float]:
    """The shortest time of each action, all run in turns `rounds` times and `seconds` long at least."""
    best = [math.inf] * len(actions)
    start, done = time.perf_counter(), 0
    while done < rounds or time.perf_counter() - start < seconds:
        for i, action in enumerate(actions):
            begin = time.perf_counter()
            action()
            best[i] = min(best[i], time.perf_counter() - begin)
        done += 1
    return best
