"""Compare two saved models tensor by tensor: shapes, sparsity, the zeros they share, how far the values are apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rich.console import RenderableType
from torch import Tensor

from ..serialization.reader import SavedModel, is_zero, zeros_in
from ..utils.io import StrPath
from ..utils.progress import progress_bar
from ..utils.tables import as_text, table


@dataclass(frozen=True)
class Side:
    """A tensor as one of the two models has it; `zeros` is the number of its zeros, -0.0 among them."""

    shape: tuple[int, ...]
    dtype: str
    zeros: int

    @property
    def sparsity(self) -> float:
        return self.zeros / max(1, math.prod(self.shape))


@dataclass(frozen=True)
class TensorDiff:
    """A tensor in which two models differ.

    Args:
        name: as in the files.
        a, b: what each model has; None where it lacks the tensor.
        shared_zeros: number of elements that are zero in both. This and the next two are None unless the shapes agree.
        changed: number of elements that differ. NaN equals NaN, and 0.0 equals -0.0.
        max_difference: the largest |a - b|, computed in float64; infinite where one value is NaN or infinite and the
            other not the same.
    """

    name: str
    a: Side | None
    b: Side | None
    shared_zeros: int | None = None
    changed: int | None = None
    max_difference: float | None = None

    @property
    def what(self) -> str:
        """In a few words, what differs."""
        if self.a is None or self.b is None:
            return "only in B" if self.a is None else "only in A"
        if self.a.shape != self.b.shape:
            return f"shape {_sizes(self.a.shape)} -> {_sizes(self.b.shape)}"
        dtype = f"dtype {self.a.dtype} -> {self.b.dtype}" if self.a.dtype != self.b.dtype else ""
        values = f"{self.changed:,} values" if self.changed else ""
        return ", ".join(filter(None, (dtype, values)))

    @property
    def zeros_gained(self) -> int | None:
        """Zeros of B that are none of A."""
        return None if self.b is None or self.shared_zeros is None else self.b.zeros - self.shared_zeros

    @property
    def zeros_lost(self) -> int | None:
        """Zeros of A that are none of B."""
        return None if self.a is None or self.shared_zeros is None else self.a.zeros - self.shared_zeros

    @property
    def jaccard(self) -> float | None:
        """Overlap of the zeros, |A and B| / |A or B|, in [0, 1]; None where neither has any."""
        if self.a is None or self.b is None or self.shared_zeros is None or not self.a.zeros + self.b.zeros:
            return None
        return self.shared_zeros / (self.a.zeros + self.b.zeros - self.shared_zeros)


@dataclass(frozen=True)
class CheckpointDiff:
    """`different`: the tensors that differ. The rest sums over the tensors that both have in one shape."""

    different: list[TensorDiff]
    equal: int
    values: int
    zeros_a: int
    zeros_b: int
    shared_zeros: int

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: an infinite `max_difference` is None."""
        totals = {name: getattr(self, name) for name in ("equal", "values", "zeros_a", "zeros_b", "shared_zeros")}
        return totals | {"different": [_as_dict(row) for row in self.different]}

    def parts(self) -> list[RenderableType]:
        """The table and the totals, for a rich console."""
        lines: list[RenderableType] = [f"{self.equal} tensors are equal, {len(self.different)} differ"]
        if self.zeros_a or self.zeros_b:
            kept = f"; {self.shared_zeros / self.zeros_a:.2%} of A's zeros are zeros in B" if self.zeros_a else ""
            shares = [f"{zeros / self.values:.2%}" for zeros in (self.zeros_a, self.zeros_b)]
            lines.append(f"zeros: {shares[0]} in A, {shares[1]} in B{kept}")
        if not self.different:
            return lines
        headers = ["tensor", "differs in", "sparsity", "zeros", "Jaccard", "max |A - B|"]
        return [table("A -> B", headers, map(_cells, self.different), words=2), *lines]

    def __str__(self) -> str:
        return as_text(self.parts())


