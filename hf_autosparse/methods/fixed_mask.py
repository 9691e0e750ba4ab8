"""Fixed mask: train on with the zeros that the weights already have."""

from __future__ import annotations

from torch import Tensor

from .base import Sparsifier, register


@register
class FixedMask(Sparsifier):
    """`w_hat = w * mask`, the mask being `w != 0` when `sparsify` is called: zeros stay zeros, all else trains.

    For fine-tuning any pruned checkpoint, whoever pruned it. Pruned weights get no gradient. `max_layer_sparsity` has
    no effect: the sparsity is given.
    """

    name = "fixed_mask"
    reference = "no paper: continued training of a pruned model"

    def __init__(self, weight: Tensor, config, output_dim: int = 0):
        super().__init__(weight, config, output_dim)
        self.register_buffer("kept", weight.detach() != 0)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.kept

    def mask(self, weight: Tensor) -> Tensor:
        return self.kept

    def gradient_mask(self, weight: Tensor) -> Tensor:
        return self.kept
