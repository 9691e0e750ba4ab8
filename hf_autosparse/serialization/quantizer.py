"""`AutoModel*.from_pretrained` for packed checkpoints: transformers' quantizer interface, used for loading only.

Each packed weight is decoded before the model's own conversions (fused projections, stacked experts) see it, under the
name that it would have in a plain checkpoint. So whatever loads plain loads packed. The loaded model is a plain one: it
trains, casts and saves like any other, and `save_pretrained` writes plain weights.

`autoload` imports this module when a packed model is loaded. It is the only one that uses transformers' loading.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from .bitmask_format import PackedFormatError, check_version, decode
from .files import INDEX, MODEL_CONFIG, QUANT_METHOD, WEIGHTS
from .pack import check_index, open_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightTransform

# What is called or overridden here. If one of them went, transformers would load without calling ours.
NEEDED: dict[type, tuple[str, ...]] = {
    HfQuantizer: (
        "_process_model_before_weight_loading",
        "update_weight_conversions",
        "postprocess_model",
        "remove_quantization_config",
    ),
    WeightRenaming: ("rename_source_key",),
    WeightConverter: ("rename_source_key", "add_tensor", "materialize_tensors", "convert"),
}
for _class, _names in NEEDED.items():
    for _name in _names:
        if not hasattr(_class, _name):
            raise ImportError(f"{_class.__module__}.{_class.__name__} has no {_name}")


class PackedConfig(QuantizationConfigMixin):
    """`quantization_config` in the config.json of a packed checkpoint."""

    def __init__(self, /, format: str | None = None, format_version: int | None = None, **others: Any) -> None:
        others.pop("quant_method", None)
        if others:
            raise PackedFormatError(f"{MODEL_CONFIG}: quantization_config has unknown keys {sorted(others)}")
        check_version(MODEL_CONFIG, format, format_version)
        self.quant_method: Any = QUANT_METHOD  # transformers' own are members of an enum
        self.format = format
        self.format_version = format_version


@dataclass(frozen=True)
class _Part:
    """One of the three tensors of a packed weight. `index`: 0, 1, 2 for its bitmask, values and shape."""

    weight: str
    index: int


class _Parts(dict[str, _Part]):
    """Stored name -> part of a packed weight, for a whole checkpoint; plain tensors are not in it."""


@register_quantizer(QUANT_METHOD)
class PackedQuantizer(HfQuantizer):
    requires_calibration = True  # there is nothing to quantise on the fly: pack(model, directory) writes the format

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Iterable[str] | None = None, **kwargs: Any
    ) -> PreTrainedModel:
        """Check every file and every tensor in it before anything is loaded."""
        paths = [Path(path) for path in checkpoint_files or []]
        _check_inside(paths, model.config.name_or_path)
        stored: dict[str, set[str]] = {}
        self._names: list[str] = []  # of all weights, as a plain checkpoint would have them
        self._parts = _Parts()
        for file in open_files(paths):
            stored[file.path.name] = set()
            for name, entry in file.entries.items():
                file.check(name)
                keys = file.stored(name)
                stored[file.path.name].update(keys)
                if entry.packed:
                    self._parts.update((key, _Part(name, index)) for index, key in enumerate(keys))
                self._names.append(name)
        if not self._parts:
            raise PackedFormatError(f"{MODEL_CONFIG} says that the checkpoint is packed, but no tensor in its files is")
        index = paths[0].parent / INDEX
        if paths[0].name != WEIGHTS and index.is_file():
            check_index(index, stored)
        return model

    def update_weight_conversions(
        self, weight_conversions: list[WeightTransform], model: PreTrainedModel | None = None
    ) -> list[WeightTransform]:
        """The model's conversions, between ours."""

        class Converter(_UnpackingConverter):
            __slots__ = ()
            parts = self._parts

        renamings = [conversion for conversion in weight_conversions if isinstance(conversion, WeightRenaming)]
        renamed = _renamed(self._names, {part.weight for part in self._parts.values()}, renamings)
        for conversion in weight_conversions:
            if isinstance(conversion, WeightConverter):
                _set_class(conversion, Converter)
        return [_Naming(self._parts), *weight_conversions, _unpack(self._parts, renamed)]

    def postprocess_model(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        used: Any = model._weight_conversions
        for conversion in used:  # those that were used, for reverting them on saving
            if isinstance(conversion, _UnpackingConverter):
                _set_class(conversion, WeightConverter)
        remove: Any = self.remove_quantization_config  # has no types
        remove(model)
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def _set_class(conversion: object, cls: type) -> None:
    conversion.__class__ = cls


def _check_inside(paths: list[Path], root: str | None) -> None:
    """An index may name any path, and transformers opens it."""
    if root is None or not os.path.isdir(root):
        return  # a repository of the Hub
    for path in paths:
        if not path.is_relative_to(root) or ".." in path.relative_to(root).parts:
            raise PackedFormatError(f"{INDEX} names {path}, expected a .safetensors file inside {root}")


def _renamed(names: Iterable[str], packed: set[str], renamings: list[WeightRenaming]) -> frozenset[str]:
    """Names of the packed weights as the model's renamings leave them.

    The renamings are copied: some keep what they have seen. They see the names sorted, as in loading.
    """
    renamings = copy.deepcopy(renamings)
    result = set()
    for name in sorted(names):
        new = name
        for renaming in renamings:
            new, _ = renaming.rename_source_key(new)
        if name in packed:
            result.add(new)
    return frozenset(result)


_PATTERN = "packed weight"  # identifies our transforms; it is never matched against a name


class _Naming(WeightRenaming):
    """Comes before all other renamings: the three tensors of a packed weight take the name of the weight."""

    __slots__ = ("parts",)

    def __init__(self, parts: _Parts) -> None:
        super().__init__(_PATTERN, _PATTERN)
        self.parts = parts

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        part = self.parts.get(source_key)
        return (source_key, None) if part is None else (part.weight, _PATTERN)


class _UnpackingConverter(WeightConverter):
    """A converter of the model whose packed sources are decoded first. Has no state of its own, so that a converter can
    take it on as its class; `parts` is set in a subclass for each load."""

    __slots__ = ()
    parts: ClassVar[_Parts]

    def add_tensor(self, target_key: str, source_key: str, source_pattern: str, future: Any) -> None:
        future.source_key = source_key  # a Future or a function
        super().add_tensor(target_key, source_key, source_pattern, future)

    def materialize_tensors(self) -> dict[str, list[Tensor]]:
        keys = {pattern: [f.source_key for f in futures] for pattern, futures in self._collected().items()}
        tensors = super().materialize_tensors()
        return {pattern: list(_whole(keys[pattern], tensors[pattern], self.parts)) for pattern in keys}

    def _collected(self) -> dict[str, list[Any]]:
        return dict(self.collected_tensors)


def _whole(keys: list[str], tensors: list[Tensor], parts: _Parts) -> Iterator[Tensor]:
    """Plain tensors as they are; packed weights decoded, each once its last part has come."""
    incomplete: dict[str, dict[int, Tensor]] = {}
    for key, tensor in zip(keys, tensors, strict=True):
        part = parts.get(key)
        if part is None:
            yield tensor
            continue
        found = incomplete.setdefault(part.weight, {})
        found[part.index] = tensor
        if len(found) == 3:
            yield decode(found[0], found[1], tuple(found[2].tolist()), f"tensor {part.weight}")
            del incomplete[part.weight]


def _unpack(parts: _Parts, renamed: frozenset[str]) -> WeightConverter:
    """Comes after the model's converters: takes the packed weights that none of them takes."""

    class Unpack(_UnpackingConverter):
        __slots__ = ()

        def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
            return source_key, (_PATTERN if source_key in renamed else None)

        @torch.no_grad()
        def convert(self, layer_name: str, model: Any = None, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
            (keys,) = self.layer_targets.values()
            tensors = [tensor for found in self.materialize_tensors().values() for tensor in found]
            target = model.get_parameter_or_buffer(layer_name)
            if len(tensors) > 1:
                raise PackedFormatError(f"tensors {', '.join(sorted(keys))} all mean {layer_name}, expected one weight")
            if tensors[0].shape != target.shape:
                raise PackedFormatError(
                    f"tensor {layer_name}: shape {tuple(tensors[0].shape)}, but the model that {MODEL_CONFIG} describes"
                    f" has {tuple(target.shape)}. To use ignore_mismatched_sizes, unpack the checkpoint: hf-autosparse"
                    " unpack"
                )
            return {layer_name: tensors[0]}

    Unpack.parts = parts
    return Unpack(_PATTERN, _PATTERN, [Chunk(0)], force_cpu=True)  # some operation has to be given
