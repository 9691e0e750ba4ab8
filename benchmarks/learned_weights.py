"""Learned zeros against random ones: the weights of a saved model, and as many zeros at random places.

Learned zeros are uneven: some rows keep many weights, others next to none.
"""

from __future__ import annotations

from collections import defaultdict
from os import PathLike

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measuring import interleaved, summary
from hf_autosparse import kernels
from hf_autosparse.serialization.reader import SavedModel

TOKENS = (1, 4, 16, 64, 256, 1024)
LEAST = 0.3  # sparsity from which on a weight counts as a sparse layer's


def sparse_weights(path: str | PathLike) -> dict[tuple[int, int], list[Tensor]]:
    """Shape -> the model's sparse matrices of that shape, in float32.

    Raises:
        ValueError: there is none.
    """
    found = defaultdict(list)
    with SavedModel(path) as model:
        for name, entry in model.entries.items():
            if len(entry.shape) == 2:
                weight = torch.cat([piece.float().flatten() for piece in model.pieces(name)]).view(*entry.shape)
                if 1 - weight.count_nonzero() / weight.numel() >= LEAST:
                    found[tuple(entry.shape)].append(weight)
    if not found:
        raise ValueError(f"{path} holds no matrix with at least {LEAST:.0%} zeros")
    return dict(found)


def at_random(weight: Tensor) -> Tensor:
    """The same values at random places."""
    return weight.flatten()[torch.randperm(weight.numel())].view_as(weight).contiguous()


def unevenness(weight: Tensor) -> float:
    """Standard deviation over mean of the number of non-zeros in a row."""
    count = weight.count_nonzero(1).double()
    return float(count.std() / count.mean())


@torch.inference_mode()
def compare(path: str | PathLike, rounds: int, seconds: float) -> list[dict[str, object]]:
    """The kernel with a model's weights of a shape in turn, with the same values at random places, and dense."""
    torch.manual_seed(0)
    print("| weight | layers | sparsity | unevenness of rows | tokens | dense / learned | learned / random, time |")
    print("|---|---|---|---|---|---|---|")
    results = []
    for shape, weights in sparse_weights(path).items():
        shuffled = [at_random(weight) for weight in weights]
        learned, random = ([kernels.SparseMatrix(w, kernels.library()) for w in ws] for ws in (weights, shuffled))
        zeros = 1 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)
        uneven = sum(map(unevenness, weights)) / len(weights)
        for tokens in TOKENS:
            x = torch.randn(tokens, shape[1])
            calls = {
                "dense": lambda x=x, ws=weights: [F.linear(x, w) for w in ws],
                "learned": lambda x=x, ms=learned: [m.product(x) for m in ms],
                "random": lambda x=x, ms=random: [m.product(x) for m in ms],
            }
            times = interleaved(calls, rounds, seconds)
            figures = summary(times, "dense")
            ratio = 1 / summary(times, "random")["learned"]["speedup"]
            print(
                f"| {'x'.join(map(str, shape))} | {len(weights)} | {zeros:.1%} | {uneven:.2f} | {tokens}"
                f" | {figures['learned']['speedup']:.2f} | {ratio:.2f} |",
                flush=True,
            )
            results.append(
                {"weight": list(shape), "layers": len(weights), "sparsity": zeros, "unevenness": uneven}
                | {"tokens": tokens, "learned_over_random": ratio, "contestants": figures}
            )
    return results
