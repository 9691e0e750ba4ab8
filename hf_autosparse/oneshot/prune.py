"""`prune`: a trained model made sparse in one pass, unit by unit, without training."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from ..methods.config import FirstLast
from ..serialization.locate import locate
from ..utils.progress import progress_bar
from ..utils.validation import check_choice, check_count, check_number, reject
from .allocation import ERK, OWL, Allocation, Uniform
from .base import OneShotMethod, Pattern
from .calibration import Calibration, read_calibration
from .inputs import Grams, collect
from .lockstep import Lockstep, runnable
from .magnitude import Magnitude
from .report import PrunedLayer, PruneReport
from .sparsegpt import SparseGPT
from .storage import InMemory, Storage
from .streamed import Streamed
from .targets import ExpertTarget, Target, find_targets
from .units import Unit, find_units
from .wanda import Wanda, wanda_score

METHODS: dict[str, type[OneShotMethod]] = {method.name: method for method in (Magnitude, Wanda, SparseGPT)}
ALLOCATIONS: dict[str, type[Allocation]] = {allocation.name: allocation for allocation in (Uniform, ERK, OWL)}


@dataclass(frozen=True)
class Settings:
    """How to prune, checked. The arguments of `prune` of the same names."""

    method: OneShotMethod
    sparsity: float
    pattern: Pattern | None
    allocation: Allocation
    target_modules: tuple[str, ...] | None
    dense_modules: tuple[str, ...]
    first_last: FirstLast
    unreached: str

    def to_dict(self, calibration: Calibration | None) -> dict[str, Any]:
        return {
            "method": {"name": self.method.name, **asdict(self.method), "paper": self.method.reference},
            "sparsity": self.sparsity,
            "pattern": None if self.pattern is None else str(self.pattern),
            "allocation": {"name": self.allocation.name, **asdict(self.allocation)},
            "target_modules": None if self.target_modules is None else list(self.target_modules),
            "dense_modules": list(self.dense_modules),
            "first_last": self.first_last,
            "unreached": self.unreached,
            "calibration": "none" if calibration is None else calibration.source,
        }


def prune(
    model_or_path: nn.Module | str | os.PathLike[str],
    *,
    sparsity: float | None = None,
    method: str | OneShotMethod = "sparsegpt",
    calibration: Any = None,
    pattern: str | None = None,
    allocation: str | Allocation = "uniform",
    target_modules: Sequence[str] | None = None,
    dense_modules: Sequence[str] = (),
    first_last: str = "modules",
    unreached: str = "dense",
    output: str | os.PathLike[str] | None = None,
    tokenizer: Any = None,
    samples: int = 128,
    max_length: int = 512,
    batch_size: int = 8,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> PruneReport:
    """Prune a trained model in one shot, and report each layer's error.

    The units of the model (its blocks, and layers outside them) are pruned in the order in which the model runs them.
    Each sees the outputs of those before it, already pruned; inside a unit all layers see the inputs that they have
    before it is pruned. A unit that runs several times in one forward is pruned at the first.

    Args:
        model_or_path: a model, pruned in place; or the directory of a saved transformers model or a repository of the
            Hub, which needs `output`. Of a saved model one unit's weights are in memory at a time, besides those
            outside all units and the calibration's hidden states. Finished units lie in a hidden directory beside
            `output`: a run that was killed goes on from there when it is started again with the same arguments.
        sparsity: fraction of zeros to make in the layers that are pruned, in [0, 1); None for that of the pattern, or
            0.5.
        method: "magnitude", "wanda", "sparsegpt", or an instance with other settings: `SparseGPT(percdamp=0.1)`.
        calibration: what the model is run on: a text file, or an iterable of texts, batches or rows; see
            `read_calibration`. "magnitude" needs none, and reports no errors without.
        pattern: N:M such as "2:4": at most N of every M consecutive weights along the input are kept.
        allocation: how the layers share the sparsity: "uniform", "erk", "owl" or an instance with other settings.
        target_modules, dense_modules, first_last: which layers, as for `sparsify`.
        unreached: what happens to a layer that no example reaches (an expert that no token is sent to): it stays
            "dense", or is pruned by "magnitude". The report names it.
        output: directory to make; it must not exist yet. It holds the plain model with exact zeros, the report as
            autosparse_pruning.json, and a model card that says how the model was pruned.
        tokenizer: for calibration texts; saved with the output.
        samples: examples of the calibration data to use, at most.
        max_length: tokens of a text, at most.
        batch_size: texts or rows in a batch, at most.
        device: where a saved model is computed; None for a GPU if there is one, else the CPU. A model in memory is
            computed where it is.
        progress: show a bar on a terminal if it takes longer than two seconds.

    Raises:
        FileExistsError: `output` exists.
        FileNotFoundError: no model there.
        ValueError: a setting is not allowed, a layer's inputs do not divide into groups of M, a pattern matches no
            layer, or the model is sparse already (call `finalize` first).
        TypeError: calibration data of another kind.
    """
    settings = _settings(
        sparsity, method, pattern, allocation, target_modules, dense_modules, first_last, unreached, calibration
    )
    for name, count in {"samples": samples, "max_length": max_length, "batch_size": batch_size}.items():
        check_count(name, count)
    out = None if output is None else Path(output)
    if out is not None and out.exists():
        raise FileExistsError(f"output = {str(out)!r} exists: remove it, or choose another directory")
    storage = _storage(model_or_path, tokenizer, out, device)
    model = storage.model
    data = None
    if calibration is not None:
        data = read_calibration(
            calibration, model, storage.tokenizer, samples=samples, max_length=max_length, batch_size=batch_size
        )
        data = data.to(storage.device) if storage.device is not None else data
    targets, dense = find_targets(model, settings.target_modules, settings.dense_modules, settings.first_last)
    _check_groups(targets, settings.pattern)
    units = find_units(model, targets)
    described = settings.to_dict(data)
    storage.begin(units, described, data)
    with evaluated(model), torch.no_grad():
        outliers = storage.recall_outliers() or {}
        if settings.allocation.needs_inputs and not outliers:
            outliers = _outliers(storage, units, settings, data, progress)
            storage.keep_outliers(outliers)
        blocks = {target.name: unit.name for unit in units for target in unit.targets}
        shapes = {target.name: target.shape for target in targets}
        sparsities = settings.allocation.spread(shapes, settings.sparsity, blocks, outliers)
        rows = _prune_units(storage, units, settings, sparsities, data, progress)
    report = PruneReport(described, [rows[target.name] for target in targets], dense)
    storage.publish(report)
    return report


def _settings(
    sparsity: float | None,
    method: str | OneShotMethod,
    pattern: str | None,
    allocation: str | Allocation,
    target_modules: Sequence[str] | None,
    dense_modules: Sequence[str],
    first_last: str,
    unreached: str,
    calibration: Any,
) -> Settings:
    if not isinstance(method, OneShotMethod):
        check_choice("method", method, METHODS)
        method = METHODS[method]()
    if not isinstance(allocation, Allocation):
        check_choice("allocation", allocation, ALLOCATIONS)
        allocation = ALLOCATIONS[allocation]()
    check_choice("first_last", first_last, get_args(FirstLast))
    check_choice("unreached", unreached, ("dense", "magnitude"))
    n_of_m = None if pattern is None else Pattern.parse(pattern)
    if sparsity is None:
        sparsity = 0.5 if n_of_m is None else n_of_m.sparsity
    check_number("sparsity", sparsity, 0, 1, high_open=True)
    if n_of_m is not None:
        if sparsity != n_of_m.sparsity:
            raise ValueError(
                f"sparsity = {sparsity} is not allowed with pattern '{n_of_m}', whose sparsity is {n_of_m.sparsity}:"
                " leave sparsity out"
            )
        if allocation.name != "uniform":
            raise ValueError(
                f"allocation = {allocation.name!r} is not allowed with pattern '{n_of_m}', which gives every layer the"
                " same sparsity: use 'uniform'"
            )
    if calibration is None:
        for kind, name, needs_inputs in (
            ("method", method.name, method.needs_inputs),
            ("allocation", allocation.name, allocation.needs_inputs),
        ):
            if needs_inputs:
                raise ValueError(f"{kind} = {name!r} needs inputs: give calibration, a text file or some batches")
    return Settings(
        method,
        float(sparsity),
        n_of_m,
        allocation,
        None if target_modules is None else tuple(target_modules),
        tuple(dense_modules),
        cast(FirstLast, first_last),
        unreached,
    )


def _storage(
    model_or_path: nn.Module | str | os.PathLike[str],
    tokenizer: Any,
    output: Path | None,
    device: str | torch.device | None,
) -> Storage:
    if isinstance(model_or_path, nn.Module):
        if device is not None:
            raise reject("device", device, "None for a model in memory: move the model")
        return InMemory(model_or_path, tokenizer, output)
    if output is None:
        raise reject("output", None, "a directory to make, as the model is a saved one")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Streamed(locate(model_or_path, everything=True), output, torch.device(device), tokenizer)


def _check_groups(targets: list[Target], pattern: Pattern | None) -> None:
    uneven = [t.name for t in targets if pattern is not None and t.consecutive % pattern.m]
    if pattern is not None and uneven:
        named = ", ".join(uneven[:5]) + (f" and {len(uneven) - 5} more" if len(uneven) > 5 else "")
        raise ValueError(
            f"pattern = '{pattern}' is not allowed for {named}: their inputs do not divide into groups of {pattern.m};"
            " list them in dense_modules"
        )


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode and keeps no cache, which would grow by every run of a block."""
    training = {module: module.training for module in model.modules()}
    configs: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "use_cache"):
            configs[id(config)] = config
    caching = {key: config.use_cache for key, config in configs.items()}
    model.eval()
    try:
        for config in configs.values():
            config.use_cache = False
        yield
    finally:
        for module, was in training.items():
            module.training = was
        for key, config in configs.items():
            config.use_cache = caching[key]


