"""How a sparsity budget is spread over layers: uniform, ERK, or by the outliers of their inputs (OWL)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..methods.distributions import Shapes, erk, uniform
from ..utils.validation import check_number

# Layer -> the block that it is in, and block -> its fraction of outliers.
Blocks = Mapping[str, str]
Outliers = Mapping[str, float]


@dataclass(frozen=True)
class Allocation(ABC):
    """How the layers share a budget."""

    name: ClassVar[str]
    needs_inputs: ClassVar[bool] = False

    @abstractmethod
    def spread(self, shapes: Shapes, sparsity: float, blocks: Blocks, outliers: Outliers) -> dict[str, float]:
        """Layer -> its sparsity; together they have `sparsity`. `outliers` is empty unless `needs_inputs`."""


@dataclass(frozen=True)
class Uniform(Allocation):
    """The same sparsity in every layer."""

    name: ClassVar[str] = "uniform"

    def spread(self, shapes: Shapes, sparsity: float, blocks: Blocks, outliers: Outliers) -> dict[str, float]:
        return uniform(shapes, sparsity)


@dataclass(frozen=True)
class ERK(Allocation):
    """Erdos-Renyi-Kernel: small layers stay denser (Evci et al. 2020)."""

    name: ClassVar[str] = "erk"

    def spread(self, shapes: Shapes, sparsity: float, blocks: Blocks, outliers: Outliers) -> dict[str, float]:
        return erk(shapes, sparsity)


@dataclass(frozen=True)
class OWL(Allocation):
    """Outlier Weighed Layerwise sparsity (Yin et al. 2023, arXiv 2310.05175): blocks with more outliers stay denser.

    A weight is an outlier if its Wanda score is above `outlier_ratio` times its layer's mean. A block's density is the
    mean density plus a share of `[-deviation, deviation]` that is linear in its fraction of outliers. All layers of a
    block have the same sparsity. Blocks count by their size, which the authors' blocks of one size need not.

    Args:
        outlier_ratio: M of the paper, above 1.
        deviation: lambda of the paper, in [0, 0.5].
    """

    outlier_ratio: float = 5.0
    deviation: float = 0.08

    name: ClassVar[str] = "owl"
    needs_inputs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("OWL.outlier_ratio", self.outlier_ratio, 1, float("inf"), low_open=True, high_open=True)
        check_number("OWL.deviation", self.deviation, 0, 0.5)

    def spread(self, shapes: Shapes, sparsity: float, blocks: Blocks, outliers: Outliers) -> dict[str, float]:
        sizes = dict.fromkeys(outliers, 0)
        for name, shape in shapes.items():
            sizes[blocks[name]] += math.prod(shape)
        low, high = min(outliers.values()), max(outliers.values())
        # At the edges of [0, 1] the range is narrower: it has to fit on both sides of the mean.
        span = 2 * self.deviation if high > low else 0.0
        extra = {block: span * (share - low) / ((high - low) or 1.0) for block, share in outliers.items()}
        mean = sum(extra[block] * size for block, size in sizes.items()) / sum(sizes.values())
        offsets = {block: value - mean for block, value in extra.items()}
        room = min(sparsity, 1 - sparsity)
        widest = max(abs(offset) for offset in offsets.values())
        scale = min(1.0, room / widest) if widest > 0 else 1.0
        return {name: sparsity - scale * offsets[blocks[name]] for name in shapes}
