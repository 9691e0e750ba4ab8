"""How a sparsity budget is spread over layers: pure functions of the layers' shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

Distribution = Literal["uniform", "erk"]
Shapes = Mapping[str, tuple[int, ...]]


def uniform(shapes: Shapes, sparsity: float) -> dict[str, float]:
    """The same sparsity in every layer."""
    return dict.fromkeys(shapes, sparsity)


def erk(shapes: Shapes, sparsity: float) -> dict[str, float]:
    """Erdos-Renyi-Kernel: a layer's density is proportional to `sum(shape) / prod(shape)`, so small layers stay denser.

    Layers whose density would pass 1 are kept dense, and the others share the rest (Evci et al. 2020, RigL, eq. 2).
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    budget = (1.0 - sparsity) * sum(sizes.values())
    dense: set[str] = set()
    while True:
        rest = [name for name in shapes if name not in dense]
        if not rest:
            return dict.fromkeys(shapes, 0.0)
        scale = (budget - sum(sizes[name] for name in dense)) / sum(raw[name] * sizes[name] for name in rest)
        full = {name for name in rest if scale * raw[name] > 1.0}
        if not full:
            return {name: 0.0 if name in dense else 1.0 - scale * raw[name] for name in shapes}
        dense |= full


SPARSITY_DISTRIBUTIONS: dict[Distribution, Callable[[Shapes, float], dict[str, float]]] = {
    "uniform": uniform,
    "erk": erk,
}
