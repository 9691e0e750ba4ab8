"""Logits from an int8 product made exact where they could be among the largest, by csrc/screen.c."""

from __future__ import annotations

from torch import Tensor

from .binding import Library, threads

MOST_TOP = 64  # as in csrc/screen.c


def correct(
    library: Library,
    logits: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offset: Tensor | None,
    sizes: Tensor,
    bounds: Tensor,
    top: int,
    most: int,
) -> int | None:
    """Compute again, in place, what could be among the `top` largest logits of its token with `offset` added.

    All tensors are float32, on the CPU and contiguous.

    Args:
        logits: (tokens, rows), with the bias.
        x: (tokens, cols).
        weight: (rows, cols).
        bias, offset: (rows,) or None.
        sizes: (2, rows), and `bounds`: (tokens, 2). A logit may be wrong by their product.
        top: 1 to `MOST_TOP`, at most rows.
        most: how many may be computed again, for each token.

    Returns:
        How many were, or None where that is not enough: logits are undefined then.
    """
    tokens, rows = logits.shape
    count = library.screen(
        *(tensor.data_ptr() for tensor in (logits, x, weight)),
        *(None if tensor is None else tensor.data_ptr() for tensor in (bias, offset)),
        *(tensor.data_ptr() for tensor in (sizes[0], sizes[1], bounds)),
        *(tokens, rows, weight.shape[1], top, most, threads()),
    )
    if count == -2:
        raise MemoryError(f"no memory for the largest of {tokens} x {rows} logits")
    return None if count < 0 else int(count)
