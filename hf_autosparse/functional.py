"""The reference maths in plain torch. Every faster version is tested against this file."""

import math
from typing import Any

import torch
from torch import Tensor


def apply_function(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    """`function.apply(*arguments)`, whose type torch does not declare."""
    result: Tensor = function.apply(*arguments)
    return result


def soft_threshold(weight: Tensor, threshold: Tensor) -> Tensor:
    """Eq. 1: `sign(w) * max(|w| - T, 0)`, computed as `w - clamp(w, -T, T)`: the same bits in two passes, not five.

    Args:
        weight: any shape, floating dtype.
        threshold: `T >= 0`, same dtype, broadcastable to `weight`.
    """
    return weight - weight.clamp(-threshold, threshold)


def annealed_soft_threshold(
    weight: Tensor, threshold: Tensor, alpha: float, backward_sparsity: float | None = None
) -> Tensor:
    """Soft threshold whose gradient is annealed (AutoSparse, eq. 1, 7 and 8).

    Forward: `w_hat = sign(w) h(|w| - T)`, `h(x) = max(x, 0)`. Backward, with `h'` = 1 where `|w| > T` and `alpha`
    elsewhere (the proxy gradient):

        dL/dw = dL/dw_hat * h'
        dL/dT = -sum(h' * sign(w) * dL/dw_hat)      summed over the dimensions that T is broadcast along

    `alpha = 0` is STR, `alpha = 1` is the straight-through estimator.

    Args:
        weight: any shape, floating dtype.
        threshold: T itself (not s), broadcastable to `weight`; its gradient is accumulated in at least float32.
        alpha: gradient factor of pruned weights, in [0, 1].
        backward_sparsity: eq. 8: where given and alpha > 0, the gradient is restricted to B: the weights that are
            among the `1 - backward_sparsity` largest by magnitude, or active. What lies outside B is not needed by
            either gradient, so a sparse kernel need not compute it; with alpha = 0, B is the active set.
    """
    return apply_function(_AnnealedSoftThreshold, weight, threshold, alpha, backward_sparsity)


def annealed_gradients(
    weight: Tensor,
    threshold: Tensor,
    grad: Tensor,
    alpha: float,
    backward_sparsity: float | None = None,
    for_threshold: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of weight and threshold in `annealed_soft_threshold`, of which `grad` is the result's gradient.

    Without `for_threshold`, that of the threshold is not computed: None.
    """
    magnitude = weight.abs()
    active = magnitude > threshold.to(weight.dtype)
    grad_weight = torch.where(active, grad, grad * alpha)
    if backward_sparsity is not None and alpha > 0:
        allowed = active | top_magnitude_mask(magnitude, 1.0 - backward_sparsity)
        grad_weight = torch.where(allowed, grad_weight, 0)
    if not for_threshold:
        return grad_weight, None
    accumulate = torch.promote_types(grad.dtype, torch.float32)
    pull = (grad_weight * weight.sign()).to(accumulate)
    return grad_weight, -pull.sum_to_size(threshold.shape).to(threshold.dtype)


class _AnnealedSoftThreshold(torch.autograd.Function):
    """Saves weight and threshold only: the mask is recomputed, so the layer costs no extra memory."""

    @staticmethod
    def forward(weight: Tensor, threshold: Tensor, alpha: float, backward_sparsity: float | None) -> Tensor:
        return soft_threshold(weight, threshold.to(weight.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, threshold, ctx.alpha, ctx.backward_sparsity = inputs
        ctx.save_for_backward(weight, threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, threshold = ctx.saved_tensors
        options = (ctx.alpha, ctx.backward_sparsity, ctx.needs_input_grad[1])
        return *annealed_gradients(weight, threshold, grad, *options), None, None


def top_magnitude_mask(magnitude: Tensor, density: float) -> Tensor:
    """True for the `round(density * n)` largest entries; entries equal to the smallest of them are all True.

    Args:
        magnitude: any shape, non-negative.
        density: fraction to keep, in [0, 1].
    """
    keep = round(density * magnitude.numel())
    if keep == 0:
        return torch.zeros_like(magnitude, dtype=torch.bool)
    kth = magnitude.flatten().kthvalue(magnitude.numel() - keep + 1).values
    return magnitude >= kth


def threshold_for_sparsity(magnitude: Tensor, sparsity: float) -> Tensor:
    """The threshold T that prunes `floor(sparsity * n)` of each row's n entries (`|w| <= T` is pruned).

    T lies midway between the last pruned and the first kept magnitude, so that rounding `T = sigmoid(s)` moves no
    weight across it. Ties and exact zeros can make the true sparsity differ from the one asked for.

    Args:
        magnitude: shape (rows, n), non-negative float32.
        sparsity: in [0, 1).

    Returns:
        Shape (rows,). 0 for a row with no non-zero entry.
    """
    prune = int(sparsity * magnitude.shape[1])
    first_kept = magnitude.kthvalue(prune + 1, dim=1).values
    last_pruned = magnitude.kthvalue(prune, dim=1).values if prune > 0 else torch.zeros_like(first_kept)
    midpoint = (last_pruned + first_kept) / 2
    smallest = torch.where(magnitude > 0, magnitude, torch.inf).amin(dim=1)
    return torch.where(first_kept > 0, midpoint, torch.where(smallest.isinf(), 0.0, smallest / 2))


def boundary(margins: Tensor, count: int) -> Tensor:
    """The value with `count` of the n margins at or below it, midway between its neighbours.

    Args:
        margins: shape (n,), floating; -inf for what is always pruned, inf for what is always kept.
        count: in [0, n]. At least one margin stays above the boundary.

    Returns:
        0-dim, finite unless no margin is at or below it: -inf. Ties can lead to other counts.
    """
    count = min(count, margins.numel() - 1)
    if count <= 0:
        return margins.new_tensor(-math.inf)
    finite = margins.isfinite()
    least, greatest = torch.where(finite, margins, math.inf).amin(), torch.where(finite, margins, -math.inf).amax()
    below, above = margins.kthvalue(count).values, margins.kthvalue(count + 1).values
    return (below.clamp(least, greatest) + above.clamp(least, greatest)) / 2


def sampling_stride(count: int, sample: int) -> int:
    """The stride that takes about `sample` of `count` weights, without a common factor with 2, 3, 5 or 7.

    A stride of 3 would meet a single column of every 3x3 kernel, and columns differ: that was 0.8 points of sparsity.
    """
    stride = max(1, count // sample)
    while math.gcd(stride, 210) > 1:
        stride += 1
    return stride


def masked_weight(weight: Tensor, kept: Tensor, alpha: float = 0.0, learning: Tensor | None = None) -> Tensor:
    """`w_hat = w * kept` with the proxy gradient of a hard mask.

        dL/dw = dL/dw_hat * (1 where kept, alpha elsewhere), 0 outside `learning`

    Args:
        weight: any shape, floating dtype.
        kept: bool, `weight`'s shape: the forward set.
        alpha: gradient factor of pruned weights, in [0, 1]: 0 freezes them, 1 is the straight-through estimator.
        learning: bool, `weight`'s shape: the backward set; None for all weights.
    """
    return apply_function(_MaskedWeight, weight, kept, alpha, learning)


class _MaskedWeight(torch.autograd.Function):
    @staticmethod
    def forward(weight: Tensor, kept: Tensor, alpha: float, learning: Tensor | None) -> Tensor:
        return torch.where(kept, weight, 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, kept, ctx.alpha, learning = inputs
        ctx.save_for_backward(kept, learning)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        kept, learning = ctx.saved_tensors
        grad_weight = torch.where(kept, grad, grad * ctx.alpha)
        if learning is not None:
            grad_weight = torch.where(learning, grad_weight, 0)
        return grad_weight, None, None, None


def score_masked_weight(weight: Tensor, score: Tensor, kept: Tensor) -> Tensor:
    """`w_hat = w * kept`, where `kept` was chosen by trainable scores that learn through it as if it were them.

        dL/dw = dL/dw_hat * kept            dL/dscore = dL/dw_hat * w        (the identity straight-through estimator)

    Args:
        weight: any shape, floating dtype.
        score: `weight`'s shape; enters the backward pass only.
        kept: bool, `weight`'s shape.
    """
    return apply_function(_ScoreMaskedWeight, weight, score, kept)


class _ScoreMaskedWeight(torch.autograd.Function):
    @staticmethod
    def forward(weight: Tensor, score: Tensor, kept: Tensor) -> Tensor:
        return torch.where(kept, weight, 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, score, kept = inputs
        ctx.score_dtype = score.dtype
        ctx.save_for_backward(weight, kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        weight, kept = ctx.saved_tensors
        return torch.where(kept, grad, 0), (grad * weight).to(ctx.score_dtype), None


def signed_power(x: Tensor, power: float) -> Tensor:
    """`x |x|^(power - 1)`, with its gradient `power |x|^(power - 1)`: finite at 0 for every power from 1 on."""
    return apply_function(_SignedPower, x, power)


class _SignedPower(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, power: float) -> Tensor:
        return x * x.abs() ** (power - 1.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.power = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return grad * ctx.power * x.abs() ** (ctx.power - 1.0), None


def binary_step(x: Tensor) -> Tensor:
    """1 where `x > 0`, else 0, with DST's long-tailed estimate of the derivative (Liu et al. 2020, eq. 4):

    `2 - 4 |x|` up to 0.4, 0.4 up to 1, 0 beyond.
    """
    return apply_function(_BinaryStep, x)


class _BinaryStep(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        distance = ctx.saved_tensors[0].abs()
        slope = torch.where(distance <= 0.4, 2.0 - 4.0 * distance, 0.4)
        return grad * torch.where(distance <= 1.0, slope, 0.0)


def largest(score: Tensor, count: int) -> Tensor:
    """Bool tensor of `score`'s shape, True for exactly `count` of the largest entries."""
    mask = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    mask[score.flatten().topk(count).indices] = True
    return mask.view_as(score)


def drop_and_grow(magnitude: Tensor, kept: Tensor, score: Tensor, count: int) -> Tensor:
    """Drop the `count` smallest kept weights, then grow the `count` best of all that are not kept after that.

    Those just dropped may be grown again, as in RigL's code.

    Args:
        magnitude: non-negative, any shape.
        kept: bool, the mask so far.
        score: what growth goes by: the gradient's magnitude (RigL) or random numbers (SET); non-negative.
        count: at most the number of kept weights.

    Returns:
        The new mask, with as many True entries as `kept`.
    """
    survivors = largest(magnitude.masked_fill(~kept, -1.0), int(kept.sum()) - count)
    return survivors | largest(score.masked_fill(survivors, -1.0), count)


def n_of_m_mask(magnitude: Tensor, n: int, m: int) -> Tensor:
    """True for the n largest of every m consecutive entries of the last dimension, whose size m divides."""
    groups = magnitude.unflatten(-1, (-1, m))
    mask = torch.zeros_like(groups, dtype=torch.bool)
    return mask.scatter_(-1, groups.topk(n, dim=-1).indices, True).flatten(-2)
