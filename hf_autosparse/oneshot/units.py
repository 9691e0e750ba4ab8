"""The units that are pruned one after the other: blocks of the model, and layers that lie outside all blocks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .targets import Target


@dataclass(frozen=True, eq=False)
class Unit:
    """A module that the model calls as a whole, and what is pruned inside it."""

    name: str
    module: nn.Module
    targets: tuple[Target, ...]


def find_units(model: nn.Module, targets: list[Target]) -> list[Unit]:
    """The entries of the model's outermost lists of modules (ModuleList, Sequential), and targets outside them.

    No list of model names is needed: an encoder's and a decoder's layers, a vision model's stages are such entries.
    They come in the order in which the model registered them.
    """
    units: list[Unit] = []

    def visit(name: str, module: nn.Module, listed: bool) -> None:
        inside = tuple(target for target in targets if _holds(name, target.name))
        if not inside:
            return
        callable_ = not isinstance(module, (nn.ModuleList, nn.ModuleDict))
        if callable_ and (listed or any(target.module is module for target in inside)):
            units.append(Unit(name, module, inside))
            return
        listed = isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Sequential))
        for child_name, child in module.named_children():
            visit(f"{name}.{child_name}" if name else child_name, child, listed)

    visit("", model, False)
    return units


def _holds(module_name: str, target_name: str) -> bool:
    return not module_name or target_name == module_name or target_name.startswith(module_name + ".")