def _outliers(
    storage: Storage, units: list[Unit], settings: Settings, data: Calibration | None, progress: bool
) -> dict[str, float]:
    """Unit -> its fraction of outliers in the dense model. One that nothing reaches has the mean of the others."""
    allocation = settings.allocation
    assert isinstance(allocation, OWL) and data is not None
    found: dict[str, float] = {}
    with Lockstep(storage.model, units, data.batches) as run, _bar(units, "outliers", progress) as bar:
        while (unit := run.next_unit()) is not None:
            storage.load(unit)
            if unit.name not in found:
                with runnable(unit):
                    grams = collect(unit, run.calls(unit))
                if grams.by_name:
                    found[unit.name] = _outlier_fraction(unit, grams, allocation.outlier_ratio)
                bar.update()
            run.run(unit)
            storage.release(unit)
    if not found:
        raise ValueError("allocation = 'owl' needs inputs, but no calibration example reaches a layer")
    mean = sum(found.values()) / len(found)
    return {unit.name: found.get(unit.name, mean) for unit in units}


def _outlier_fraction(unit: Unit, grams: Grams, ratio: float) -> float:
    outliers = weights = 0
    for target in unit.targets:
        if target.name in grams.by_name:
            score = wanda_score(target.matrices().float(), grams.by_name[target.name])
            outliers += int((score > ratio * score.mean()).sum())
            weights += score.numel()
    return outliers / weights


