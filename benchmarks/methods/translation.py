"""Six methods on translation: Multi30k English-German, a small Transformer from scratch, one seed each.

    python -m benchmarks.methods.translation --data data/multi30k --output runs/translation

The recipe is examples/wmt14/configs/multi30k.yaml with half the width, two layers a side, two epochs and greedy
decoding, so that a run takes minutes; its own settings for AutoSparse are not used. Nothing is tuned to a method, as in
compare.py. Each run has a folder of its own and is not run again once it is finished. results.md and results.json are
written at the end. It needs the extra `translation`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM

from benchmarks.methods.task import ANNEALED, write
from examples.wmt14.recipe import load_recipe
from examples.wmt14.train import train
from hf_autosparse import flops
from hf_autosparse.reports.trajectory import Trajectory

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "wmt14"

METHODS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "autosparse": {"method": "autosparse"} | ANNEALED,
    "str": {"method": "str"},
    "gmp": {"method": "gmp"},
    "rigl": {"method": "rigl"},
    "topkast": {"method": "topkast"},
    "topkast + GA": {"method": "topkast"} | ANNEALED,
}
SMALLER = [
    "model.d_model=128",
    "model.encoder_ffn_dim=512",
    "model.decoder_ffn_dim=512",
    "model.encoder_layers=2",
    "model.decoder_layers=2",
    "model.dropout=0.1",
    "model.init_std=0.088",
    "training.num_train_epochs=2",
    "training.warmup_steps=200",
    "training.learning_rate=0.003",
    "training.eval_strategy=no",
    "training.save_strategy=no",
    "training.disable_tqdm=true",
    "evaluation.num_beams=1",
]


def run(name: str, data: Path, output: Path, sparsity: float, changes: list[str]) -> dict[str, Any]:
    """The figures of one run: BLEU on test_2016_flickr, sparsity, theoretical FLOPs, seconds a step."""
    folder = output / name.replace(" ", "")
    result_file = folder / "result.json"
    if not result_file.exists():
        files = load_recipe(EXAMPLE / "configs" / "multi30k.yaml")["data"]
        paths = [f"data.{k}={data / Path(v).name}" for k, v in files.items() if k.endswith(("_source", "_target"))]
        recipe = load_recipe(
            EXAMPLE / "configs" / "multi30k.yaml", [*SMALLER, *paths, *changes, f"output_dir={folder}"]
        )
        recipe["sparse"] = METHODS[name] and METHODS[name] | {"target_sparsity": sparsity}
        train(recipe)
    result = json.loads(result_file.read_text())
    figures = {"name": name, "seed": result["seed"], "bleu": result["bleu"]}
    figures["seconds_per_step"] = result["train_seconds"] / result["steps"]
    if METHODS[name] is not None:
        model = AutoModelForSeq2SeqLM.from_pretrained(folder)
        tokens = torch.full((1, 16), 10)
        report = flops(model, {"input_ids": tokens, "labels": tokens}, Trajectory.load(folder))
        figures |= {"sparsity": result["sparsity"], "test_flops": report.inference_fraction}
        figures["train_flops"] = report.training_fraction
    return figures | {"environment": result["environment"]}


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| run | BLEU | sparsity | Test F (theory) | Train F (theory) | measured s/step |",
        "|---|---|---|---|---|---|",
    ]
    for result in sorted(results, key=lambda r: -r["bleu"]):
        shares = [f"{result[key]:.3f}" if key in result else "-" for key in ("sparsity", "test_flops", "train_flops")]
        seconds = f"{result['seconds_per_step']:.3f}"
        lines.append(f"| {result['name']} | {result['bleu']:.2f} | {' | '.join(shares)} | {seconds} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of Multi30k's train.en, train.de, ...")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs and of the results")
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe of all runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.only:
        print(json.dumps(run(name, args.data, args.output, args.sparsity, args.set)), flush=True)
    done = [name for name in METHODS if (args.output / name.replace(" ", "") / "result.json").exists()]
    results = [run(name, args.data, args.output, args.sparsity, args.set) for name in done]
    write(args.output / "results.json", json.dumps(results, indent=1) + "\n")
    write(args.output / "results.md", table(results))
    print(table(results))


if __name__ == "__main__":
    main()
