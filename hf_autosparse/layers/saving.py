"""Saving a model that is still sparse: what is written is what is evaluated, whoever writes it.

`deployed(model)` makes the state dicts of a model and of its parts those of the finalized model. `sparsify` puts a
`DeployingSave` before `save_pretrained`, which does its work inside such a block. Outside of it a state dict holds raw
weights and sparsifiers, from which training can go on.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..methods import Sparsifier
from .selection import qualified
from .sparse import SparseLayer


@contextmanager
def deployed(model: nn.Module) -> Iterator[nn.Module]:
    """Inside the block, state dicts of the model and its parts hold effective weights and nothing of the sparsifiers.

    The model itself is not changed. Costs one extra copy of the sparse weights, kept until the block ends. A layer with
    several names has its effective weight under each. Blocks may be nested.
    """
    layers = [m for m in model.modules() if isinstance(m, SparseLayer) and not m.is_deployed]
    weights: dict[nn.Module, Tensor] = {}

    def deploy(layer: SparseLayer, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        if layer not in weights:
            with torch.no_grad():
                weights[layer] = layer.sparse_weight()
        for key in [key for key in state if key.startswith(f"{prefix}sparsifier.")]:
            del state[key]
        state[f"{prefix}weight"] = weights[layer]

    handles = [
        layer.register_state_dict_post_hook(deploy)  # type: ignore[no-untyped-call]  # torch declares no types for it
        for layer in layers
    ]
    for layer in layers:
        layer.is_deployed = True
    try:
        yield model
    finally:
        for layer, handle in zip(layers, handles, strict=True):
            handle.remove()
            del layer.is_deployed


@torch.no_grad()
def deployable_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The state dict that `finalize(model)` would have, without touching the model.

    Args:
        state_dict: the model's own, where it was gathered already.
    """
    if state_dict is None:
        with deployed(model):
            return dict(model.state_dict())
    paths = dict(model.named_modules(remove_duplicate=False))  # a module that is used twice has two names
    private = tuple(qualified(name, "") for name, module in paths.items() if isinstance(module, Sparsifier))
    deployable = {key: value for key, value in state_dict.items() if not key.startswith(private)}
    weights = {module: module.sparse_weight() for module in paths.values() if isinstance(module, SparseLayer)}
    return deployable | {
        qualified(name, "weight"): weights[module] for name, module in paths.items() if isinstance(module, SparseLayer)
    }


class DeployingSave:
    """Stands before a model's own `save_pretrained`, or another method that saves, while the model is sparse."""

    def __init__(self, model: nn.Module, name: str):
        self._model, self._name = model, name
        self.replaced = vars(model).get(name)  # what somebody else put there

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's own method returns, which sees the model as `finalize` would leave it."""
        method = self.replaced or getattr(type(self._model), self._name).__get__(self._model)
        bound = inspect.signature(method).bind(*args, **kwargs)
        given = bound.arguments.get("state_dict")
        if given is not None and not _is_deployed(self._model):
            bound.arguments["state_dict"] = deployable_state_dict(self._model, given)
        with deployed(self._model):
            return method(*bound.args, **bound.kwargs)


def save_deployed(model: nn.Module) -> None:
    """Put a `DeployingSave` before each method of a sparse model, and of its parts, that writes files for others."""
    for module in model.modules():
        if any(isinstance(part, SparseLayer) for part in module.modules()):
            for name in _saving_methods(module):
                if not isinstance(vars(module).get(name), DeployingSave):
                    setattr(module, name, DeployingSave(module, name))


def save_as_before(model: nn.Module) -> None:
    """Undo `save_deployed`."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, DeployingSave):
                delattr(module, name)
                if value.replaced is not None:
                    setattr(module, name, value.replaced)


def _saving_methods(module: nn.Module) -> list[str]:
    names = ["save_pretrained"]
    if any(cls.__module__.partition(".")[0] == "sentence_transformers" for cls in type(module).__mro__):
        names.append("save")
    return [name for name in names if callable(getattr(type(module), name, None))]


def _is_deployed(model: nn.Module) -> bool:
    return any(isinstance(module, SparseLayer) and module.is_deployed for module in model.modules())
