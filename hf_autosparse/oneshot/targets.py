"""What is pruned: each weight as a stack of matrices, with the inputs that these multiply."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.kinds import matrix_of
from ..layers.selection import _matching, select_layers
from ..methods.config import FirstLast
from ..methods.fixed_mask import FixedMaskConfig


@dataclass(frozen=True, eq=False)
class Target(ABC):
    """One weight that is pruned on its own. `name`: of its module, an expert's number behind it."""

    name: str
    module: nn.Module

    @property
    def parameter(self) -> nn.Parameter:
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.parameter.shape)

    @property
    @abstractmethod
    def consecutive(self) -> int:
        """Number of inputs that N:M divides into groups."""

    @abstractmethod
    def matrices(self) -> Tensor:
        """The weight as (groups, outputs, inputs), a view if its layout in memory allows one."""

    @abstractmethod
    def write(self, matrices: Tensor) -> None:
        """Set the weight, in place; `matrices` as from `matrices()`, of any dtype."""


@dataclass(frozen=True, eq=False)
class LayerTarget(Target):
    """A layer that is called with the inputs that its weight multiplies."""

    @abstractmethod
    def rows(self, input: Tensor) -> Tensor:
        """The input of one call as (groups, rows, inputs)."""


class LinearTarget(LayerTarget):
    """nn.Linear, or transformers' Conv1D."""

    @property
    def consecutive(self) -> int:
        return matrix_of(self.module).shape[1]

    def matrices(self) -> Tensor:
        return matrix_of(self.module).detach().unsqueeze(0)

    def write(self, matrices: Tensor) -> None:
        matrix_of(self.module).detach().copy_(matrices[0])

    def rows(self, input: Tensor) -> Tensor:
        return input.reshape(1, -1, input.shape[-1])


class Conv2dTarget(LayerTarget):
    """nn.Conv2d. An output's inputs are a window, in the order (height, width, channel): N:M is along the channels."""

    @property
    def _conv(self) -> nn.Conv2d:
        assert isinstance(self.module, nn.Conv2d)
        return self.module

    @property
    def consecutive(self) -> int:
        return self.parameter.shape[1]

    def matrices(self) -> Tensor:
        outputs, channels, height, width = self.parameter.shape
        groups = self._conv.groups
        weight = self.parameter.detach().reshape(groups, outputs // groups, channels, height, width)
        return weight.permute(0, 1, 3, 4, 2).flatten(2)

    def write(self, matrices: Tensor) -> None:
        outputs, channels, height, width = self.parameter.shape
        windows = matrices.reshape(outputs, height, width, channels)
        self.parameter.data.copy_(windows.permute(0, 3, 1, 2))

    def rows(self, input: Tensor) -> Tensor:
        conv = self._conv
        images = input if input.dim() == 4 else input.unsqueeze(0)
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        padded = F.pad(images, conv._reversed_padding_repeated_twice, mode)
        columns = F.unfold(padded, conv.kernel_size, dilation=conv.dilation, stride=conv.stride)
        channels, (height, width) = conv.in_channels // conv.groups, conv.kernel_size
        # image, group, channel, place in window, window
        split = columns.reshape(len(images), conv.groups, channels, height * width, -1)
        return split.permute(1, 0, 4, 3, 2).flatten(3).flatten(1, 2)


@dataclass(frozen=True, eq=False)
class ExpertTarget(Target):
    """One expert's slice of a parameter of (experts, outputs, inputs), or (experts, inputs, outputs) if transposed."""

    parameter_name: str
    expert: int

    @property
    def parameter(self) -> nn.Parameter:
        weight = getattr(self.module, self.parameter_name)
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def transposed(self) -> bool:
        return bool(getattr(self.module, "is_transposed", False))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.parameter.shape[1:])

    @property
    def consecutive(self) -> int:
        return self.shape[0 if self.transposed else 1]

    def matrices(self) -> Tensor:
        own = self.parameter.detach()[self.expert]
        return (own.t() if self.transposed else own).unsqueeze(0)

    def write(self, matrices: Tensor) -> None:
        own = matrices[0].t() if self.transposed else matrices[0]
        self.parameter.data[self.expert].copy_(own)


def find_targets(
    model: nn.Module, target_modules: Sequence[str] | None, dense_modules: Sequence[str], first_last: FirstLast
) -> tuple[list[Target], dict[str, str]]:
    """The weights to prune, in the order of the model's modules, and name -> why a module stays dense.

    Raises:
        ValueError: a pattern matches no layer, or no layer is left.
    """
    # Any method's configuration does: only what all of them share is read.
    config = FixedMaskConfig(target_modules=target_modules, dense_modules=dense_modules, first_last=first_last)
    selection = select_layers(model, config)
    targets: list[Target] = []
    for name, module in model.named_modules():
        if name in selection.sparse:
            targets.append(_layer_target(name, module))
        elif name in selection.dense and (stacked := _stacked_weights(module)):
            if _matching(name, config.dense_modules):
                continue
            if target_modules is not None and not _matching(name, target_modules):
                continue
            del selection.dense[name]
            targets += [
                ExpertTarget(f"{name}.{weight}.{expert}", module, weight, expert)
                for weight, count in stacked.items()
                for expert in range(count)
            ]
    return targets, selection.dense


def _layer_target(name: str, module: nn.Module) -> LayerTarget:
    return (Conv2dTarget if isinstance(module, nn.Conv2d) else LinearTarget)(name, module)


def _stacked_weights(module: nn.Module) -> dict[str, int]:
    """Parameter -> number of experts, of a module that says how many experts it has and holds one matrix of each."""
    counts = {value for name, value in vars(module).items() if name in ("num_experts", "num_local_experts")}
    return {
        name: weight.shape[0]
        for name, weight in module.named_parameters(recurse=False)
        if weight.dim() == 3 and weight.shape[0] in counts
    }
