"""How to hold a learned sparsity at a target: designs of the controller, side by side on the task of compare.py.

    python -m benchmarks.methods.target --data digits --output runs/target

- shift: the library's. The allowed range of sparsities narrows to the target; outside it, all thresholds are shifted
  by what takes the sparsity back to the nearer end (hf_autosparse/training/target.py).
- linear: the same with a range that narrows linearly.
- feedback: every four steps all thresholds s move by `gain (wanted - sparsity)`, where the wanted sparsity rises
  linearly from the first one to the target, until three quarters of the run. Gains 0.1 and 1.
- none: AutoSparse as it is, from 80 %, with several decays of the thresholds. It ends where it ends; between those ends
  its accuracy is interpolated at the target, which says what hitting the target costs.

The method is AutoSparse with Gradient Annealing by step. results.md, results.json and approach.png are written at the
end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
from typing import Any
from unittest import mock

import torch
from transformers import TrainerCallback

from benchmarks.methods.task import ANNEALED, add_arguments, recipe_of, run_missing, train, write
from hf_autosparse import sparse_layers, sparsity
from hf_autosparse.plots.style import (
    COLOURS,
    DASHES,
    INK,
    PercentFormatter,
    headline,
    new_figure,
    save,
    style_axes,
)
from hf_autosparse.training.target import INTERVAL, allowed_range

RAMP = 0.75
TARGETS = (0.8, 0.9)
GAINS = (0.1, 1.0)
DECAYS = (0.003, 0.006, 0.01, 0.02)


class Feedback(TrainerCallback):
    """An integrating controller: the error moves the thresholds."""

    def __init__(self, target: float, gain: float):
        self.target, self.gain = target, gain

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.start = sparsity(model)

    @torch.no_grad()
    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % INTERVAL == 0:
            risen = min(1.0, state.global_step / state.max_steps / RAMP)
            wanted = self.start + risen * (self.target - self.start)
            for layer in sparse_layers(model).values():
                layer.sparsifier.threshold += self.gain * (wanted - sparsity(model))


class Approach(TrainerCallback):
    """The sparsity after every ten steps."""

    def __init__(self):
        self.points: list[tuple[int, float]] = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % 10 == 0 or state.global_step == state.max_steps:
            self.points.append((state.global_step, sparsity(model)))


def linear_range(target: float, ramp: float, done: float) -> tuple[float, float]:
    share = min(1.0, done / ramp)
    return share * target, 1.0 - share * (1.0 - target)


def run(name: str, design: dict[str, Any], seed: int, recipe: dict[str, Any]) -> dict[str, Any]:
    approach = Approach()
    feedback = [Feedback(design["target"], design["gain"])] if "gain" in design else []
    with mock.patch("hf_autosparse.training.target.allowed_range", linear_range if "linear" in name else allowed_range):
        result = train(
            name, {"method": "autosparse"} | design["settings"] | ANNEALED, seed, recipe, [*feedback, approach]
        )
    return result | {"target": design.get("target"), "approach": approach.points}


def designs() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for target in TARGETS:
        shifted = {"target_sparsity": target, "target_ramp": RAMP}
        found[f"shift to {target}"] = found[f"linear to {target}"] = {"target": target, "settings": shifted}
        for gain in GAINS:
            found[f"feedback {gain:g} to {target}"] = {"target": target, "gain": gain, "settings": {}}
    for decay in DECAYS:
        free = {"threshold_init": {"sparsity": 0.8}, "threshold_weight_decay": decay}
        found[f"none, decay {decay}"] = {"settings": free}
    return found


def interpolated(results: list[dict[str, Any]], target: float) -> float | None:
    """Mean accuracy of the runs without a target, at this sparsity; None outside of where they ended."""
    ends = []
    for decay in DECAYS:
        group = [r for r in results if r["name"] == f"none, decay {decay}"]
        if group:
            ends.append((statistics.mean(r["sparsity"] for r in group), statistics.mean(r["accuracy"] for r in group)))
    ends.sort()
    for (left, low), (right, high) in itertools.pairwise(ends):
        if left <= target <= right:
            return low + (high - low) * (target - left) / (right - left)
    return None


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| design | seeds | sparsity | furthest off, points | accuracy, % | deviation | without a target there |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, design in designs().items():
        group = [r for r in results if r["name"] == name]
        if not group:
            continue
        target = design.get("target")
        off = "-" if target is None else f"{100 * max(abs(r['sparsity'] - target) for r in group):.2f}"
        free = None if target is None else interpolated(results, target)
        accuracies = [100 * r["accuracy"] for r in group]
        deviation = f"{statistics.stdev(accuracies):.2f}" if len(group) > 1 else "-"
        lines.append(
            f"| {name} | {len(group)} | {100 * statistics.mean(r['sparsity'] for r in group):.2f} % | {off} |"
            f" {statistics.mean(accuracies):.2f} | {deviation} | {'-' if free is None else f'{100 * free:.2f}'} |"
        )
    return "\n".join(lines) + "\n"


def plot(results: list[dict[str, Any]], path) -> None:
    """Sparsity over steps of the first seed, a panel a target."""
    figure = new_figure(3.4)
    panels = figure.subplots(1, len(TARGETS), sharey=True)
    for axes, target in zip(panels, TARGETS, strict=True):
        style_axes(axes, grid="y")
        feedback = [f"feedback {gain:g} to {target}" for gain in GAINS]
        named = [f"shift to {target}", f"linear to {target}", *feedback, f"none, decay {DECAYS[0]}"]
        for name, colour, dash in zip(named, COLOURS, DASHES, strict=False):
            found = [r for r in results if r["name"] == name and r["seed"] == 0]
            for result in found:
                steps, values = zip(*result["approach"], strict=True)
                axes.plot(steps, values, color=colour, linestyle=dash, linewidth=1.3, label=re.sub(" to .*", "", name))
        axes.axhline(target, color=INK, linewidth=0.7)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel(f"optimizer step; target {target:.0%}", fontsize=8)
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    headline(figure, "Approach to a target", "sparsity of all sparse layers, first seed")
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add_arguments(parser)
    args = parser.parse_args()
    recipe = recipe_of(parser, args)
    tasks = {
        f"{re.sub(r'[^a-z0-9.]+', '_', name)}-{seed}": (name, design, seed, recipe)
        for seed in range(args.seeds)
        for name, design in designs().items()
    }
    results = run_missing(run, tasks, args)
    write(args.output / "results.json", json.dumps(results) + "\n")
    write(args.output / "results.md", table(results))
    plot(results, args.output / "approach.png")
    print(table(results))


if __name__ == "__main__":
    main()
