"""A saved model pruned with one unit's weights in memory at a time: read from its files, written as shards.

The weights outside all units (embeddings, norms) stay in memory. Each finished unit becomes a shard of the output at
once; a run that was killed finds them, and goes on with the same bits, because what is done again (the forward through
finished units) computes the same. transformers' own code names and converts the tensors, one unit at a time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ..serialization.files import INDEX, MODEL_CONFIG, is_private, is_weight_file
from ..serialization.pack import weight_files
from ..utils.io import read_json_object, read_versioned_json, replacing, write_text, write_versioned_json
from .calibration import Calibration
from .report import PrunedLayer, PruneReport, layer_from_dict
from .storage import Storage, describe, draft_beside
from .units import Unit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STATE = ".autosparse_pruning_state.json"
STATE_VERSION = 1
_OUTSIDE = ""  # stands for all that is in no unit


class Streamed(Storage):
    """See the module.

    Args:
        source: the directory of a saved transformers model, plain safetensors.
        output: directory to make.
        device: where units are computed.

    Raises:
        FileNotFoundError: the source has no weights or no configuration.
        ValueError: its class is not of transformers, or it is quantised or packed.
    """

    model: PreTrainedModel

    def __init__(self, source: Path, output: Path, device: torch.device, tokenizer: Any):
        self._source, self._output, self.device = source, output, device
        self._draft = draft_beside(output)
        self._files = weight_files(source)
        self.model = _empty_model(source)
        self.tokenizer = _tokenizer(source) if tokenizer is None else tokenizer
        self._units: dict[str, Unit] = {}
        self._keys: dict[str, dict[str, Path]] = {}  # unit -> tensor of the source -> its file
        self._rows: dict[str, list[PrunedLayer]] = {}
        self._state: dict[str, Any] = {}

    def begin(self, units: list[Unit], settings: Mapping[str, Any], calibration: Calibration | None) -> None:
        self._units = {unit.name: unit for unit in units}
        self._keys = _by_unit(self.model, self._files, list(self._units))
        self._resume(
            {
                "settings": dict(settings),
                "calibration": None if calibration is None else calibration.digest(),
                "source": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in self._files],
            }
        )
        self._load_into(_OUTSIDE, self._keys[_OUTSIDE])
        self.model.tie_weights()
        inside = {name for unit in units for name in _own_names(self.model, unit)}
        state = self.model.state_dict(keep_vars=True)
        missing = [name for name, tensor in state.items() if tensor.is_meta and name not in inside]
        computed = [name for name in missing if name in (self.model._keys_to_ignore_on_save or ())]
        if len(missing) > len(computed):
            names = [name for name in missing if name not in computed]
            raise self._lacking(names, type(self.model).__name__)
        for name in computed:  # never saved, such as sinusoidal positions
            initialise: Any = self.model._init_weights
            initialise(self.model.get_submodule(name.rpartition(".")[0]).to_empty(device=self.device, recurse=False))
        for name, buffer in self.model.named_buffers():
            owner, _, last = name.rpartition(".")
            if not buffer.is_meta:
                self.model.get_submodule(owner)._buffers[last] = buffer.to(self.device)

    def finished(self, unit: Unit) -> list[PrunedLayer] | None:
        return self._rows.get(unit.name)

    def load(self, unit: Unit) -> None:
        keys = self._keys[unit.name]
        if unit.name in self._rows:
            shard = self._draft / self._shard(unit.name)
            with safe_open(shard, framework="pt") as file:
                keys = dict.fromkeys(file.keys(), shard)
        self._load_into(unit.name, keys)
        missing = [name for name, tensor in unit.module.state_dict(keep_vars=True).items() if tensor.is_meta]
        if missing:
            raise self._lacking(missing, unit.name)

    def finish(self, unit: Unit, rows: list[PrunedLayer]) -> None:
        self._write_unit(unit.name)
        self._rows[unit.name] = rows
        self._write_state()

    def release(self, unit: Unit) -> None:
        for module in unit.module.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    def publish(self, report: PruneReport) -> None:
        self._write_unit(_OUTSIDE)
        weight_map: dict[str, str] = {}
        total = 0
        for name in [_OUTSIDE, *self._units]:
            shard = self._shard(name)
            with safe_open(self._draft / shard, framework="pt") as file:
                weight_map |= dict.fromkeys(file.keys(), shard)
            total += (self._draft / shard).stat().st_size
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_text(self._draft / INDEX, json.dumps(index, indent=2) + "\n")
        for path in self._source.iterdir():
            if path.is_file() and not is_private(path.name) and not is_weight_file(path.name):
                shutil.copyfile(path, self._draft / path.name)
        describe(self._draft, self._output.name, report)
        self._draft.rename(self._output)
        (self._output / STATE).unlink()

    def _lacking(self, names: list[str], owner: str) -> ValueError:
        return ValueError(f"{self._source} lacks the weights {', '.join(names[:5])} of {owner}")

    # ---- Between runs ----

    def _resume(self, begun: dict[str, Any]) -> None:
        begun = json.loads(json.dumps(begun))  # as it is read back
        path = self._draft / STATE
        if path.is_file():
            self._state = read_versioned_json(path, STATE_VERSION)
            other = [name for name in begun if self._state["begun"][name] != begun[name]]
            if other:
                raise ValueError(
                    f"{self._draft} holds a run of other {' and '.join(other)}, which was not finished: go on with the"
                    " same, or remove it to begin anew"
                )
            self._rows = {name: [layer_from_dict(row) for row in rows] for name, rows in self._state["units"].items()}
            return
        shutil.rmtree(self._draft, ignore_errors=True)  # a run that ended before its first unit
        self._state = {"begun": begun, "units": {}, "outliers": None}
        self._write_state()

    def recall_outliers(self) -> dict[str, float] | None:
        found: dict[str, float] | None = self._state["outliers"]
        return found

    def keep_outliers(self, outliers: dict[str, float]) -> None:
        self._state["outliers"] = outliers
        self._write_state()

    def _write_state(self) -> None:
        self._state["units"] = {name: [asdict(row) for row in rows] for name, rows in self._rows.items()}
        write_versioned_json(self._draft / STATE, STATE_VERSION, self._state)

    def _shard(self, unit: str) -> str:
        number = 1 + [_OUTSIDE, *self._units].index(unit)
        return f"model-{number:05d}-of-{1 + len(self._units):05d}.safetensors"

    # ---- Tensors ----

    def _load_into(self, unit: str, keys: Mapping[str, Path]) -> None:
        """Load these tensors of these files into the model."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        handles: dict[Path, Any] = {path: safe_open(path, framework="pt") for path in set(keys.values())}
        slices = {key: handles[path].get_slice(key) for key, path in keys.items()}
        config = LoadStateDictConfig(
            device_map={"": self.device},
            dtype=self.model.dtype,
            weight_mapping=cast(Any, get_model_conversion_mapping(self.model)),
        )
        with _no_bars():
            info, _ = convert_and_load_state_dict_in_model(self.model, slices, config)
        problems = [*info.conversion_errors.values(), *info.error_msgs]
        problems += [f"{name} has shape {tuple(a)}, expected {tuple(b)}" for name, a, b in sorted(info.mismatched_keys)]
        if problems:
            raise ValueError(f"{self._source} cannot be loaded: {problems[0]}")

    def _write_unit(self, unit: str) -> None:
        """Write the unit's tensors as its shard, named as in the source."""
        from transformers.core_model_loading import revert_weight_conversion

        state = self.model.state_dict()
        if unit == _OUTSIDE:
            inside = {name for other in self._units.values() for name in _own_names(self.model, other)}
            tied = self.model.all_tied_weights_keys
            left_out = {*inside, *tied, *(self.model._keys_to_ignore_on_save or ())}
            own = {name: tensor for name, tensor in state.items() if name not in left_out}
        else:
            own = {name: state[name] for name in _own_names(self.model, self._units[unit])}
        reverted = revert_weight_conversion(self.model, own)
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in reverted.items()}
        with replacing(self._draft / self._shard(unit)) as path:
            save_file(tensors, path, metadata={"format": "pt"})


