"""Layers of a trained model whose product skips the zeros of their weight.

A layer is converted by swapping its `__class__` (layers/kinds.py): names, `state_dict`, hooks and tied weights stay.
The weight stays too, for saving and for the calls that the kernel does not take; its sparse form is derived from it,
made again when the weight changes, and never stored.
"""

from __future__ import annotations

import itertools
import logging
import weakref
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from ..kernels import Backend, ConvolvingMatrix, Matrix, convolved, get_backend
from ..kernels.autotune import Ranges
from ..layers import kinds

logger = logging.getLogger(__name__)

_DERIVED = ("_packed", "_form", "_handle")  # neither saved nor copied: each copy makes its own
_handles = itertools.count()
_by_handle: weakref.WeakValueDictionary[int, InferenceLayer] = weakref.WeakValueDictionary()
_warned_of_gradients = False


class InferenceLayer(nn.Module):
    """Mixin: `forward` takes the sparse product where it can and may, else what the dense layer does.

    It can for plain tensors of its backend's device and dtypes (on the CPU finite float32), without autocast, when no
    gradient is asked for. It may for the numbers of tokens (or pixels) in `sparse_for`, a sequence of inclusive ranges.
    `backend` is the name of its sparse form; with `exact`, a weight that this form would round takes the dense product.

    The checks are written for speed: one small layer takes ten microseconds, and a model has hundreds.
    """

    sparse_for: Ranges
    backend: str
    exact: bool
    _parameters: dict[str, Any]
    _form: Backend  # that `backend` names
    _packed: tuple[tuple[int, int], Matrix | None]  # the stamp of the weight that the sparse form was made from, and it
    _handle: int

    def matrix_view(self) -> Tensor:
        """The weight as (outputs, inputs)."""
        raise NotImplementedError

    def sparse_product(self, input: Tensor) -> Tensor | None:
        """The layer's output by the kernel, or None where it does not apply. `input` is contiguous."""
        raise NotImplementedError

    def output_shape(self, input: Tensor) -> tuple[int, ...]:
        """Shape of the layer's output."""
        return *input.shape[:-1], self.matrix_view().shape[0]

    def dense_forward(self, input: Tensor) -> Tensor:
        """The dense layer's output."""
        return cast(Tensor, super().forward(input))

    def forward(self, input: Tensor) -> Tensor:
        if is_compiling():
            return self._traced(input)
        if type(input) is Tensor and self._takes(input) and not _needs_plain_ops(input.device.type):
            if not torch.is_grad_enabled() or not self._asks_for_gradients(input):
                output = self.sparse_product(input if input.is_contiguous() else input.contiguous())
                if output is not None:
                    return output
        return self.dense_forward(input)

    def _takes(self, input: Tensor) -> bool:
        weight = self._parameters["weight"]
        same = input.dtype is weight.dtype and input.device == weight.device
        return same and self._form.applies(input)

    def _asks_for_gradients(self, input: Tensor) -> bool:
        global _warned_of_gradients
        asked = input.requires_grad or any(parameter.requires_grad for parameter in self.parameters())
        if asked and not _warned_of_gradients:
            _warned_of_gradients = True
            logger.warning(
                "a model from to_inference was called with gradients enabled, which takes the dense product:"
                " call it under torch.inference_mode() or torch.no_grad()"
            )
        return asked

    def _matrix(self, tokens: int) -> Matrix | None:
        """The sparse form of the present weight, or None where this call is better or necessarily dense.

        The stamp tells whether the weight is still the one it was made from. Threads that find it stale at once make
        it twice, which is harmless.
        """
        for low, high in self.sparse_for:
            if low <= tokens <= high:
                break
        else:
            return None
        parameters = self._parameters
        weight, bias = parameters["weight"], parameters["bias"]
        if bias is not None and not (
            bias.dtype is weight.dtype and bias.device == weight.device and bias.is_contiguous()
        ):
            return None
        cached: tuple[tuple[int, int], Matrix | None] | None = self.__dict__.get("_packed")
        stamp = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if cached is None or cached[0] != stamp:
            form = self._form
            takes = form.applies(weight) and (not self.exact or form.exact(weight.detach()))
            matrix = form.build(self.matrix_view().detach()) if takes else None
            self._packed = cached = (stamp, matrix)
        return cached[1]

    # ---- torch.compile: one opaque operator in the graph ----

    def _traced(self, input: Tensor) -> Tensor:
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        gradients = torch.is_grad_enabled() and (
            input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
        )
        if gradients or torch.compiler.is_exporting() or not self._takes(input):
            return self.dense_forward(input)
        output: Tensor = torch.ops.hf_autosparse.inference_layer(input, weight, bias, self._handle)
        return output

    # ---- Copies: the sparse form and the handle are the original's own ----

    def prepare(self, sparse_for: Ranges, backend: str, exact: bool = False) -> None:
        """Set up an object whose class was just swapped; builds the sparse form.

        Raises:
            ValueError: no backend has this name.
        """
        self.sparse_for, self.backend, self.exact = sparse_for, backend, exact
        self._register()
        if sparse_for:
            self._matrix(int(sparse_for[0][0]))

    @property
    def matrix_bytes(self) -> int:
        """Memory of the sparse form."""
        matrix = self._packed[1]
        return 0 if matrix is None else matrix.bytes

    def matrix_error(self) -> float:
        """Size of the sparse product's error on normal random activations, relative to the product; 0 if it is exact.

        Rounding to the dtype of results is part of it.
        """
        matrix, weight = self._packed[1], self.matrix_view().detach()
        if matrix is None or self._form.exact(weight):
            return 0.0
        generator = torch.Generator("cpu").manual_seed(0)
        x = torch.randn(16, weight.shape[1], generator=generator, dtype=torch.float32, device="cpu").to(weight)
        product, expected = matrix.product(x), x.double() @ weight.double().T
        if product is None or not expected.any():
            return 0.0
        return float((product - expected).norm() / expected.norm())

    def _register(self) -> None:
        self._form = get_backend(self.backend)
        self._handle = next(_handles)
        _by_handle[self._handle] = self

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in _DERIVED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._register()


