"""Every method on one small image task, under one harness: accuracy, sparsity, theoretical FLOPs, measured seconds.

    python -m benchmarks.methods.compare --data digits --output runs/methods
    python -m benchmarks.methods.compare --data data/fashion-mnist --output runs/methods --epochs 4 --jobs 2

A ResNet of 15 convolutions and 176 k parameters, SGD with a cosine schedule, three seeds. Nothing is tuned to a method:
all are asked for the same sparsity and keep their own defaults otherwise, but for a change of mask every 20th of the
run at the latest, and Gradient Annealing by step, as the runs have few epochs. Each run is a file of its own in the
output directory, written when it is done: run the command again to go on. results.md, results.json and accuracy.png
are written at the end, of what is there.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections import defaultdict
from typing import Any

from benchmarks.methods.task import ANNEALED, add_arguments, recipe_of, run_missing, steps_of, train, write
from hf_autosparse.plots.style import (
    COLOURS,
    INK,
    MUTED,
    PercentFormatter,
    headline,
    new_figure,
    save,
    style_axes,
)

BUDGETED: dict[str, dict[str, Any]] = {
    "gmp": {"method": "gmp"},
    "set": {"method": "set"},
    "rigl": {"method": "rigl"},
    "rigl (erk)": {"method": "rigl", "sparsity_distribution": "erk"},
    "itop": {"method": "itop"},
    "snfs": {"method": "snfs"},
    "mest (EM)": {"method": "mest"},
    "mest (EM&S)": {"method": "mest", "soft_memory_bound": True, "mutation_fraction": 0.5},
    "topkast 50 % backward": {"method": "topkast", "backward_sparsity": 0.5},
    "topkast": {"method": "topkast"},
    "topkast + powerprop": {"method": "topkast", "power": 2.0},
    "topkast + GA": {"method": "topkast"} | ANNEALED,
    "swat": {"method": "swat"},
    "optg": {"method": "optg"},
}
LEARNED: dict[str, dict[str, Any]] = {"autosparse": ANNEALED, "str": {}, "dst": {}, "ltp": {}, "scl": {}}
LEARNED["continuous"] = {}
N_OF_16 = {0.8: 3, 0.9: 2}  # the nearest: 81.25 % and 87.5 %


def settings_of_all(sparsities: list[float], steps: int) -> dict[str, dict[str, Any]]:
    """Name -> what `SparseConfig.from_dict` takes; empty for the dense run."""
    every = max(1, min(100, steps // 20))
    found: dict[str, dict[str, Any]] = {"dense": {}}
    for sparsity in sparsities:
        for name, settings in BUDGETED.items():
            changing = {} if settings["method"] in ("optg", "swat") else {"every": every}
            found[f"{name} at {sparsity}"] = changing | settings | {"target_sparsity": sparsity}
        for name, alpha in (("nm", {}), ("nm + GA", ANNEALED)):
            if sparsity in N_OF_16:
                n_of_16 = {"n": N_OF_16[sparsity], "m": 16}
                found[f"{name} {N_OF_16[sparsity]}:16"] = {"method": "nm"} | n_of_16 | alpha
        for name, settings in LEARNED.items():
            found[f"{name} at {sparsity}"] = {"method": name, "target_sparsity": sparsity} | settings
    return found


def grouped(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The runs of each name, the best mean accuracy first."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        groups[result["name"]].append(result)
    return dict(sorted(groups.items(), key=lambda item: -statistics.mean(r["accuracy"] for r in item[1])))


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: mean over seeds, and the deviation of the accuracy."""
    lines = [
        "| run | seeds | accuracy | deviation | sparsity | Test F (theory) | Train F (theory) | measured s/step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, group in grouped(results).items():

        def mean(key: str, digits: int, group=group) -> str:
            return f"{statistics.mean(r[key] for r in group):.{digits}f}" if key in group[0] else "-"

        deviation = f"{statistics.stdev(r['accuracy'] for r in group):.4f}" if len(group) > 1 else "-"
        figures = [mean("sparsity", 4), mean("test_flops", 3), mean("train_flops", 3), mean("seconds_per_step", 4)]
        lines.append(f"| {name} | {len(group)} | {mean('accuracy', 4)} | {deviation} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def plot(results: list[dict[str, Any]], path, recipe: str) -> None:
    """A row a method, a mark a sparsity: mean accuracy with its deviation, the dense model as a line."""
    rows: dict[str, dict[float, list[dict[str, Any]]]] = defaultdict(dict)
    dense: list[dict[str, Any]] = []
    for name, group in grouped(results).items():
        if name == "dense":
            dense = group
            continue
        method = re.sub(r" (at [\d.]+|\d+:16)$", "", name)
        rows[method][round(statistics.mean(r["sparsity"] for r in group), 1)] = group
    order = sorted(rows, key=lambda m: min(statistics.mean(r["accuracy"] for r in g) for g in rows[m].values()))
    sparsities = sorted({sparsity for marks in rows.values() for sparsity in marks})
    figure = new_figure(1.3 + 0.26 * len(order))
    axes = figure.add_subplot()
    style_axes(axes, grid="x")
    for sparsity, colour in zip(sparsities, COLOURS, strict=False):
        here = [(y, rows[method][sparsity]) for y, method in enumerate(order) if sparsity in rows[method]]
        means = [statistics.mean(r["accuracy"] for r in group) for _, group in here]
        errors = [statistics.stdev([r["accuracy"] for r in g]) if len(g) > 1 else 0.0 for _, g in here]
        shift = 0.12 if sparsity == sparsities[0] else -0.12
        axes.errorbar(
            means,
            [y + shift for y, _ in here],
            xerr=errors,
            fmt="o",
            markersize=4,
            color=colour,
            elinewidth=1,
            label=f"{sparsity:.0%} of the weights zero",
        )
    if dense:
        mean = statistics.mean(r["accuracy"] for r in dense)
        axes.axvline(mean, color=INK, linewidth=1, linestyle=":", label="dense")
    axes.set_yticks(range(len(order)), order)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("accuracy on the test images, mean and deviation over the seeds", color=MUTED, fontsize=8)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    headline(figure, "Methods compared", recipe)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add_arguments(parser)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.8, 0.9])
    args = parser.parse_args()
    recipe = recipe_of(parser, args)
    tasks = {
        f"{re.sub(r'[^a-z0-9.]+', '_', name.lower())}-{seed}": (name, settings, seed, recipe)
        for seed in range(args.seeds)  # every method has a first run before one has a second
        for name, settings in settings_of_all(args.sparsity, steps_of(recipe)).items()
    }
    results = run_missing(train, tasks, args)
    write(args.output / "results.json", json.dumps(results, indent=1) + "\n")
    write(args.output / "results.md", table(results))
    described = f"{recipe['data'].rstrip('/').split('/')[-1]}, {recipe['images']:,} images, {recipe['epochs']} epochs"
    plot(results, args.output / "accuracy.png", f"a small ResNet on {described}")
    print(table(results))


if __name__ == "__main__":
    main()