def _own_names(model: nn.Module, unit: Unit) -> list[str]:
    """Names in the model's state of what the unit holds."""
    return [f"{unit.name}.{name}" if unit.name else name for name in unit.module.state_dict(keep_vars=True)]


def _by_unit(model: PreTrainedModel, files: list[Path], units: list[str]) -> dict[str, dict[str, Path]]:
    """Unit -> tensor of the files -> its file; "" for what is in no unit, or not in the model."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    state = model.state_dict()
    found: dict[str, dict[str, Path]] = {name: {} for name in [_OUTSIDE, *units]}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  # a file is no dictionary
                name, _ = rename_source_key(key, renamings, converters, model.base_model_prefix, state)
                if name not in state and key in state:
                    name = key
                unit = next((unit for unit in units if name.startswith(f"{unit}.")), _OUTSIDE)
                found[unit][key] = path
    return found


def _empty_model(source: Path) -> PreTrainedModel:
    """The model of a directory, its parameters without memory ("meta"), its buffers as they are computed."""
    import transformers
    from accelerate import init_empty_weights

    if not (source / MODEL_CONFIG).is_file():
        raise FileNotFoundError(f"{source} holds no {MODEL_CONFIG}: is it a saved transformers model?")
    values = read_json_object(source / MODEL_CONFIG)
    if "quantization_config" in values:
        raise ValueError(f"{source} is quantised or packed: unpack it first")
    names = values.get("architectures") or [None]
    cls = getattr(transformers, str(names[0]), None)
    if cls is None:
        raise ValueError(f"{source} is a {names[0]}, which transformers does not have: load it, and prune the model")
    config = cls.config_class.from_pretrained(source)
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = cls._from_config(config, dtype=config.dtype or torch.float32)
    model.tie_weights()
    return model


def _tokenizer(source: Path) -> Any:
    """The tokenizer of a directory; None if it holds none."""
    from transformers import AutoTokenizer

    if not any((source / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json")):
        return None
    return AutoTokenizer.from_pretrained(source)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Inside, transformers shows no progress: there would be a bar for every unit."""
    from transformers.utils import logging as module

    logging: Any = module  # its functions have no types
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
