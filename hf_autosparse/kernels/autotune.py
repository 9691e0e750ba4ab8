"""For which numbers of tokens is a sparse form faster than the dense product? Measured once, and kept in a file."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from .. import kernels

logger = logging.getLogger(__name__)

SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # fractions of zeros that are measured
MARGIN = 1.05  # speed-up from which on the sparse form is taken: noise must not make a model slower
MOST_WORK = {"cpu": 3e9, "cuda": 1e12}  # multiply-adds of one dense call; beyond, the result for fewer tokens stands
_FORMAT_VERSION = 1

Ranges = tuple[tuple[int, float], ...]  # inclusive ranges of numbers of tokens
EVERY_NUMBER: Ranges = ((1, math.inf),)
Speedups = dict[int, float]  # number of tokens -> dense time / sparse time


def measured_sparsity(zeros: float) -> float:
    """The entry of `SPARSITIES` that stands for a fraction of zeros: the largest that it reaches, about.

    Args:
        zeros: at least `SPARSITIES[0]`.
    """
    return max(step for step in SPARSITIES if step <= zeros + 0.005)


def ranges(speedups: Speedups) -> Ranges:
    """The numbers of tokens to go sparse for: those measured faster, and those between two such neighbours.

    Beyond the largest that was measured, the ratio no longer changes.
    """
    points = sorted(speedups)
    found: list[tuple[int, float]] = []
    for i, point in enumerate(points):
        if speedups[point] < MARGIN:
            continue
        if i == len(points) - 1:
            end = math.inf
        else:
            end = points[i + 1] if speedups[points[i + 1]] >= MARGIN else point
        if found and found[-1][1] == point:
            found[-1] = (found[-1][0], end)
        else:
            found.append((point, end))
    return tuple(found)


class Measurements:
    """The measurements of this machine, compiler, torch release and number of threads, or of this GPU.

    Args:
        remeasure: forget what the file says.
        device: where the layers are.
    """

    def __init__(self, remeasure: bool = False, device: torch.device | str = "cpu"):
        self.machine = _machine(torch.device(device))
        digest = hashlib.sha256(json.dumps(self.machine, sort_keys=True).encode()).hexdigest()[:16]
        self.path: Path = kernels.cache_directory() / f"crossover-{digest}.json"
        self._known = {} if remeasure else self._read()
        self._new: dict[str, Speedups] = {}

    def get(self, key: str, measure: Callable[[], Speedups]) -> Speedups:
        """What is known under `key`; measured now if nothing is."""
        if key not in self._known:
            self._known[key] = self._new[key] = measure()
        return self._known[key]

    def save(self) -> None:
        """Add the new measurements to the file. A cache that cannot be written is no reason to fail, but is logged."""
        if not self._new:
            return
        entries = {key: {str(n): ratio for n, ratio in s.items()} for key, s in (self._read() | self._new).items()}
        content = {"format_version": _FORMAT_VERSION, "machine": self.machine, "speedups": entries}
        draft = self.path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
            os.replace(draft, self.path)
        except OSError as error:
            logger.warning("the measurements cannot be kept for the next time: %s", error)
        else:
            self._new = {}

    def _read(self) -> dict[str, Speedups]:
        try:
            content = json.loads(self.path.read_text())
            if content["format_version"] != _FORMAT_VERSION:
                raise ValueError(f"format_version {content['format_version']!r}, expected {_FORMAT_VERSION}")
            return {
                key: {int(n): float(ratio) for n, ratio in entry.items()} for key, entry in content["speedups"].items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s is damaged and will be measured again: %s: %s", self.path, type(error).__name__, error)
            return {}


def best_times(actions: Sequence[Callable[[], object]], rounds: int, seconds: float) -> list[float]:
    """The shortest time of each action in seconds, all run in turns, at least `rounds` times and `seconds` long."""
    best = [math.inf] * len(actions)
    start, done = time.perf_counter(), 0
    while done < rounds or time.perf_counter() - start < seconds:
        for i, action in enumerate(actions):
            begin = time.perf_counter()
            action()
            best[i] = min(best[i], time.perf_counter() - begin)
        done += 1
    return best


def _machine(device: torch.device) -> dict[str, object]:
    """What the measurements depend on."""
    if device.type == "cuda":
        return {
            "gpu": torch.cuda.get_device_name(device),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "kernels": kernels.gpu.status(),
        }
    library = kernels.library()
    assert library is not None, "without the C kernels nothing can be measured on the CPU"
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "library": library.path.stem,
        "isa": library.isa,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith(("model name", "CPU part")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
