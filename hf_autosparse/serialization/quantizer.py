"""`AutoModel*.from_pretrained` for packed checkpoints: transformers' quantizer interface, used for loading only.

Each packed weight is decoded before the model's own conversions (fused projections, stacked experts) see it, under the
name that it would have in a plain checkpoint. So whatever loads plain loads packed. The loaded model is a plain one: it
trains, casts and saves like any other, and `save_pretrained` writes plain weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from .bitmask_format import BITMASK, SHAPE, VALUES, PackedFormatError, check_version, decode, split_name
from .files import INDEX, WEIGHTS
from .pack import QUANT_METHOD, check_index, open_files


@register_quantization_config(QUANT_METHOD)
class PackedConfig(QuantizationConfigMixin):
    """`quantization_config` in the config.json of a packed checkpoint."""

    def __init__(self, /, format: str | None = None, format_version: int | None = None, **others: Any):
        others.pop("quant_method", None)
        if others:
            raise PackedFormatError(f"config.json: quantization_config has unknown keys {sorted(others)}")
        check_version("config.json", format, format_version)
        self.quant_method = QUANT_METHOD
        self.format = format
        self.format_version = format_version


@register_quantizer(QUANT_METHOD)
class PackedQuantizer(HfQuantizer):
    requires_calibration = True  # there is nothing to quantise on the fly: pack(model, directory) writes the format

    def _process_model_before_weight_loading(self, model, checkpoint_files=None, **kwargs):
        """Check every file and every payload before anything is loaded."""
        paths = [Path(path) for path in checkpoint_files or []]
        _check_inside(paths, model.config.name_or_path)
        stored = {}
        packed = 0
        for file in open_files(paths):
            for name in file.packed_names:
                file.check(name)
            packed += len(file.packed_names)
            stored[file.path.name] = {key for name in file.entries for key in file.stored(name)}
        if not packed:
            raise PackedFormatError("config.json says that the checkpoint is packed, but no tensor in its files is")
        index = paths[0].parent / INDEX
        if paths[0].name != WEIGHTS and index.is_file():
            check_index(index, stored)
        return model

    def update_weight_conversions(self, weight_conversions, model):
        """The model's conversions, between ours."""
        naming = _Naming()
        for conversion in weight_conversions:
            if isinstance(conversion, WeightConverter):
                conversion.__class__ = _UnpackingConverter
        return [naming, *weight_conversions, _Unpack(naming)]

    def postprocess_model(self, model, **kwargs):
        for conversion in model._weight_conversions:  # those that were used, for reverting them on saving
            if isinstance(conversion, _UnpackingConverter):
                conversion.__class__ = WeightConverter
        self.remove_quantization_config(model)
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def _check_inside(paths: list[Path], root: str) -> None:
    """An index may name any path, and transformers opens it."""
    if not os.path.isdir(root):
        return  # a repository of the Hub
    for path in paths:
        if not path.is_relative_to(root) or ".." in path.relative_to(root).parts:
            raise PackedFormatError(f"{INDEX} names {path}, expected a .safetensors file inside {root}")


_PATTERN = "packed weight"  # identifies our transforms; it is never matched against a name


class _Naming(WeightRenaming):
    """Comes before all other renamings: the three tensors of a packed weight take the name of the weight."""

    def __init__(self) -> None:
        super().__init__(_PATTERN, _PATTERN)
        self.packed = False  # whether the name asked for last is that of a packed weight

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        name, suffix = split_name(source_key)
        self.packed = suffix is not None
        return name, (_PATTERN if self.packed else None)


class _UnpackingConverter(WeightConverter):
    """A converter of the model whose packed sources are decoded first. Has no state: converters take it on as class."""

    __slots__ = ()

    def add_tensor(self, target_key, source_key, source_pattern, future):
        future.source_key = source_key
        super().add_tensor(target_key, source_key, source_pattern, future)

    def materialize_tensors(self) -> dict[str, list[Tensor]]:
        keys = {pattern: [f.source_key for f in futures] for pattern, futures in self.collected_tensors.items()}
        tensors = super().materialize_tensors()
        return {pattern: list(_whole(keys[pattern], tensors[pattern])) for pattern in keys}


def _whole(keys: list[str], tensors: list[Tensor]) -> Iterator[Tensor]:
    """Plain tensors as they are; the three of a packed weight, which lie beside each other, decoded."""
    parts = {}
    for key, tensor in zip(keys, tensors, strict=True):
        name, suffix = split_name(key)
        if suffix is None:
            yield tensor
            continue
        parts[suffix] = tensor
        if len(parts) == 3:
            yield decode(parts[BITMASK], parts[VALUES], tuple(parts[SHAPE].tolist()), f"tensor {name}")
            parts = {}


class _Unpack(_UnpackingConverter):
    """Comes after the model's converters: takes the packed weights that none of them takes."""

    def __init__(self, naming: _Naming):
        super().__init__(_PATTERN, _PATTERN, [Chunk(0)], force_cpu=True)  # some operation has to be given
        self.naming = naming

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        return source_key, (_PATTERN if self.naming.packed else None)

    @torch.no_grad()
    def convert(self, layer_name, model=None, **kwargs) -> dict[str, Tensor]:
        (keys,) = self.layer_targets.values()
        (tensors,) = self.materialize_tensors().values()
        target = model.get_parameter_or_buffer(layer_name)
        if len(tensors) > 1:
            raise PackedFormatError(f"tensors {', '.join(sorted(keys))} all mean {layer_name}, expected one weight")
        if tensors[0].shape != target.shape:
            raise PackedFormatError(
                f"tensor {layer_name}: shape {tuple(tensors[0].shape)}, but the model that config.json describes has"
                f" {tuple(target.shape)}. To use ignore_mismatched_sizes, unpack the checkpoint: hf-autosparse unpack"
            )
        return {layer_name: tensors[0]}
