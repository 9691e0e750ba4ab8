"""Whether what `sparsify` made can learn, and be saved: checked before the first step, whoever trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from ..layers.adapters import adapter_layers
from ..layers.selection import some_names
from ..layers.sparse import REMEDY, SparseLayer, own_forward
from ..layers.sparsify import record_of, sparse_layers

_THE_WAY = (
    "train the sparse model first, finalize(model), save it, and add the adapters to the model that from_pretrained"
    " loads from there"
)


def check_trainable(model: nn.Module) -> None:
    """Refuse a model whose sparse layers cannot learn, or of which only adapters would be saved.

    Raises:
        ValueError: a sparse layer's weight or threshold is frozen; PEFT saves the adapters alone of a model that is
            pruned in memory. The message says which way works.
    """
    layers = sparse_layers(model)
    frozen = [
        name
        for name, layer in layers.items()
        if not (layer.weight.requires_grad and all(p.requires_grad for p in layer.sparsifier.parameters()))
    ]
    if frozen:
        raise ValueError(
            f"{len(frozen)} layers were frozen after they were made sparse (first: {frozen[0]}), as an adapter"
            " (peft_config) does: they are pruned and cannot adjust. Train without an adapter and add it to the saved"
            " model, or freeze layers before they are made sparse: those stay dense"
        )
    for wrapper in model.modules():
        base = _model_of_adapters(wrapper)
        if base is None:
            continue
        adapters = adapter_layers(wrapper)
        saved_too = ".modules_to_save."
        pruned = [name for name in sparse_layers(wrapper) if name not in adapters and saved_too not in name]
        if pruned or (base is not wrapper and record_of(base) is not None):
            raise ValueError(
                f"{type(wrapper).__name__} saves its adapters alone, but the model that they belong to was pruned in"
                f" memory{f' ({some_names(pruned)})' if pruned else ''}, which would be lost: {_THE_WAY}"
            )


def check_forwards(layers: Mapping[str, SparseLayer]) -> None:
    """Refuse sparse layers that something gave a forward of their own after `sparsify`.

    The model itself, where it is one layer, may have one: mixed precision puts it around the sparse layer's.

    Raises:
        ValueError: names the layers and the remedy.
    """
    hooked = [name for name, layer in layers.items() if name and own_forward(layer)]
    if hooked:
        raise ValueError(f"{some_names(hooked)} has{REMEDY}")


def _model_of_adapters(module: nn.Module) -> nn.Module | None:
    """The model whose adapters `module.save_pretrained` writes; None where it writes a whole model."""
    get_base_model: Callable[[], nn.Module] | None = getattr(module, "get_base_model", None)
    if get_base_model is not None and hasattr(module, "peft_config"):
        return get_base_model()
    return module if getattr(module, "_hf_peft_config_loaded", False) else None
