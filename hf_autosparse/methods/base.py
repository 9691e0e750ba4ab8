"""The contract of a method, and the registry.

A `Sparsifier` is one `nn.Module` per layer. Its Parameters and buffers are all its state, so saving, moving, DDP and
resuming need no special code. It knows nothing of Trainer, and Trainer nothing of a method.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from ..functional import boundary
from .schedules import alpha_at

if TYPE_CHECKING:
    from ..config import AutoSparseConfig

# Fields of AutoSparseConfig that only some methods read; the others hold for all.
ANNEALING = frozenset(
    {"alpha_init", "alpha_schedule", "alpha_beta", "alpha_epochs", "alpha_zero_epoch", "alpha_update"}
)
LEARNING = frozenset({"threshold_lr", "threshold_weight_decay", "clip_thresholds"})  # of the sparsifier's parameters
THRESHOLDS = LEARNING | {"threshold_init", "threshold_granularity", "max_layer_sparsity"}
BUDGET = frozenset({"target_sparsity", "sparsity_distribution"})  # a sparsity for each layer, kept by the method itself
TARGET = frozenset({"target_sparsity", "target_ramp"})  # one for all layers together, held by target.py
METHOD_FIELDS = ANNEALING | THRESHOLDS | BUDGET | TARGET | {"backward_sparsity"}

_REGISTRY: dict[str, type[Sparsifier]] = {}


@dataclass(frozen=True)
class Progress:
    """Where training stands: `epoch` (float, epochs done) of `epochs`, `step` (optimizer steps done) of `steps`."""

    epoch: float
    epochs: float
    step: int
    steps: int

    def after_step(self) -> Progress:
        """Where the step to come will have led, as `end_step` sees it; `epoch` stays what it is."""
        return dataclasses.replace(self, step=self.step + 1)


@dataclass(frozen=True)
class Options:
    """A method's own options; subclasses validate in `__post_init__`. This one has none."""


