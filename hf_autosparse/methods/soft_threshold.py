"""The learned soft threshold that AutoSparse and STR share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..functional import threshold_for_sparsity
from ..kernels import annealed_soft_threshold
from ..utils.validation import is_number
from .base import Sparsifier
from .settings import LearnedThresholds

Granularity = Literal["layer", "channel"]


@dataclass(frozen=True, kw_only=True)
class SoftThreshold(LearnedThresholds):
    """Where the thresholds `T = sigmoid(s)` start, and how many a layer has.

    Args:
        threshold_init: a number s0 (`T = sigmoid(s0)`), or `{"sparsity": x}`: each layer's s is set so that a fraction
            x of its own initial weights is pruned. A fixed s0 suits only the initialisation that it was tuned for.
        threshold_granularity: "layer" (the paper) or "channel" (one threshold per output channel).
    """

    threshold_init: float | Mapping[str, float] = field(default_factory=lambda: {"sparsity": 0.5})
    threshold_granularity: Granularity = "layer"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("threshold_granularity", get_args(Granularity))
        if is_number(self.threshold_init):
            return
        given = dict(self.threshold_init) if isinstance(self.threshold_init, Mapping) else {}
        sparsity = given.get("sparsity", math.nan)
        if set(given) != {"sparsity"} or not is_number(sparsity) or not 0 <= sparsity < 1:
            raise self.reject("threshold_init", 'a finite number s0, or {"sparsity": x} with x in [0, 1)')
        if sparsity > self.max_layer_sparsity:
            raise self.reject("threshold_init", f"a sparsity up to max_layer_sparsity = {self.max_layer_sparsity}")
        object.__setattr__(self, "threshold_init", given)  # a copy: the caller's dict may change


class SoftThresholdSparsifier(Sparsifier):
    """`w_hat = sign(w) max(|w| - T, 0)`, `T = sigmoid(s)`, one learnable s per layer or per output channel.

    The parameter `threshold` holds s in float32: shape (1,), because FSDP2 and ZeRO-3 reject 0-dim parameters, or
    (channels,).
    """

    config: SoftThreshold
    alpha: float
    backward_sparsity: float | None = None

    def __init__(self, weight: Tensor, config: SoftThreshold, output_dim: int = 0, sparsity: float = 0.0):
        super().__init__(weight, config, output_dim, sparsity)
        per_channel = config.threshold_granularity == "channel"
        self._output_dim = output_dim if per_channel else None
        count = weight.shape[output_dim] if per_channel else 1
        if isinstance(config.threshold_init, Mapping):
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
        empty = value == 0  # channels without a weight above 0 take the smallest threshold of the others
        value = torch.where(empty, value.masked_fill(empty, torch.inf).amin(), value)
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
        return annealed_soft_threshold(weight, self._value(weight), self.alpha, self.backward_sparsity)

    def forward_cached(self, weight: Tensor, cached: Tensor) -> Tensor:
        return annealed_soft_threshold(weight, self._value(weight), self.alpha, self.backward_sparsity, cached=cached)

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
        self.threshold.add_(amount)

    def metrics(self) -> dict[str, Tensor | float]:
        return super().metrics() | {"mean_threshold": torch.sigmoid(self.threshold.detach().float()).mean()}
