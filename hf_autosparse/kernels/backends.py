"""The sparse forms that a layer's weight can take for inference, by name. docs/add_a_backend.md adds one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

RESERVED = ("auto", "dense")  # what `to_inference` takes beside the names of backends


class Matrix(Protocol):
    """A weight (rows, cols) in a sparse form."""

    @property
    def rows(self) -> int: ...

    @property
    def cols(self) -> int: ...

    @property
    def bytes(self) -> int:
        """Memory that the form takes."""

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor | None:
        """`x W^T + bias`: (..., cols) -> (..., rows), or None where the caller has to take the dense product.

        `x` and `bias` are contiguous, `x` is not empty, and both have the weight's dtype and device.
        """


class ConvolvingMatrix(Matrix, Protocol):
    """A sparse form that convolves too: its columns are (channels, kernel height, kernel width)."""

    def convolution(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        kernel: tuple[int, int] = (1, 1),
        stride: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
    ) -> Tensor | None:
        """`F.conv2d` of x (images, channels, height, width), which is padded already; None as in `product`."""


def _accepts(weight: Tensor) -> None:
    return None


def _is_exact(weight: Tensor) -> bool:
    return True


def _unchanged(weight: Tensor) -> Tensor:
    return weight


def _no_version() -> str:
    return ""


@dataclass(frozen=True)
class Backend:
    """One sparse form, and all that the package knows about it.

    Attributes:
        name: what `to_inference` takes.
        device: type of the device that it computes on, as in `torch.device(...).type`.
        dtypes: of weight, bias and activations, which must be the same.
        build: weight (rows, cols) -> its sparse form, or None where the kernels are missing.
        is_available: whether this machine can use it. Asked only for layers on its device.
        requirement: what a machine needs for that, as a noun for messages: "the C kernels".
        status: what this machine computes with, and why, for messages and the report.
        version: changes with the kernels, so that older measurements of their speed are not used.
        refusal: why a weight (rows, cols) cannot take the form, or None.
        restrict: weight (rows, cols) -> the same with zeros wherever the form demands them. Speed is measured with it.
        most_tokens: `product` is None for more.
        convolves: whether its matrices are `ConvolvingMatrix`.
        exact: whether it keeps every value of a weight. Where not, the user has to ask for it by name.
    """

    name: str
    device: str
    dtypes: tuple[torch.dtype, ...]
    build: Callable[[Tensor], Matrix | None]
    is_available: Callable[[], bool]
    requirement: str
    status: Callable[[], str]
    version: Callable[[], str] = _no_version
    refusal: Callable[[Tensor], str | None] = _accepts
    restrict: Callable[[Tensor], Tensor] = _unchanged
    most_tokens: float = math.inf
    convolves: bool = False
    exact: Callable[[Tensor], bool] = _is_exact

    def applies(self, tensor: Tensor) -> bool:
        """Whether weight, bias or activations are of the right device and dtype."""
        return tensor.dtype in self.dtypes and tensor.device.type == self.device


_registered: dict[str, Backend] = {}


def register_backend(backend: Backend) -> Backend:
    """Make a backend known to `to_inference` under its name, and return it.

    Raises:
        ValueError: the name is taken or reserved.
    """
    if backend.name in RESERVED or backend.name in _registered:
        taken = ", ".join(map(repr, (*RESERVED, *_registered)))
        raise ValueError(f"Backend.name = {backend.name!r} is taken: choose another name than {taken}")
    _registered[backend.name] = backend
    return backend


def registered_backends(device: str | None = None) -> list[Backend]:
    """All backends, or those of one type of device, in the order in which they were registered."""
    return [backend for backend in _registered.values() if device in (None, backend.device)]


def get_backend(name: str) -> Backend:
    """The backend of this name.

    Raises:
        ValueError: none has this name.
    """
    backend = _registered.get(name)
    if backend is None:
        known = ", ".join(map(repr, _registered))
        raise ValueError(f"backend {name!r} is unknown: registered are {known}; import the module that registers it")
    return backend