class Sparsifier(nn.Module):
    """Turns a layer's weight into its effective weight.

    Class attributes: `name` (for `AutoSparseConfig(method=...)`), `reference`, `Options`, `reads` (which of
    METHOD_FIELDS the method reads), `default_alpha` (alpha_init and alpha_schedule where the configuration has None).

    Args:
        weight: the layer's weight, for shape, device and initial values. Not kept.
        config: the run's configuration.
        output_dim: the dimension of `weight` that counts output channels (0 for Linear and Conv2d, 1 for Conv1D).
        sparsity: the layer's share of `target_sparsity`; None for methods without a budget.
    """

    name: ClassVar[str]
    reference: ClassVar[str]
    alpha: float | None = None  # the share of the gradient that pruned weights receive; None for a method without one
    spares_edges: ClassVar[bool] = True  # whether the configuration's `first_last` leaves layers dense
    Options: ClassVar[type[Options]] = Options
    reads: ClassVar[frozenset[str]] = frozenset()
    default_alpha: ClassVar[tuple[float, str]] = (0.0, "fixed")

    collects_gradient = (
        False  # set by `begin_step`: the next backward passes shall collect the effective weight's gradient
    )

    def __init__(self, weight: Tensor, config: AutoSparseConfig, output_dim: int = 0, sparsity: float | None = None):
        super().__init__()
        self.config = config
        self.alpha = config.alpha_init
        self._gradient: Tensor | None = None
        # A buffer, so that a resumed run reports what the uninterrupted one would.
        self.register_buffer("at_guard", torch.zeros(1, dtype=torch.bool, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """The effective weight in training, differentiable, same shape and dtype as `weight`."""
        raise NotImplementedError

    def forward_cached(self, weight: Tensor, cached: Tensor) -> Tensor:
        """`forward` for another micro-batch of the same optimizer step, with the same values as `known`, detached."""
        return self(weight)

    def deployed(self, weight: Tensor) -> Tensor:
        """The effective weight that is evaluated and saved, zero outside `mask`: the one in training, unless the method
        trains with a soft mask."""
        return self(weight)

    def backward_input(self, input: Tensor) -> Tensor | None:
        """What the weight gradient is to be computed from instead of the layer's input, same shape; None for itself."""
        return None

    def mask(self, weight: Tensor) -> Tensor:
        """Bool tensor of `weight`'s shape, True where the effective weight is kept."""
        raise NotImplementedError

    def initialise(self, weight: nn.Parameter) -> None:
        """Called once by `sparsify`, without gradients, after everything was found to work: may change the weight."""

    def begin_step(self, progress: Progress) -> None:
        """Called before every optimizer step. Sets alpha and `collects_gradient`, functions of progress alone."""
        config = self.config
        self.collects_gradient = self.needs_gradient(progress.after_step())
        if "alpha_init" in self.reads:
            self.alpha = alpha_at(
                config.alpha_schedule,
                progress.epoch if config.alpha_update == "step" else float(int(progress.epoch + 1e-9)),
                alpha_init=config.alpha_init,
                length=config.alpha_epochs or progress.epochs,
                beta=config.alpha_beta,
                zero_epoch=config.alpha_zero_epoch,
            )

    def needs_gradient(self, progress: Progress) -> bool:
        """Whether `end_step`, called with this progress, will take the gradient of the effective weight."""
        return False

    def regularise(self, weight: nn.Parameter) -> None:
        """Called once before every optimizer step, after accumulation and clipping: may add to gradients.

        A penalty enters here with its gradient, so that accumulation does not change it.
        """

    def end_step(self, weight: nn.Parameter, progress: Progress) -> Tensor | None:
        """Called after every optimizer step, which `progress` counts in, without gradients: may change mask and weight.

        Returns:
            Bool tensor, True where a weight was newly grown: its optimizer state is reset. None where none was.
        """

    def collect_gradient(self, gradient: Tensor) -> None:
        """Adds up the gradient of the effective weight over the micro-batches of one step (`collects_gradient`)."""
        self._gradient = gradient.detach().clone() if self._gradient is None else self._gradient.add_(gradient)

    def take_gradient(self, weight: Tensor) -> Tensor:
        """The collected gradient, the mean over all processes; zeros if the layer was used by none (LayerDrop).

        It is forgotten here.
        """
        gradient, self._gradient = self._gradient, None
        if gradient is None:
            gradient = torch.zeros_like(weight)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(gradient)
            gradient /= torch.distributed.get_world_size()
        return gradient

    @torch.no_grad()
    def limit_sparsity(self, weight: Tensor, maximum: float) -> bool:
        """Bring the sparsity down to `maximum`, and return True. Methods that don't read `max_layer_sparsity` cannot
        run away, or not for good: for them this does nothing and returns False."""
        if "max_layer_sparsity" not in self.reads:
            return False
        shift = boundary(self.margin(weight, 1), int(maximum * weight.numel()))
        self.raise_threshold(shift.clamp(max=0))
        return True

    def margin(self, weight: Tensor, stride: int) -> Tensor:
        """How far each weight is from being pruned, in the units of the threshold; it is kept where this is above 0.

        Needed, with `raise_threshold`, from methods that read `target_ramp` or `max_layer_sparsity`.

        Returns:
            Every `stride`-th of the flattened weight, 1-dim, float32; -inf for what is pruned at any threshold.
        """
        raise NotImplementedError

    def raise_threshold(self, amount: Tensor) -> None:
        """Prune the weights with a margin up to `amount` (0-dim, of any sign) and no others."""
        raise NotImplementedError

    @classmethod
    def check_model(cls, model: nn.Module, sparse: Collection[str]) -> None:
        """Called by `sparsify` with the names of the layers to become sparse, before anything is changed: the place to
        raise ValueError, or to warn, if the model does not suit the method."""

    def gradient_mask(self, weight: Tensor) -> Tensor | None:
        """Which entries of the weight gradient the next backward pass has to compute, for the theoretical FLOPs.

        Returns:
            Bool tensor of `weight`'s shape, False where the gradient is zero by design; None where it is dense. The
            default is dense while alpha is above 0, and else the mask: pruned weights get alpha times their gradient.
        """
        return None if self.alpha else self.mask(weight)

    def learns_where_kept(self) -> bool:
        """Whether `gradient_mask` is just where the effective weight is not 0. True only where that is known without
        looking at the weight; it saves a sparse backward pass the look."""
        return False

    def gradient_count(self, weight: Tensor) -> Tensor:
        """How many entries of the weight gradient a step from here on computes, on average: int64 scalar.

        That of `gradient_mask`, unless the method needs a dense gradient in some steps only.
        """
        mask = self.gradient_mask(weight)
        if mask is None:
            return torch.full((), weight.numel(), dtype=torch.int64, device=weight.device)
        return mask.count_nonzero()

    def is_finite(self) -> Tensor:
        """Bool scalar: all parameters are finite."""
        finite = [p.isfinite().all() for p in self.parameters()]
        return torch.stack(finite).all() if finite else torch.ones((), dtype=torch.bool)

    def metrics(self) -> dict[str, Tensor | float]:
        """Scalars to log, averaged over layers."""
        return {"alpha": self.alpha} if "alpha_init" in self.reads else {}


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
