"""Schedules of training progress: pure functions, no state, so that resuming a run needs nothing from them.

`t` is the number of epochs since training began (a float where values change within an epoch) and `length` the number
of epochs over which the schedule runs. Each schedule maps `t / length` to the factor by which alpha_init is multiplied.
"""

import math
from collections.abc import Callable
from typing import Literal

AlphaSchedule = Literal["fixed", "linear", "cosine", "sigmoid", "sigmoid-cosine", "exponential"]

SIGMOID_START, SIGMOID_END = -6.0, 6.0  # L0 and L1 of eq. 3


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def fixed(t: float, length: float, beta: float) -> float:
    """Constant 1: no annealing."""
    return 1.0


def linear(t: float, length: float, beta: float) -> float:
    """`1 - t / length`."""
    return max(0.0, 1.0 - t / length)


def cosine(t: float, length: float, beta: float) -> float:
    """Eq. 2: `(1 + cos(pi t / length)) / 2`: slow at first, fast in the middle, slow at the end."""
    return 0.0 if t >= length else (1.0 + math.cos(math.pi * t / length)) / 2.0


def sigmoid(t: float, length: float, beta: float) -> float:
    """Eq. 3: `1 - sigmoid(L0 + (L1 - L0) t / length)`, L0 = -6, L1 = 6; exactly 0 once the length has passed."""
    return 0.0 if t >= length else 1.0 - _sigmoid(SIGMOID_START + (SIGMOID_END - SIGMOID_START) * t / length)


def sigmoid_cosine(t: float, length: float, beta: float) -> float:
    """Eq. 4: the larger of the sigmoid and the cosine schedule."""
    return max(sigmoid(t, length, beta), cosine(t, length, beta))


def exponential(t: float, length: float, beta: float) -> float:
    """Eq. 9: `exp(-beta t)`, t in epochs. It has no length and never reaches 0 by itself."""
    return math.exp(-beta * t)


ALPHA_SCHEDULES: dict[AlphaSchedule, Callable[[float, float, float], float]] = {
    "fixed": fixed,
    "linear": linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "sigmoid-cosine": sigmoid_cosine,
    "exponential": exponential,
}


def alpha_at(
    schedule: AlphaSchedule,
    t: float,
    *,
    alpha_init: float,
    length: float,
    beta: float = 1.0,
    zero_epoch: float | None = None,
) -> float:
    """Alpha after `t` epochs: `alpha_init` times the schedule's factor, and 0 from `zero_epoch` on.

    `length` and `zero_epoch` are separate because the paper's "alpha = 0 @ epoch 20" can be read both ways: a schedule
    that ends at epoch 20 (`length=20`), or a longer one that is cut there (`zero_epoch=20`).
    """
    if zero_epoch is not None and t >= zero_epoch:
        return 0.0
    return alpha_init * ALPHA_SCHEDULES[schedule](t, length, beta)


def cubic_sparsity(progress: float, final: float, initial: float = 0.0) -> float:
    """Sparsity that rises from `initial` to `final` while `progress` goes from 0 to 1, fast at first.

    `initial + (final - initial) (1 - (1 - progress)^3)`: Zhu & Gupta 2017, "To prune, or not to prune", eq. 1.
    """
    return initial + (final - initial) * (1.0 - (1.0 - min(max(progress, 0.0), 1.0)) ** 3)


def cosine_decay(progress: float) -> float:
    """1 to 0 along half a cosine while `progress` goes from 0 to 1: RigL's and SET's share of dropped weights."""
    return (1.0 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2.0
