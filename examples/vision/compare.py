"""Run recipes with several seeds, one process a core, and put the figures in one table.

    python -m examples.vision.compare --output runs/compare
    python -m examples.vision.compare --output runs/compare --seeds 1 --only fashion_resnet

A run that is finished is not run again: started anew after a kill, the comparison goes on with what is missing. Each
run has one thread and a folder of its own, OUTPUT/RECIPE/seed-N, with its model, figures and log. OUTPUT/results.json
holds all figures and OUTPUT/results.md the table, both written anew after each run.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).resolve().parent / "configs" / "small"
# Key of result.json -> heading and format. Mean and deviation over seeds; figures that a run lacks are left out.
COLUMNS = {
    "top1": ("top-1, %", lambda value: f"{100 * value:.2f}"),
    "top5": ("top-5, %", lambda value: f"{100 * value:.2f}"),
    "sparsity": ("sparsity, %", lambda value: f"{100 * value:.2f}"),
    "test_flops": ("Test F", lambda value: f"{value:.3f}"),
    "train_flops": ("Train F", lambda value: f"{value:.3f}"),
    "seconds_per_step": ("s/step", lambda value: f"{value:.3f}"),
}


def main(argv: list[str] | None = None) -> int:
    """Returns the number of runs that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--recipes", type=Path, default=RECIPES, help="folder of recipes (default: configs/small)")
    parser.add_argument("--only", default="", metavar="PREFIX", help="recipes whose name begins so")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of all recipes")
    options = parser.parse_args(argv)
    recipes = sorted(path for path in options.recipes.glob("*.yaml") if path.name.startswith(options.only))
    if not recipes:
        raise SystemExit(f"no recipe {options.recipes}/{options.only}*.yaml")

    wanted = [(path, seed, options.output / path.stem / f"seed-{seed}") for seed in options.seeds for path in recipes]
    open_runs = [run for run in wanted if not (run[2] / "result.json").exists()]
    print(f"{len(wanted)} runs, {len(wanted) - len(open_runs)} finished; {options.processes} at a time")
    failed = 0
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(options.processes, context, initializer=one_thread) as pool:
        futures = {pool.submit(one_run, *run, options.set): run for run in open_runs}
        for future in as_completed(futures):
            path, seed, folder = futures[future]
            error = future.result()
            failed += error is not None
            print(f"{path.stem}, seed {seed}: {error or 'done'}", flush=True)
            write_results(options.output, wanted)
    write_results(options.output, wanted)
    print((options.output / "results.md").read_text())
    return failed


def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def one_run(path: Path, seed: int, folder: Path, overrides: list[str]) -> str | None:
    """Train one recipe, what it prints in `folder`/log.txt. Returns what went wrong, which also stands in error.txt."""
    import transformers

    from examples.vision.image_recipe import load_recipe
    from examples.vision.train import train

    transformers.logging.set_verbosity_error()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.txt").unlink(missing_ok=True)
    own = [f"seed={seed}", f"output_dir={folder}", "training.disable_tqdm=true"]
    with (folder / "log.txt").open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            train(load_recipe(path, [*overrides, *own]))
        except (ArithmeticError, OSError, RuntimeError, ValueError) as error:  # the other runs go on
            traceback.print_exc()
            message = f"{type(error).__name__}: {error}"
            (folder / "error.txt").write_text(message + "\n")
            return message
    return None


def write_results(output: Path, wanted: list[tuple[Path, int, Path]]) -> None:
    """results.json and results.md, each replaced as a whole."""
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for path, seed, folder in wanted:
        runs.setdefault(path.stem, {})
        if (folder / "result.json").exists():
            runs[path.stem][seed] = json.loads((folder / "result.json").read_text())
        elif (folder / "error.txt").exists():
            runs[path.stem][seed] = {"error": (folder / "error.txt").read_text().strip()}
    output.mkdir(parents=True, exist_ok=True)
    for name, text in {"results.json": json.dumps(runs, indent=1) + "\n", "results.md": table(runs)}.items():
        draft = output / f".{name}.draft"
        draft.write_text(text)
        os.replace(draft, output / name)


def table(runs: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Markdown, a row a recipe: mean ± standard deviation over its seeds (n - 1; none for a single seed)."""
    results = {name: [r for r in seeds.values() if "error" not in r] for name, seeds in runs.items()}
    columns = {key: c for key, c in COLUMNS.items() if any(key in r for rows in results.values() for r in rows)}
    lines = [
        "| recipe | seeds | " + " | ".join(heading for heading, _ in columns.values()) + " |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for name, seeds in runs.items():
        failed = sum("error" in result for result in seeds.values())
        count = f"{len(results[name])}" + (f" ({failed} failed)" if failed else "")
        cells = [_cell([r[key] for r in results[name] if key in r], show) for key, (_, show) in columns.items()]
        lines.append(f"| {name} | {count} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float], show) -> str:
    if not values:
        return "-"
    mean = show(statistics.mean(values))
    return mean if len(values) == 1 else f"{mean} ± {show(statistics.stdev(values))}"


if __name__ == "__main__":
    sys.exit(min(main(), 1))
