"""What an optimizer remembers of a newly grown weight.

A grown weight starts without momentum. Adam divides by the root of an average of squares, and makes up for the start of
that average by the number of steps done: one number for the whole weight. If the average of a grown weight started at 0
late in a run, nothing would make up for it, and the weight would move `(1 - b1^k) / sqrt(1 - b2^k)` times as far as the
others in its k-th step: 3.2 times in the first, 6.6 times in the tenth (arXiv 2606.00888 calls it a cold start). The
averages of squares start where those of the layer's other kept weights stand instead: their mean, times `SHARE`.

The momentum still has to build up, `1 - b1^k` of it after k steps if gradients agree and `sqrt(1 - b1^2k)` if they are
noise. Over the first twenty steps that is a share of 0.6 and 0.9; `SHARE` of the mean of squares, which makes steps 1.3
times as large, brings the path to 0.77 and 1.16 of that of the other weights. Where weights are grown for their large
gradient, the mean is scaled by how much larger it is, by the root of that ratio of squares: part of it is chance, as
they were chosen for it. Nothing is kept of a weight's age, so a resumed run needs no more than the optimizer's state.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SHARE = 0.6

_SQUARES = {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "state2"}  # of torch's optimizers and bitsandbytes'
_SIZES = {"acc_delta", "exp_inf"}


def start_optimizer_state(
    optimizer: torch.optim.Optimizer,
    weight: nn.Parameter,
    grown: Tensor,
    kept: Tensor,
    gradient: Tensor | None = None,
) -> None:
    """Let the optimizer start over with the newly grown weights.

    Momentum becomes 0; averages of squares become `SHARE` of their mean over the other kept weights, more where these
    have smaller gradients. State that is not shaped like the weight (step counts) is the layer's and stays.

    Args:
        weight: of a sparse layer.
        grown: bool, the weight's shape: newly grown.
        kept: bool, the weight's shape: the others that are kept.
        gradient: the weight's shape: a gradient to compare grown and kept weights by; None where they are alike.

    Raises:
        TypeError: the state is quantised.
    """
    for name, value in optimizer.state.get(weight, {}).items():
        if not isinstance(value, Tensor) or value.shape != weight.shape:
            continue
        if not value.is_floating_point():
            raise TypeError(no_growth(optimizer))
        if name in _SQUARES or name in _SIZES:
            start = _mean(value, kept) * SHARE
            if gradient is not None and name in _SQUARES:
                squares = gradient.float().square()
                start = start * (squares / _mean(squares, kept)).nan_to_num(1.0).clamp(min=1.0).sqrt()
            value.copy_(torch.where(grown, start.to(value.dtype), value))
        else:
            value.masked_fill_(grown, 0)


def no_growth(optimizer: torch.optim.Optimizer) -> str:
    """Why an optimizer with quantised state does not suit methods that grow weights, and what to do."""
    return (
        f"{type(optimizer).__name__} keeps its state in 8 bits or fewer, where that of single grown weights cannot"
        " start over: use a 32-bit optimizer such as optim='adamw_torch', or a method that grows no weights"
    )


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, values, 0).sum(dtype=torch.float32) / where.sum().clamp(min=1)
