"""What the layers of a unit receive: the sum of `x x^T` over all inputs x of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .lockstep import Batch
from .targets import ExpertTarget, LayerTarget, Target
from .units import Unit


class Grams:
    """Name of a target -> (groups, inputs, inputs) float32, of those that received inputs at all."""

    def __init__(self) -> None:
        self.by_name: dict[str, Tensor] = {}

    def add(self, target: Target, rows: Tensor) -> None:
        """`rows`: (groups, rows, inputs)."""
        if not rows.shape[1]:
            return
        rows = rows.detach().float()
        gram = self.by_name.get(target.name)
        if gram is None:
            gram = self.by_name[target.name] = rows.new_zeros(rows.shape[0], rows.shape[2], rows.shape[2])
        gram.baddbmm_(rows.mT, rows)


def collect(unit: Unit, calls: Iterator[Batch]) -> Grams:
    """Run the unit's module on all calls, and sum up what its targets receive.

    Raises:
        ValueError: the unit changes its own input in place, so that it cannot be run twice.
    """
    grams = Grams()
    with ExitStack() as stack:
        for target in unit.targets:
            if isinstance(target, LayerTarget):
                hook = target.module.register_forward_pre_hook(_hook(grams, target), with_kwargs=True)
                stack.callback(hook.remove)
        experts = [target for target in unit.targets if isinstance(target, ExpertTarget)]
        if experts:
            stack.enter_context(_one_by_one(experts))
            stack.enter_context(_ExpertInputs(grams, experts))
        for call in calls:
            before = _versions(call)
            unit.module(*call.args, **call.kwargs)
            if _versions(call) != before:
                raise ValueError(
                    f"{unit.name or type(unit.module).__name__} changes its input in place, so its inputs are lost:"
                    " list its layers in dense_modules"
                )
    return grams


def _hook(grams: Grams, target: LayerTarget) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        grams.add(target, target.rows(args[0] if args else kwargs["input"]))

    return hook


def _versions(call: Batch) -> list[int]:
    return [value._version for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor)]


class _ExpertInputs(TorchFunctionMode):
    """Sees the products with one expert's slice of a stacked weight: `linear(x, w[i])`, or `x @ w[i]` if transposed."""

    def __init__(self, grams: Grams, experts: list[ExpertTarget]):
        super().__init__()
        self._grams = grams
        self._experts = {target.parameter[target.expert].data_ptr(): target for target in experts}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _PRODUCTS and len(args) >= 2 and isinstance(args[1], Tensor):
            target = self._experts.get(args[1].data_ptr())
            if target is not None and args[1].shape == target.shape and target.transposed == (func is not F.linear):
                self._grams.add(target, args[0].reshape(1, -1, args[0].shape[-1]))
        return func(*args, **(kwargs or {}))


_PRODUCTS = {F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm}


@contextmanager
def _one_by_one(experts: list[ExpertTarget]) -> Iterator[None]:
    """Inside, transformers computes one expert after the other: it has implementations that take all at once."""
    configs = {id(config): config for target in experts if (config := getattr(target.module, "config", None))}
    before = {key: config._experts_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._experts_implementation = "eager"
        yield
    finally:
        for key, config in configs.items():
            config._experts_implementation = before[key]
