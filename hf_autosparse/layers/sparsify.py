"""`sparsify` a model in place, look at it, and `finalize` it back into a plain model with exact zeros."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ..methods import CHANCE, Budget, SparseConfig, Target, method_of
from .kinds import kind_of, require_kind, weight_of
from .saving import save_as_before, save_deployed
from .selection import select_layers
from .sparse import SparseLayer, make_plain, make_sparse

logger = logging.getLogger(__name__)

_RECORD = "_autosparse"


@dataclass
class Record:
    """What `sparsify` leaves on the model: the configuration, the sparse layers' names, why the others stayed dense."""

    config: SparseConfig
    sparse: list[str]
    dense: dict[str, str]


def sparsify(model: nn.Module, config: SparseConfig) -> nn.Module:
    """Make the layers that `config` selects sparse, in place, and return the model.

    Create the optimizer afterwards: the layers gain parameters. `sparsity_report(model)` shows what was left dense,
    and why. `model.save_pretrained` writes effective weights from now on; `model.state_dict()` holds the raw ones.

    Raises:
        ValueError: the model is already sparse, a pattern matches nothing, or no layer is left.
        TypeError: `config` is no configuration of a registered method.
    """
    method = method_of(config)
    selection = select_layers(model, config)
    method.check_model(model, selection.sparse)
    sparsifiers = {}
    weights = {name: layer.get_parameter("weight") for name, layer in selection.sparse.items()}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    shares = config.layer_sparsities(shapes)
    zeros = _sparsity_at_start(weights)
    shares_from_zeros = config.layer_sparsities(shapes, zeros)
    _warn_of_zeros(config, weights, zeros)
    for name, layer in selection.sparse.items():
        try:
            sparsifiers[name] = method(weights[name], config, require_kind(layer).output_dim, shares[name])
            if zeros:
                with torch.no_grad():
                    sparsifiers[name].start_from_zeros(weights[name], shares_from_zeros[name])
        except ValueError as error:
            raise ValueError(f"layer {name}: {error}") from error
    if selection.unsuited:
        logger.warning("left dense: %s", "; ".join(f"{name}: {reason}" for name, reason in selection.unsuited.items()))
    for name, layer in selection.sparse.items():  # nothing is changed before everything is known to work
        with torch.no_grad():
            sparsifiers[name].initialise(weights[name])
        make_sparse(layer, sparsifiers[name])
    save_deployed(model)
    setattr(model, _RECORD, Record(config, list(selection.sparse), selection.dense))
    return model


@torch.no_grad()
def _sparsity_at_start(weights: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """Name -> fraction of zeros that a layer has, for all layers if one of them was pruned; else empty."""
    known = {name: weight for name, weight in weights.items() if not weight.is_meta}
    zeros = {name: 1 - int(weight.count_nonzero()) / weight.numel() for name, weight in known.items()}
    return zeros if any(fraction >= CHANCE for fraction in zeros.values()) else {}


def _warn_of_zeros(config: SparseConfig, weights: Mapping[str, nn.Parameter], zeros: Mapping[str, float]) -> None:
    target = config.target_sparsity if isinstance(config, Budget | Target) else None
    total = sum(weight.numel() for weight in weights.values())
    present = sum(fraction * weights[name].numel() for name, fraction in zeros.items()) / total
    if target is not None and present > target:
        logger.warning(
            "%.1f %% of the sparse layers' weights are 0 already, more than target_sparsity = %s: they stay",
            100 * present,
            target,
        )


def record_of(model: nn.Module) -> Record | None:
    """What `sparsify` noted on this model, or None. Kept by `finalize`."""
    return getattr(model, _RECORD, None)


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """Name -> sparse layer, in registration order; empty for a dense or finalized model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseLayer)}


def sparsifier_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of the sparsifiers (thresholds), which the optimizer treats as their own group."""
    own = _sparsifier_ids(model)
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in own}


def plain_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of the model itself: all but those of the sparsifiers."""
    own = _sparsifier_ids(model)
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in own}


def _sparsifier_ids(model: nn.Module) -> set[int]:
    return {id(parameter) for layer in sparse_layers(model).values() for parameter in layer.sparsifier.parameters()}


@torch.no_grad()
def finalize(model: nn.Module) -> nn.Module:
    """Write each effective weight into its layer and turn the layers back into plain ones, in place.

    The result computes what the sparse model computed, has exact zeros and no trace of this package in its state dict.

    Raises:
        ValueError: the model has no sparse layer.
    """
    layers = sparse_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no sparse layer to finalize: call sparsify(model, config) first")
    for layer in layers.values():
        layer.weight.copy_(layer.sparse_weight())
        make_plain(layer)
    save_as_before(model)
    return model


@contextmanager
def folded(model: nn.Module) -> Iterator[nn.Module]:
    """Compute each effective weight once and use it as a constant inside the block: for evaluation and generation.

    Costs one extra copy of the sparse weights. Gradients do not reach the weights inside the block. Blocks may be
    nested: a layer that is folded already stays as it is until its own block ends.
    """
    layers = [layer for layer in sparse_layers(model).values() if layer.folded is None]
    with torch.no_grad():
        for layer in layers:
            layer.folded = layer.sparse_weight()
            layer.open_step = None
    try:
        yield model
    finally:
        for layer in layers:
            layer.folded = None


@torch.no_grad()
def layer_sparsity(model: nn.Module) -> dict[str, float]:
    """Fraction of zeros of each layer's effective weight. One transfer from the device for all layers.

    Covers the sparse layers; after `finalize` the same ones; for any other model every Linear, Conv2d and Conv1D.
    """
    weights = {name: layer.sparse_weight() for name, layer in sparse_layers(model).items()}
    record = record_of(model)
    if not weights and record is not None:
        weights = {name: weight_of(model.get_submodule(name)) for name in record.sparse}
    if not weights:
        weights = {name: weight_of(module) for name, module in model.named_modules() if kind_of(module) is not None}
    if not weights:
        return {}
    kept = torch.stack([weight.count_nonzero() for weight in weights.values()]).tolist()
    return {name: 1 - count / weight.numel() for (name, weight), count in zip(weights.items(), kept, strict=True)}


def sparsity(model: nn.Module) -> float:
    """Fraction of zeros over the weights of the layers that `layer_sparsity` covers, in [0, 1].

    Raises:
        ValueError: the model has no such layer.
    """
    fractions = layer_sparsity(model)
    if not fractions:
        raise ValueError(f"{type(model).__name__} has no Linear, Conv2d or Conv1D layer")
    sizes = {name: weight_of(model.get_submodule(name)).numel() for name in fractions}
    return sum(fractions[name] * sizes[name] for name in fractions) / sum(sizes.values())
