"""The contract of a one-shot method, what it may prune, and the masks that all of them use."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..utils.validation import reject


@dataclass(frozen=True)
class Pattern:
    """N:M: at most `n` of every `m` consecutive weights along the input are kept."""

    n: int
    m: int

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """The pattern of a text such as "2:4".

        Raises:
            ValueError: it is no N:M with 0 < N < M.
        """
        match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", text) if isinstance(text, str) else None
        if match is None or not 0 < int(match[1]) < int(match[2]):
            raise reject("pattern", text, "N:M with 0 < N < M, such as '2:4', or None")
        return cls(int(match[1]), int(match[2]))

    @property
    def sparsity(self) -> float:
        return 1 - self.n / self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclass(frozen=True)
class OneShotMethod(ABC):
    """How one weight matrix is pruned. A subclass is a frozen dataclass with just the settings that it reads."""

    name: ClassVar[str]
    reference: ClassVar[str]
    needs_inputs: ClassVar[bool] = True

    @abstractmethod
    def prune(self, weight: Tensor, gram: Tensor | None, sparsity: float, pattern: Pattern | None) -> Tensor:
        """The pruned weight, with exact zeros.

        Args:
            weight: (groups, outputs, inputs) float32; only a grouped convolution has several groups.
            gram: (groups, inputs, inputs) float32, the sum of `x x^T` over all inputs x of the layer. None only if the
                method does not need inputs.
            sparsity: fraction of zeros to make, in [0, 1]. It is that of the pattern if there is one.
            pattern: N:M along the last dimension, or None for anywhere.
        """


def smallest(score: Tensor, count: int) -> Tensor:
    """Bool tensor of `score`'s shape, True for the `count` smallest of each row (the last dimension).

    Of equal scores the first ones are taken, so that the number is exact and every machine chooses the same.
    """
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    boundary = score.kthvalue(count, dim=-1, keepdim=True).values  # several times as fast as sorting
    below, equal = score < boundary, score == boundary
    room = count - below.sum(-1, keepdim=True)
    if bool((equal.sum(-1, keepdim=True) > room).any()):
        equal &= equal.cumsum(-1) <= room
    return below | equal


def smallest_of_groups(score: Tensor, pattern: Pattern) -> Tensor:
    """Bool tensor of `score`'s shape, True for the `m - n` smallest of every `m` consecutive entries of a row."""
    groups = score.reshape(*score.shape[:-1], -1, pattern.m)
    return smallest(groups, pattern.m - pattern.n).view_as(score)
