"""AutoSparse: a learned soft threshold per layer with Gradient Annealing (arXiv 2304.06941, eq. 1-4, 7-9)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..functional import annealed_soft_threshold, threshold_for_sparsity, top_magnitude_mask
from .base import ANNEALING, TARGET, THRESHOLDS, Sparsifier, register


@register
class AutoSparse(Sparsifier):
    """`w_hat = sign(w) max(|w| - T, 0)`, `T = sigmoid(s)`, one learnable s per layer (or per output channel).

    The paper's threshold is per layer; `threshold_granularity="channel"` is an extension. Parameter `threshold` holds
    s in float32: shape (1,), because FSDP2 and ZeRO-3 reject 0-dim parameters, or (channels,). `alpha` is a Python
    float set by `begin_step`: it enters the backward pass only, and is derived from training progress, never stored.
    """

    name = "autosparse"
    reference = "Kundu et al. 2023, AutoSparse, arXiv 2304.06941"
    reads = ANNEALING | TARGET | THRESHOLDS | {"backward_sparsity"}
    default_alpha = (0.75, "sigmoid-cosine")

    def __init__(self, weight: Tensor, config, output_dim: int = 0, sparsity: float | None = None):
        super().__init__(weight, config, output_dim, sparsity)
        per_channel = config.threshold_granularity == "channel"
        self._output_dim = output_dim if per_channel else None
        count = weight.shape[output_dim] if per_channel else 1
        if isinstance(config.threshold_init, dict):
            initial = self._for_sparsity(weight, config.threshold_init["sparsity"])
        else:
            initial = torch.full((count,), float(config.threshold_init), device=weight.device)
        self.threshold = nn.Parameter(initial)

    def _rows(self, weight: Tensor) -> Tensor:
        """`|weight|` as one row per threshold, float32."""
        magnitude = weight.detach().abs().float()
        if self._output_dim is None:
            return magnitude.reshape(1, -1)
        return magnitude.movedim(self._output_dim, 0).flatten(1)

    def _for_sparsity(self, weight: Tensor, sparsity: float) -> Tensor:
        """The s at which `sparsity` of the weights are pruned."""
        value = threshold_for_sparsity(self._rows(weight), sparsity)
        if not bool(((value > 0) & (value < 1)).all()):
            raise ValueError(
                f"no threshold in (0, 1) prunes {sparsity:.1%} of a weight of shape {tuple(weight.shape)} with"
                f" magnitudes in [{weight.abs().min().item():.3g}, {weight.abs().max().item():.3g}]:"
                " rescale the weight, list the layer in dense_modules, or give threshold_init a number"
            )
        return torch.logit(value)

    def _value(self, weight: Tensor) -> Tensor:
        """T = sigmoid(s), float32, shaped to broadcast against the weight."""
        return self._spread(torch.sigmoid(self.threshold.float()), weight)

    def _spread(self, values: Tensor, weight: Tensor) -> Tensor:
        """One value per threshold, shaped to broadcast against the weight."""
        if self._output_dim is None:
            return values
        shape = [1] * weight.dim()
        shape[self._output_dim] = -1
        return values.view(shape)

    def forward(self, weight: Tensor) -> Tensor:
        return annealed_soft_threshold(weight, self._value(weight), self.alpha, self.config.backward_sparsity)

    def forward_cached(self, weight: Tensor, cached: Tensor) -> Tensor:
        return annealed_soft_threshold(
            weight, self._value(weight), self.alpha, self.config.backward_sparsity, known=cached
        )

    def gradient_mask(self, weight: Tensor) -> Tensor | None:
        """The active set once alpha is 0; before, the set B of eq. 8, or all weights without `backward_sparsity`."""
        if self.alpha == 0 or self.config.backward_sparsity is None:
            return super().gradient_mask(weight)
        return self.mask(weight) | top_magnitude_mask(weight.abs(), 1.0 - self.config.backward_sparsity)

    def learns_where_kept(self) -> bool:
        return self.alpha == 0

    def mask(self, weight: Tensor) -> Tensor:
        return weight.abs() > self._value(weight).to(weight.dtype)

    def margin(self, weight: Tensor, stride: int) -> Tensor:
        """`logit |w| - s`: in units of s a common shift scales the thresholds of all layers alike, as far as T << 1."""
        threshold = self.threshold.float()
        if self._output_dim is not None:
            threshold = self._spread(threshold, weight).expand_as(weight).flatten()[::stride]
        magnitude = weight.flatten()[::stride].abs().float()
        return torch.logit(magnitude.clamp(max=1.0)) - threshold

    def raise_threshold(self, amount: Tensor) -> None:
        self.threshold += amount

    def metrics(self) -> dict[str, Tensor | float]:
        return super().metrics() | {"mean_threshold": torch.sigmoid(self.threshold.detach().float()).mean()}
