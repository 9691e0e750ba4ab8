"""The contract of a method, and the registry.

A `Sparsifier` is one `nn.Module` per layer. Its Parameters and buffers are all its state, so saving, moving, DDP and
resuming need no special code. It knows nothing of Trainer, and Trainer nothing of a method.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..functional import boundary
from .config import SparseConfig, add_config_class
from .progress import Progress
from .settings import Annealing

CHANCE = 0.01  # a layer with a smaller share of zeros was not pruned


class Sparsifier(nn.Module):
    """Turns a layer's weight into its effective weight.

    What a method can do is said by its configuration's class: `Annealing` (alpha), `LearnedParameters` (parameters of
    the sparsifier), `Target` and `LearnedThresholds` (`margin` and `raise_threshold` work), `Budget` (`sparsity` is
    reached), and `trains_with_zeros`.

    Args:
        weight: the layer's weight, for shape, device and initial values. Not kept.
        config: the run's configuration.
        output_dim: the dimension of `weight` that counts output channels (0 for Linear and Conv2d, 1 for Conv1D).
        sparsity: the layer's share of the budget; 0 for methods without a budget.
    """

    reference: ClassVar[str]  # the paper
    config: SparseConfig
    alpha: float | None  # the share of the gradient that pruned weights receive; None for a method without one
    at_guard: Tensor
    zeros: Tensor | None
    # Set by `begin_step`: the next backward passes collect the effective weight's gradient.
    collects_gradient: bool = False
    __call__: Callable[..., Tensor]

    def __init__(self, weight: Tensor, config: SparseConfig, output_dim: int = 0, sparsity: float = 0.0):
        super().__init__()
        self.config = config
        self.alpha = config.alpha_init if isinstance(config, Annealing) else None
        self._gradient: Tensor | None = None
        self.start_sparsity, self.final_sparsity = 0.0, sparsity
        self._budgeted, self._size = sparsity, weight.numel()
        # Zeros at the start, and at the end of a budget: int64, shape (2,). None for a layer that started without.
        self.register_buffer("zeros", None)
        # A buffer, so that a resumed run reports what the uninterrupted one would.
        self.register_buffer("at_guard", torch.zeros(1, dtype=torch.bool, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """The effective weight in training, differentiable, same shape and dtype as `weight`."""
        raise NotImplementedError

    def forward_cached(self, weight: Tensor, cached: Tensor) -> Tensor:
        """`forward` for another micro-batch of the same optimizer step; `cached` is its result there, detached."""
        return self(weight)

    def deployed(self, weight: Tensor) -> Tensor:
        """The effective weight that is evaluated and saved, zero outside `mask`: the one in training, unless the method
        trains with a soft mask."""
        return self(weight)

    def backward_input(self, input: Tensor) -> Tensor | None:
        """What the weight gradient is computed from in place of the layer's input, same shape; None for the input."""
        return None

    def mask(self, weight: Tensor) -> Tensor:
        """Bool tensor of `weight`'s shape, True where the effective weight is kept."""
        raise NotImplementedError

    def initialise(self, weight: nn.Parameter) -> None:
        """Called once by `sparsify`, without gradients, after all checks have passed: may change the weight."""

    def start_from_zeros(self, weight: Tensor, sparsity: float) -> None:
        """Called by `sparsify` for a layer that has zeros already, without gradients: from here on its sparsity does
        not fall below what it has. `start_sparsity` and `final_sparsity` are known afterwards.

        Args:
            sparsity: the layer's share of the budget, not below what the layer has; 0 for methods without a budget.

        Raises:
            ValueError: the method ends at fewer zeros.
        """
        zeros = weight.numel() - int(weight.count_nonzero())
        self.zeros = torch.tensor([zeros, round(sparsity * weight.numel())], device=weight.device)
        self._read_zeros(self.zeros.tolist())

    def _read_zeros(self, zeros: list[int]) -> None:
        self.start_sparsity, self.final_sparsity = (count / self._size for count in zeros)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A resumed run starts from the zeros that the first one started from, whatever the model at hand has."""
        zeros = state_dict.get(prefix + "zeros")
        if zeros is None:
            self.start_sparsity, self.final_sparsity, self.zeros = 0.0, self._budgeted, None
        else:
            self.zeros = torch.empty_like(zeros, device=self.at_guard.device)
            self._read_zeros(zeros.tolist())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def begin_step(self, progress: Progress) -> None:
        """Called before every optimizer step. Sets alpha and `collects_gradient`, functions of progress alone."""
        self.collects_gradient = self.needs_gradient(progress.after_step())
        if isinstance(self.config, Annealing):
            self.alpha = self.config.alpha_at(progress)

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
        """The collected gradient, averaged over all processes, and forget it.

        Zeros if no process used the layer (LayerDrop).
        """
        gradient, self._gradient = self._gradient, None
        if gradient is None:
            gradient = torch.zeros_like(weight)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(gradient)
            gradient /= torch.distributed.get_world_size()
        return gradient

    def gradient_at_growth(self) -> Tensor | None:
        """The gradient of the effective weight that the last `end_step` grew weights by, and forget it; None where it
        grew by something else."""
        return None

    @torch.no_grad()
    def limit_sparsity(self, weight: Tensor, maximum: float) -> None:
        """Bring the sparsity down to `maximum`. Called where it has passed `config.sparsity_limit`."""
        shift = boundary(self.margin(weight, 1), int(maximum * weight.numel()))
        self.raise_threshold(shift.clamp(max=0))

    def margin(self, weight: Tensor, stride: int) -> Tensor:
        """How far each weight is from being pruned, in the units of the threshold; it is kept where this is above 0.

        Needed, with `raise_threshold`, from methods whose configuration is a `Target`.

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

    @classmethod
    def unsuited(cls, weight: Tensor, config: SparseConfig, output_dim: int) -> str | None:
        """Why a layer with this weight stays dense under this method; None where it can be sparse."""
        return None

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

        The count of `gradient_mask`, unless the method needs a dense gradient in some steps only.
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
        return {"alpha": self.alpha} if isinstance(self.config, Annealing) and self.alpha is not None else {}


_SPARSIFIERS: dict[type[SparseConfig], type[Sparsifier]] = {}
_Class = TypeVar("_Class", bound=type[Sparsifier])


def register(config: type[SparseConfig]) -> Callable[[_Class], _Class]:
    """Class decorator of a sparsifier: models with a configuration of this class get such sparsifiers.

    Raises:
        ValueError: another configuration class has the same `method`.
    """

    def bind(sparsifier: _Class) -> _Class:
        add_config_class(config)
        _SPARSIFIERS[config] = sparsifier
        return sparsifier

    return bind


def method_of(config: SparseConfig | type[SparseConfig]) -> type[Sparsifier]:
    """The sparsifier class of a configuration, or of a configuration class.

    Raises:
        TypeError: it is no configuration of a registered method.
    """
    found = config if isinstance(config, type) else type(config)
    if found in _SPARSIFIERS:
        return _SPARSIFIERS[found]
    if isinstance(config, SparseConfig):
        raise TypeError(f"{found.__name__} has no sparsifier: decorate one with @register({found.__name__})")
    raise TypeError(
        f"config = {config!r}: expected a configuration such as AutoSparseConfig(); turn a dict into one with"
        " SparseConfig.from_dict"
    )
