"""The contract of a method, and the registry.

A `Sparsifier` is one `nn.Module` per layer. Its Parameters and buffers are all its state, so saving, moving, DDP and
resuming need no special code. It knows nothing of Trainer, and Trainer nothing of a method.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ..config import AutoSparseConfig

_REGISTRY: dict[str, type[Sparsifier]] = {}


@dataclass(frozen=True)
class Progress:
    """Where training stands before a step: `epoch` (float, epochs done) of `epochs`, `step` (optimizer steps done)."""

    epoch: float
    epochs: float
    step: int
    steps: int


class Sparsifier(nn.Module):
    """Turns a layer's weight into its effective weight.

    Args:
        weight: the layer's weight, for shape, device and initial values. Not kept.
        config: the run's configuration.
        output_dim: the dimension of `weight` that counts output channels (0 for Linear and Conv2d, 1 for Conv1D).
    """

    name: ClassVar[str]
    reference: ClassVar[str]
    alpha: float | None = None  # the share of the gradient that pruned weights receive; None for a method without one
    spares_edges: ClassVar[bool] = True  # whether the configuration's `first_last` leaves layers dense

    def __init__(self, weight: Tensor, config: AutoSparseConfig, output_dim: int = 0):
        super().__init__()
        # A buffer, so that a resumed run reports what the uninterrupted one would.
        self.register_buffer("at_guard", torch.zeros(1, dtype=torch.bool, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """The effective weight, differentiable, same shape and dtype as `weight`."""
        raise NotImplementedError

    def mask(self, weight: Tensor) -> Tensor:
        """Bool tensor of `weight`'s shape, True where the effective weight is kept."""
        raise NotImplementedError

    def anneal(self, progress: Progress) -> None:
        """Called before every optimizer step."""

    def update(self, weight: nn.Parameter, step: int) -> None:
        """Called after every optimizer step, `step` counting from 1: the place to recompute a mask."""

    def limit_sparsity(self, weight: Tensor, maximum: float) -> bool:
        """Bring the sparsity down to `maximum`, and return True. Methods with a fixed budget keep this default, which
        does nothing and returns False: they cannot run away."""
        return False

    @classmethod
    def check_model(cls, model: nn.Module, sparse: Collection[str]) -> None:
        """Called by `sparsify` with the names of the layers to become sparse, before anything is changed: the place to
        raise ValueError, or to warn, if the model does not suit the method."""

    def gradient_mask(self, weight: Tensor) -> Tensor | None:
        """Which entries of the weight gradient the next backward pass has to compute, for the theoretical FLOPs.

        Returns:
            Bool tensor of `weight`'s shape, False where the gradient is zero by design; None where it is dense. The
            default is dense: a method whose pruned weights get no gradient returns `mask(weight)`.
        """
        return None

    def is_finite(self) -> Tensor:
        """Bool scalar: all parameters are finite."""
        finite = [p.isfinite().all() for p in self.parameters()]
        return torch.stack(finite).all() if finite else torch.ones((), dtype=torch.bool)

    def metrics(self) -> dict[str, Tensor | float]:
        """Scalars to log, averaged over layers."""
        return {}


def register(cls: type[Sparsifier]) -> type[Sparsifier]:
    """Class decorator: make `AutoSparseConfig(method=cls.name)` find this method."""
    if _REGISTRY.get(cls.name, cls) is not cls:
        raise ValueError(f"method {cls.name!r} is already registered by {_REGISTRY[cls.name]}; choose another name")
    _REGISTRY[cls.name] = cls
    return cls


def registered_names() -> list[str]:
    return sorted(_REGISTRY)


def get_method(name: str) -> type[Sparsifier]:
    """The class registered under `name`. Raises KeyError for an unknown name."""
    return _REGISTRY[name]
