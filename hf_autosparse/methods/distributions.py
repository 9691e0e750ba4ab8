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


def not_below(
    distribution: Callable[[Shapes, float], dict[str, float]],
    shapes: Shapes,
    sparsity: float,
    least: Mapping[str, float],
) -> dict[str, float]:
    """A distribution in which no layer falls below its own `least` sparsity; the others make up for those held there.

    Args:
        sparsity: of all layers together. It is exceeded where the layers have more already.
        least: name -> the sparsity that a layer has; the layers that are missing have none.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    held: dict[str, float] = {}
    while len(held) < len(shapes):
        rest = {name: shape for name, shape in shapes.items() if name not in held}
        zeros = sparsity * sum(sizes.values()) - sum(held[name] * sizes[name] for name in held)
        shares = distribution(rest, sparsity if not held else max(0.0, zeros / sum(sizes[name] for name in rest)))
        low = {name: least[name] for name in rest if shares[name] < least.get(name, 0.0)}
        held |= low or shares
    return held


SPARSITY_DISTRIBUTIONS: dict[Distribution, Callable[[Shapes, float], dict[str, float]]] = {
    "uniform": uniform,
    "erk": erk,
}
