"""The one table of layer types: how each stores its weight, and which classes its forms have.

A layer changes its form by a swap of its `__class__`: a `Linear` becomes a `SparseLinear` for training and an
`InferenceLinear` for deployment, and a `Linear` again. Only exact types count: a subclass may bypass `forward`
(`nn.MultiheadAttention.out_proj`) or hold no plain weight (LoRA, quantised layers).

A class can stand in the table as "module:name". Such a module is never imported to look at a layer, because a layer of
a class whose module is not loaded cannot exist. This keeps the package free of transformers until a model uses it.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, field

from torch import Tensor, nn

ClassReference = type[nn.Module] | str


@dataclass(frozen=True, eq=False)
class LayerKind:
    """One type of layer.

    Args:
        name: for people, and for the keys of measurements.
        dense: its plain class.
        output_dim: the dimension of the weight that counts outputs.
        forms: name of a form ("sparse", "inference") -> its class, a subclass of `dense`.
    """

    name: str
    dense: ClassReference
    output_dim: int
    forms: dict[str, ClassReference] = field(default_factory=dict)

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as (outputs, inputs), a view if its layout in memory allows one. A convolution's inputs are
        (channels, height, width)."""
        return weight.flatten(1) if self.output_dim == 0 else weight.t()

    def add_form(self, form: str, cls: ClassReference) -> None:
        """Register the class of a form.

        Raises:
            ValueError: the form has another class already.
        """
        if self.forms.setdefault(form, cls) != cls:
            raise ValueError(f"the {form} form of {self.name} is {self.forms[form]} already: {cls} needs another name")

    def is_dense(self, module: nn.Module) -> bool:
        """Whether the module is a plain layer of this kind."""
        return type(module) is _if_loaded(self.dense)

    def includes(self, module: nn.Module) -> bool:
        """Whether the module is a layer of this kind in any form."""
        return self.is_dense(module) or any(type(module) is _if_loaded(form) for form in self.forms.values())


LINEAR = LayerKind("Linear", nn.Linear, output_dim=0)
CONV2D = LayerKind("Conv2d", nn.Conv2d, output_dim=0)
# GPT-2's Linear, whose weight has shape (inputs, outputs).
CONV1D = LayerKind("Conv1D", "transformers.pytorch_utils:Conv1D", output_dim=1)
KINDS = [LINEAR, CONV2D, CONV1D]


def kind_of(module: nn.Module) -> LayerKind | None:
    """The kind of a layer in any form; None for other modules."""
    return next((kind for kind in KINDS if kind.includes(module)), None)


def dense_kind_of(module: nn.Module) -> LayerKind | None:
    """The kind of a plain layer; None for other modules, and for layers in another form."""
    return next((kind for kind in KINDS if kind.is_dense(module)), None)


def require_kind(layer: nn.Module) -> LayerKind:
    """The kind of a layer in any form.

    Raises:
        TypeError: it is no layer of the table.
    """
    kind = kind_of(layer)
    if kind is None:
        known = ", ".join(kind.name for kind in KINDS)
        raise TypeError(f"{type(layer).__name__} is no layer of a known kind: {known}; subclasses don't count")
    return kind


def matrix_of(layer: nn.Module) -> Tensor:
    """The weight of a layer in any form as (outputs, inputs).

    Raises:
        TypeError: it is no layer of the table.
    """
    return require_kind(layer).matrix(weight_of(layer))


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of a layer: its parameter, or what a reparametrisation computes."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def swap_in(layer: nn.Module, form: str) -> None:
    """Give a plain layer the class of one of its forms, in place.

    Raises:
        TypeError: it is no plain layer of the table, or its kind lacks this form.
    """
    kind = dense_kind_of(layer)
    if kind is None or form not in kind.forms:
        able = ", ".join(kind.name for kind in KINDS if form in kind.forms) or "none"
        raise TypeError(f"{type(layer).__name__} has no {form!r} form; layer types with one: {able}")
    layer.__class__ = _loaded(kind.forms[form])


def swap_out(layer: nn.Module) -> None:
    """Give a layer in any form its plain class back, in place.

    Raises:
        TypeError: it is no layer of the table.
    """
    layer.__class__ = _loaded(require_kind(layer).dense)


def _if_loaded(reference: ClassReference) -> type[nn.Module] | None:
    """The class, or None if its module is not imported."""
    if isinstance(reference, str):
        module, _, name = reference.partition(":")
        return getattr(sys.modules.get(module), name, None)
    return reference


def _loaded(reference: ClassReference) -> type[nn.Module]:
    """The class; imports its module if need be."""
    if isinstance(reference, str):
        module, _, name = reference.partition(":")
        cls: type[nn.Module] = getattr(importlib.import_module(module), name)
        return cls
    return reference
