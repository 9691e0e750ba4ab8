"""`AutoModel*.from_pretrained` for packed checkpoints: transformers' quantizer interface, used for loading only.

The loaded model is a plain one: it trains, casts and saves like any other, and `save_pretrained` writes plain weights.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from .packed import QUANT_METHOD
from .packed_format import BITMASK, SHAPE, VALUES, PackedFile, PackedFormatError, check_version, decode


@register_quantization_config(QUANT_METHOD)
class PackedConfig(QuantizationConfigMixin):
    """`quantization_config` in the config.json of a packed checkpoint."""

    def __init__(self, format: str | None = None, format_version: int | None = None, **others: Any):
        others.pop("quant_method", None)
        if others:
            raise PackedFormatError(f"config.json: quantization_config has unknown keys {sorted(others)}")
        check_version("config.json", format, format_version)
        self.quant_method = QUANT_METHOD
        self.format = format
        self.format_version = format_version


class Unpack(ConversionOps):
    """The three tensors of a packed weight -> the weight. Everything was checked before loading began."""

    @torch.no_grad()
    def convert(self, input_dict, source_patterns, target_patterns, full_layer_name=None, model=None, **kwargs):
        bitmask, values, shape = (input_dict["weight" + suffix][0] for suffix in (BITMASK, VALUES, SHAPE))
        sizes = tuple(shape.tolist())
        return {"weight": decode(bitmask, values, sizes, full_layer_name)}


@register_quantizer(QUANT_METHOD)
class PackedQuantizer(HfQuantizer):
    requires_calibration = True  # there is nothing to quantise on the fly: pack(model, directory) writes the format

    def _process_model_before_weight_loading(self, model, checkpoint_files=None, **kwargs):
        names = [name for name, _ in model.named_parameters()]
        packed: list[str] = []
        seen: set[str] = set()
        for path in checkpoint_files or []:
            with PackedFile(path) as file:
                for name in file.entries:
                    if name in seen or name.endswith((BITMASK, VALUES, SHAPE)):
                        trouble = (
                            "is in another file as well" if name in seen else "lies in a file not marked as packed"
                        )
                        raise PackedFormatError(f"{file.path.name}, tensor {name}: {trouble}")
                seen |= file.entries.keys()
                for name in file.packed_names:
                    if not name.endswith(".weight") or ".experts." in name:
                        raise PackedFormatError(
                            f"{file.path.name}, tensor {name}: transformers cannot load this one packed; turn the"
                            " checkpoint into a plain one: hf-autosparse unpack"
                        )
                    shape = _shape_in(model, names, name)
                    if shape is not None and shape != file.entries[name].shape:
                        raise PackedFormatError(
                            f"{file.path.name}, tensor {name}: shape {file.entries[name].shape}, but the model that"
                            f" config.json describes has {shape}"
                        )
                    file.check(name)
                packed += file.packed_names
        if not packed:
            raise PackedFormatError("config.json says that the checkpoint is packed, but no tensor in its files is")
        return model

    def get_weight_conversions(self):
        return [WeightConverter(["weight" + suffix for suffix in (BITMASK, VALUES, SHAPE)], "weight", [Unpack()])]

    def postprocess_model(self, model, **kwargs):
        conversions = getattr(model, "_weight_conversions", None) or []
        model._weight_conversions = [c for c in conversions if not _unpacks(c)]  # or saving would try to revert it
        self.remove_quantization_config(model)
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def _unpacks(conversion) -> bool:
    return any(isinstance(operation, Unpack) for operation in getattr(conversion, "operations", []))


def _shape_in(model, names: list[str], packed: str) -> tuple[int, ...] | None:
    """Shape of the parameter that a checkpoint's name means: a prefix may be added or taken off (base classes)."""
    for name in names:
        if name == packed or name.endswith("." + packed) or packed.endswith("." + name):
            return tuple(model.get_parameter(name).shape)
    return None