@torch.library.custom_op("hf_autosparse::inference_layer", mutates_args=())
def _inference_layer(input: Tensor, weight: Tensor, bias: Tensor | None, handle: int) -> Tensor:
    """A layer's forward by its handle. `weight` and `bias` tell the compiler what is read."""
    layer = _by_handle[handle]
    output = layer.sparse_product(input.contiguous())
    return layer.dense_forward(input).contiguous() if output is None else output


@_inference_layer.register_fake
def _(input: Tensor, weight: Tensor, bias: Tensor | None, handle: int) -> Tensor:
    return input.new_empty(_by_handle[handle].output_shape(input))


def _needs_plain_ops(device: str) -> bool:
    """Whether autocast, tracing or functorch is active: each has to see or change every operation."""
    return (
        torch.is_autocast_enabled(device)
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
    )


class InferenceLinear(InferenceLayer, nn.Linear):
    def matrix_view(self) -> Tensor:
        return cast(Tensor, self._parameters["weight"])

    def sparse_product(self, input: Tensor) -> Tensor | None:
        return token_product(self, input)


def token_product(layer: InferenceLayer, input: Tensor) -> Tensor | None:
    """`sparse_product` of a layer on tokens: input (..., inputs)."""
    inputs = input.shape[-1] if input.dim() else 0
    tokens = input.numel() // inputs if inputs else 0
    matrix = layer._matrix(tokens)
    if matrix is None or inputs != matrix.cols:  # the dense layer has the message for a wrong size
        return None
    return matrix.product(input, layer._parameters["bias"])


class InferenceConv2d(InferenceLayer, nn.Conv2d):
    """A convolution without groups: the product of the weight with every window of pixels."""

    def matrix_view(self) -> Tensor:
        return cast(Tensor, self._parameters["weight"]).flatten(1)

    def output_shape(self, input: Tensor) -> tuple[int, ...]:
        left, right, top, bottom = self._reversed_padding_repeated_twice
        sides = (input.shape[2] + top + bottom, input.shape[3] + left + right)
        out = map(convolved, sides, self.kernel_size, self.stride, self.dilation)
        return input.shape[0], self.out_channels, *out

    def sparse_product(self, input: Tensor) -> Tensor | None:
        if input.dim() != 4 or input.shape[1] != self.in_channels or input.numel() == 0:
            return None  # one image without a batch; the dense layer has the message for a wrong size
        _, _, height, width = self.output_shape(input)
        matrix = self._matrix(height * width) if height > 0 and width > 0 else None
        if matrix is None:
            return None
        if any(self._reversed_padding_repeated_twice):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input = nn.functional.pad(input, self._reversed_padding_repeated_twice, mode)
        window = cast("tuple[tuple[int, int], ...]", (self.kernel_size, self.stride, self.dilation))
        return cast(ConvolvingMatrix, matrix).convolution(input, self._parameters["bias"], *window)


kinds.LINEAR.add_form("inference", InferenceLinear)
kinds.CONV2D.add_form("inference", InferenceConv2d)
kinds.CONV1D.add_form("inference", "hf_autosparse.inference.conv1d:InferenceConv1D")


def swap_in(module: nn.Module, sparse_for: Ranges, backend: str, exact: bool = False) -> InferenceLayer:
    """Make a dense layer one for inference, in place, and return it."""
    kinds.swap_in(module, "inference")
    assert isinstance(module, InferenceLayer)
    module.prepare(sparse_for, backend, exact)
    return module


def swap_out(layer: InferenceLayer) -> None:
    """Undo `swap_in`."""
    for name in (*_DERIVED, "sparse_for", "backend", "exact"):
        layer.__dict__.pop(name, None)
    kinds.swap_out(layer)