def _prune_units(
    storage: Storage,
    units: list[Unit],
    settings: Settings,
    sparsities: dict[str, float],
    data: Calibration | None,
    progress: bool,
) -> dict[str, PrunedLayer]:
    rows: dict[str, PrunedLayer] = {}

    def finish(unit: Unit, grams: Grams) -> None:
        done = storage.finished(unit)
        if done is None:
            done = [_prune_target(target, unit, grams, settings, sparsities[target.name]) for target in unit.targets]
            storage.finish(unit, done)
        rows.update({row.name: row for row in done})
        bar.update()

    with _bar(units, "pruning", progress) as bar:
        if data is not None:
            seen: set[str] = set()
            with Lockstep(storage.model, units, data.batches) as run:
                while (unit := run.next_unit()) is not None:
                    storage.load(unit)
                    if unit.name not in seen:
                        grams = Grams()
                        if storage.finished(unit) is None:
                            with runnable(unit):
                                grams = collect(unit, run.calls(unit))
                        finish(unit, grams)
                        seen.add(unit.name)
                    run.run(unit)
                    storage.release(unit)
        for unit in units:
            if unit.targets[0].name not in rows:  # no example reaches it
                storage.load(unit)
                finish(unit, Grams())
                storage.release(unit)
    return rows


def _bar(units: list[Unit], label: str, progress: bool) -> Any:
    return progress_bar(len(units), label if progress else None, unit=" units")


def _prune_target(target: Target, unit: Unit, grams: Grams, settings: Settings, sparsity: float) -> PrunedLayer:
    gram = grams.by_name.get(target.name)
    method, note = settings.method, ""
    if gram is None and method.needs_inputs:
        if _unseen(target, unit, grams):
            method, note = Magnitude(), "its inputs cannot be seen from outside: pruned by magnitude"
        elif settings.unreached == "magnitude":
            method, note = Magnitude(), "no calibration example reaches it: pruned by magnitude"
        else:
            note = "no calibration example reaches it: left dense"
            return PrunedLayer(target.name, target.shape, _zeros(target.matrices()), None, None, note)
    weight = target.matrices().float().clone()  # `write` changes what `matrices` views
    try:
        pruned = method.prune(weight, gram, sparsity, settings.pattern)
    except ValueError as error:
        raise ValueError(f"{target.name}: {error}") from error
    target.write(pruned)
    final = target.matrices()
    lost = None if gram is None else _relative_error(weight, final.float(), gram)
    return PrunedLayer(target.name, target.shape, _zeros(final), method.name, lost, note)


def _unseen(target: Target, unit: Unit, grams: Grams) -> bool:
    """Whether the inputs of an expert's module cannot be seen at all, though the unit ran."""
    if not isinstance(target, ExpertTarget) or not grams.by_name:
        return False
    return not any(
        other.name in grams.by_name
        for other in unit.targets
        if isinstance(other, ExpertTarget) and other.module is target.module
    )


def _relative_error(weight: Tensor, pruned: Tensor, gram: Tensor) -> float:
    """`||WX - W'X|| / ||WX||` in the Frobenius norm, from the sum of `x x^T`; 0 where `WX` is 0."""
    change = weight - pruned
    lost = float(((change @ gram) * change).sum())
    whole = float(((weight @ gram) * weight).sum())
    return (max(lost, 0.0) / whole) ** 0.5 if whole > 0 else 0.0


def _zeros(matrices: Tensor) -> float:
    return float((matrices == 0).sum()) / matrices.numel()
