"""Whether what was derived from a sparse layer's weight still holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.optim.optimizer import register_optimizer_step_post_hook

if TYPE_CHECKING:
    from .sparse import SparseLayer

_optimizer_steps: int | None = None  # None: nobody counts yet


def _count_step(*_) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


def _steps() -> int:
    """How many steps optimizers have made: those that write through `parameter.data` change no version."""
    global _optimizer_steps
    if _optimizer_steps is None:
        _optimizer_steps = 0
        register_optimizer_step_post_hook(_count_step)
    return _optimizer_steps


def stamp_of(layer: SparseLayer) -> tuple:
    """Changes whenever the effective weight or the mask of its gradient may have: with the tensors that they come from,
    and the numbers that annealing sets."""
    sparsifier = layer.sparsifier
    tensors = (layer.weight, *sparsifier.parameters(), *sparsifier.buffers())
    numbers = tuple(value for value in vars(sparsifier).values() if isinstance(value, (int, float)))
    return _steps(), numbers, tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
