"""Is something faster sparse than dense on this machine? The timing, the decision, and the file that keeps the results.

Nothing here knows a layer: `inference/measure.py` and `layers/crossover.py` say what is timed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
import time
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ..utils.io import VERSION_KEY, read_json_object, write_versioned_json
from . import environment

logger = logging.getLogger(__name__)

SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
MARGIN = 1.05  # speed-up from which on the sparse layer is taken: noise must not make a model slower
MOST_WORK = {"cpu": 3e9, "cuda": 1e12}  # multiply-adds of one dense call; beyond, the result for fewer tokens stands
_FORMAT_VERSION = 2
_OLD_FORMATS = (1,)  # without a spread: it is unknown which of their measurements were disturbed
_AGREEMENT = 0.03  # two timings of the same thing that differ by less agree
_MOST_TIMINGS = 6  # of one comparison, however little they agree
_WIDE = 0.10  # spread from which on a measurement is made again the next time
_MOST_ATTEMPTS = 3  # at one measurement, over all processes: on some machines nothing ever agrees

Action = Callable[[], object]
Speedups = dict[int, float]
Ranges = tuple[tuple[int, float], ...]
EVERY_NUMBER: Ranges = ((1, math.inf),)


@dataclass(frozen=True)
class Measurement:
    """What was measured of one layer.

    Attributes:
        speedups: number of tokens -> dense time / sparse time.
        spread: by how much, relatively, the best times of the least certain of them differed between timings.
        attempts: how often it was measured, until the spread was small or the attempts were used up.
    """

    speedups: Speedups
    spread: float
    attempts: int = 1

    @classmethod
    def of(cls, comparisons: dict[int, tuple[float, float]]) -> Measurement:
        """The measurement made of one `compare` for each number of tokens."""
        speedups = {tokens: round(speedup, 3) for tokens, (speedup, _) in comparisons.items()}
        return cls(speedups, round(max(spread for _, spread in comparisons.values()), 3))


def best_times(actions: Sequence[Action], rounds: int, seconds: float) -> list[float]:
    """The shortest time of each action in seconds.

    They are run in turns, at least `rounds` times and for at least `seconds` altogether.
    """
    best = [math.inf] * len(actions)
    start, done = time.perf_counter(), 0
    while done < rounds or time.perf_counter() - start < seconds:
        for i, action in enumerate(actions):
            begin = time.perf_counter()
            action()
            best[i] = min(best[i], time.perf_counter() - begin)
        done += 1
    return best


def compare(dense: Action, sparse: Action, rounds: int, seconds: float) -> tuple[float, float]:
    """(dense time / sparse time, spread), from the best time of each.

    Other load on the machine only ever adds time, so a best time counts once a second timing has confirmed it to 3 %.
    At most six timings are made. The spread is what is left between the two best, relatively: 0.1 is 10 %.

    Args:
        rounds, seconds: of each timing, as in `best_times`.
    """
    found: tuple[list[float], list[float]] = ([], [])
    spread = math.inf
    while len(found[0]) < _MOST_TIMINGS and spread > _AGREEMENT:
        for times, best in zip(found, best_times((dense, sparse), rounds, seconds), strict=True):
            insort(times, best)
        if len(found[0]) > 1:
            spread = max(times[1] / times[0] - 1 for times in found)
    return found[0][0] / found[1][0], spread


def ranges(speedups: Speedups) -> Ranges:
    """The numbers of tokens to go sparse for: those measured faster, and those between two such neighbours.

    Beyond the largest that was measured, the ratio no longer changes.
    """
    points = sorted(speedups)
    found: list[tuple[int, float]] = []
    for i, point in enumerate(points):
        if speedups[point] < MARGIN:
            continue
        end: float
        if i == len(points) - 1:
            end = math.inf
        else:
            end = points[i + 1] if speedups[points[i + 1]] >= MARGIN else point
        if found and found[-1][1] == point:
            found[-1] = (found[-1][0], end)
        else:
            found.append((point, end))
    return tuple(found)


def measured_sparsity(sparsity: float) -> float:
    """The largest of `SPARSITIES` up to this one, which is at least the first: what is measured in its place."""
    return max(step for step in SPARSITIES if step <= sparsity + 0.005)


class Store:
    """The measurements of one device with one build of the kernels, in a file of the user's cache.

    Args:
        device: where the tensors are.
        kernels: changes with the kernels, so that others' measurements are not used: `Backend.version()`.
        remeasure: forget what the file says.
    """

    def __init__(self, device: torch.device | str, kernels: str, remeasure: bool = False):
        self.machine = machine(torch.device(device)) | {"kernels": kernels}
        digest = hashlib.sha256(json.dumps(self.machine, sort_keys=True).encode()).hexdigest()[:16]
        self.path = environment.cache_directory() / f"crossover-{digest}.json"
        self._known = {} if remeasure else self._read()
        self._new: dict[str, Measurement] = {}
        self._saved = True

    def speedups(self, key: str, measure: Callable[[], Measurement]) -> Speedups:
        """What is known under a key, else what `measure` finds.

        A measurement that was disturbed is made again, once in each process and three times altogether; the one with
        the smallest spread counts.
        """
        known = self._known.get(key)
        settled = known is not None and (known.spread < _WIDE or known.attempts >= _MOST_ATTEMPTS)
        if known is None or not (settled or key in self._new):
            found = measure()
            if known is not None:
                best = min(found, known, key=lambda measurement: measurement.spread)
                found = replace(best, attempts=known.attempts + 1)
            self._known[key] = self._new[key] = found
            self._saved = False
        return self._known[key].speedups

    def save(self) -> None:
        """Add the new measurements to the file. A cache that cannot be written is no reason to fail, but is logged."""
        if self._saved:
            return
        entries = {key: asdict(entry) for key, entry in sorted((self._read() | self._new).items())}
        try:
            write_versioned_json(
                self.path, _FORMAT_VERSION, {"machine": self.machine, "measurements": entries}, indent=1
            )
        except OSError as error:
            logger.warning("the measurements cannot be kept for the next time: %s", error)
        else:
            self._saved = True

    def _read(self) -> dict[str, Measurement]:
        try:
            content = read_json_object(self.path)
            version = content.get(VERSION_KEY)
            if version in _OLD_FORMATS:
                return {}
            if version != _FORMAT_VERSION:
                raise ValueError(f"{VERSION_KEY} {version!r}, expected {_FORMAT_VERSION}")
            return {key: _entry(**entry) for key, entry in content["measurements"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s is damaged and will be measured again: %s: %s", self.path, type(error).__name__, error)
            return {}


def _entry(speedups: dict[str, float], spread: float, attempts: int) -> Measurement:
    """A measurement as JSON holds it."""
    return Measurement({int(tokens): float(ratio) for tokens, ratio in speedups.items()}, float(spread), int(attempts))


def machine(device: torch.device) -> dict[str, object]:
    """What measurements on a device depend on, beside the kernels."""
    facts: dict[str, object] = {"torch": torch.__version__}
    if device.type == "cuda":
        return facts | {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    if device.type == "cpu":
        return facts | {"processor": processor(), "threads": torch.get_num_threads()}
    return facts | {"device": device.type}


def processor() -> str:
    """The name of this machine's processor."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith(("model name", "CPU part")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