def checkpoint_diff(a: StrPath, b: StrPath, progress: bool = False) -> CheckpointDiff:
    """Compare the tensors of two saved models by name, each of which may be plain or packed, whole or sharded.

    Only a few megabytes of a tensor are in memory at a time. How a tensor is stored makes no difference; its shape,
    dtype and values do.

    Args:
        a, b: see `checkpoint_report`, which also says what is raised.
        progress: show a bar on a terminal if it takes longer than two seconds.
    """
    with SavedModel(a) as first, SavedModel(b) as second:
        names = [*first.entries, *(name for name in second.entries if name not in first.entries)]
        values = sum(entry.count for entry in first.entries.values())
        with progress_bar(values, "comparing" if progress else None, " values") as bar:
            rows = [_compare(name, first, second, bar.update) for name in names]
    both = [(row.a, row.b, row.shared_zeros) for row in rows if row.a and row.b and row.shared_zeros is not None]
    different = [row for row in rows if row.what]
    return CheckpointDiff(
        different,
        equal=len(rows) - len(different),
        values=sum(math.prod(a_side.shape) for a_side, _, _ in both),
        zeros_a=sum(a_side.zeros for a_side, _, _ in both),
        zeros_b=sum(b_side.zeros for _, b_side, _ in both),
        shared_zeros=sum(shared for _, _, shared in both),
    )


def _compare(name: str, first: SavedModel, second: SavedModel, advance: Callable[[int], object]) -> TensorDiff:
    one, two = first.entries.get(name), second.entries.get(name)
    if one is None or two is None or one.shape != two.shape:
        return TensorDiff(name, _side(first, name), _side(second, name))
    zeros_a = zeros_b = shared = changed = 0
    largest = 0.0
    for x, y in zip(first.pieces(name), second.pieces(name), strict=True):
        zero_in_x, zero_in_y = is_zero(x), is_zero(y)
        zeros_a += int(np.count_nonzero(zero_in_x))
        zeros_b += int(np.count_nonzero(zero_in_y))
        shared += int(np.count_nonzero(zero_in_x & zero_in_y))
        more, distance = _distance(x, y)
        changed += more
        largest = max(largest, distance)
        advance(len(x))
    a, b = Side(one.shape, one.dtype, zeros_a), Side(two.shape, two.dtype, zeros_b)
    return TensorDiff(name, a, b, shared, changed, largest)


def _side(model: SavedModel, name: str) -> Side | None:
    entry = model.entries.get(name)
    if entry is None:
        return None
    return Side(entry.shape, entry.dtype, sum(map(zeros_in, model.pieces(name))))


def _distance(x: Tensor, y: Tensor) -> tuple[int, float]:
    """How many elements differ, and the largest |x - y|."""
    if x.dtype == y.dtype and np.array_equal(x.view(torch.uint8).numpy(), y.view(torch.uint8).numpy()):
        return 0, 0.0
    a, b = x.double(), y.double()
    if x.is_floating_point() or y.is_floating_point():
        different = (a != b) & ~(a.isnan() & b.isnan())
    else:  # large integers may be equal as float64
        different = torch.from_numpy(x.numpy() != y.numpy())
    distance = (a - b).abs()[different].nan_to_num(nan=math.inf, posinf=math.inf)
    return len(distance), distance.max().item() if len(distance) else 0.0


def _as_dict(row: TensorDiff) -> dict[str, Any]:
    counts = {"zeros_gained": row.zeros_gained, "zeros_lost": row.zeros_lost, "jaccard": row.jaccard}
    values = asdict(row) | counts
    for side in ("a", "b"):
        if values[side] is not None:
            values[side]["sparsity"] = getattr(row, side).sparsity
    if row.max_difference is not None and math.isinf(row.max_difference):
        values["max_difference"] = None
    return values


def _cells(row: TensorDiff) -> list[str]:
    sparsity = [f"{side.sparsity:.2%}" for side in (row.a, row.b) if side is not None]
    return [
        row.name,
        row.what,
        " -> ".join(dict.fromkeys(sparsity)),
        "" if row.zeros_gained is None else f"+{row.zeros_gained:,} -{row.zeros_lost:,}",
        "" if row.jaccard is None else f"{row.jaccard:.4f}",
        "" if row.max_difference is None else f"{row.max_difference:.3g}",
    ]


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"
