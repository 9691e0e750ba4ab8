"""Draw the paper's Figures 1a and 1b (arXiv 2304.06941) from your own runs.

    python -m examples.figures runs/readme runs/other --output figures

A run is a directory in which an AutoSparse trainer saved a model: its `autosparse_trajectory.json` is read. A directory
with a `log.jsonl` (one log a line, as in examples/wmt14/results) does as well, but knows no single layers.

    figure_1b.png  sparsity and alpha over the epochs, one line a run
    figure_1a.png  theoretical inference FLOPs of each layer; from the runs whose trajectory has the layers' costs

Runs are named after their directories. Figure 1a draws runs of one architecture: the costs are the first run's, because
each trainer measures them on its own first batch, whose sentences may be longer.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from hf_autosparse.plots.figures import plot_inference_flops, plot_training
from hf_autosparse.reports.trajectory import Moment, Trajectory
from hf_autosparse.serialization.files import TRAJECTORY

LOG = "log.jsonl"


def main(argv: list[str] | None = None) -> list[Path]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directory of a run")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the figures go")
    parser.add_argument("--format", choices=("png", "svg", "pdf"), default="png")
    options = parser.parse_args(argv)
    runs = {label: load(run) for label, run in labelled(options.runs).items()}
    written = [plot_training(runs, options.output / f"figure_1b.{options.format}")]
    if with_costs := {label: run for label, run in runs.items() if run.layers and run.moments}:
        models = one_cost(with_costs)
        written.append(plot_inference_flops(models, options.output / f"figure_1a.{options.format}"))
    for label in runs.keys() - with_costs.keys():
        print(f"{label} is not in Figure 1a: what its layers cost was not recorded")
    for path in written:
        print(path)
    return written


def labelled(runs: list[Path]) -> dict[str, Path]:
    """The directories by their names, or by their whole paths where two have the same name."""
    names = [run.resolve().name for run in runs]
    return {name if names.count(name) == 1 else str(run): run for name, run in zip(names, runs, strict=True)}


def load(run: Path) -> Trajectory:
    """The trajectory of a run.

    Raises:
        FileNotFoundError: the directory has none, nor a log.
        ValueError: it is damaged.
    """
    if (run / TRAJECTORY).is_file() or not run.is_dir():
        return Trajectory.load(run)
    if not (run / LOG).is_file():
        raise FileNotFoundError(f"{run} has no {TRAJECTORY} and no {LOG}: give the directory of a saved model")
    entries = [json.loads(line) for line in (run / LOG).read_text().splitlines()]
    entries = [entry for entry in entries if "sparsity" in entry]
    if not entries:
        raise ValueError(f"{run / LOG} has no line with a sparsity: it is no log of an AutoSparse run")
    moments = [
        Moment(entry["step"], entry["epoch"], entry.get("alpha"), (entry["sparsity"],), (0.0,), threshold=None)
        for entry in entries
    ]
    return Trajectory(max_steps=entries[-1]["step"], sparse=["all sparse layers"], moments=moments)


def one_cost(runs: dict[str, Trajectory]) -> dict[str, Trajectory]:
    """The runs with the layer costs of the first of them that has the same layers."""
    costs = {tuple(run.layers): run.layers for run in reversed(runs.values())}
    return {label: replace(run, layers=costs[tuple(run.layers)]) for label, run in runs.items()}


if __name__ == "__main__":
    main()
