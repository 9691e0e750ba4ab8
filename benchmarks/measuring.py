"""What the speed benchmarks share: interleaved timing, its summary, and results with the device they came from."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from hf_autosparse import kernels
from hf_autosparse.kernels.autotune import processor

RESULTS = Path(__file__).parent / "results"


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch and of the kernels (default: 1)")
    parser.add_argument("--quick", action="store_true", help="a part of it, under a minute; writes nothing")
    return parser.parse_args()


def interleaved(
    actions: dict[str, Callable[[], object]],
    rounds: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each action in every round, all run in turns; the order is reversed from round to round.

    `rounds` and `seconds` long at least, after one round that does not count. `clock`: `time.process_time` for one
    thread on a machine that has other work to do.
    """
    times: dict[str, list[float]] = {name: [] for name in actions}
    order = list(actions)
    for name in order:
        actions[name]()
    start = time.perf_counter()
    while len(times[order[0]]) < rounds or time.perf_counter() - start < seconds:
        for name in order:
            begin = clock()
            actions[name]()
            times[name].append(clock() - begin)
        order.reverse()
    return times


def summary(times: dict[str, list[float]], baseline: str) -> dict[str, dict[str, float]]:
    """Name -> median and spread of the seconds, and of the ratio to the baseline's time of the same round."""
    result = {}
    for name, seconds in times.items():
        ratios = [base / own for base, own in zip(times[baseline], seconds, strict=True)]
        low, high = _quartiles(ratios)
        result[name] = {
            "median_s": statistics.median(seconds),
            "min_s": min(seconds),
            "speedup": statistics.median(ratios),
            "speedup_quartiles": [low, high],
            "rounds": len(seconds),
        }
    return result


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


PACKAGES = ("torch", "transformers", "numpy", "scipy", "mkl", "onnx", "onnxruntime", "openvino", "pquant-ml")


def device() -> dict[str, object]:
    """What the figures depend on. A package's version is None where it is not installed."""
    library = kernels.library()
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "kernels": library.isa if library is not None else kernels.status(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "load_before": os.getloadavg()[0],
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def path_of(name: str, where: dict[str, object]) -> Path:
    """`where`: from `device`. A file for each instruction set of the kernels."""
    return RESULTS / f"{name}_{str(where['kernels']).partition(' ')[0]}_{where['threads']}_threads.json"


def earlier(name: str, where: dict[str, object], settings: dict[str, object]) -> list[dict[str, object]]:
    """The results of an earlier run that stopped half-way, to be gone on with; none where there is no file.

    Raises:
        SystemExit: they come from another machine, other versions or settings.
    """
    path = path_of(name, where)
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    past, passing = content["device"], ("date", "load_before")
    differing = [key for key in where if key not in passing and past.get(key) != where[key]]
    differing += [key for key in settings if content["settings"].get(key) != settings[key]]
    if differing:
        raise SystemExit(f"{path} was measured with other {', '.join(differing)}: remove it to start afresh")
    return content["results"]


def write(name: str, where: dict[str, object], settings: dict[str, object], results: list[dict[str, object]]) -> None:
    """benchmarks/results/NAME.json, in one step."""
    RESULTS.mkdir(exist_ok=True)
    path = path_of(name, where)
    draft = path.with_suffix(".tmp")
    lines = ",\n".join(json.dumps(entry) for entry in _rounded(results))  # a result a line
    head = json.dumps({"device": where, "settings": settings}, indent=1).removesuffix("\n}")
    draft.write_text(f'{head},\n "results": [\n{lines}\n]\n}}\n')
    os.replace(draft, path)
    print(f"wrote {path}")


def _rounded(value):
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value


def prune(weight: torch.Tensor, sparsity: float, uneven: bool = False) -> None:
    """Zero the smallest magnitudes, in place. `uneven`: rows of very different scale, so that some keep far more."""
    magnitude = weight.abs()
    if uneven:
        magnitude = magnitude * torch.randn(weight.shape[0], 1).mul(0.5).exp()
    weight[magnitude <= magnitude.flatten().kthvalue(max(1, round(sparsity * weight.numel()))).values] = 0
