"""`make demo`: one small Transformer trained dense and sparse on the embedded English-German corpus, side by side.

Needs no download. Prints one table: BLEU on unseen sentences, sparsity, speed, and sample translations of both.
"""

import time
from pathlib import Path
from typing import Any

import transformers
from rich.console import Console
from rich.table import Table

from examples.wmt14.data import DataConfig, load_split
from examples.wmt14.recipe import load_recipe
from examples.wmt14.train import train

CONFIGS = Path(__file__).parent / "configs"
SAMPLES = 3


def main() -> None:
    transformers.logging.set_verbosity_error()
    console = Console()
    folder = Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    results, outputs = {}, {}
    for name, config in (("dense", "demo_dense.yaml"), ("sparse", "demo.yaml")):
        console.rule(f"training {name}")
        recipe = load_recipe(CONFIGS / config) | {"output_dir": str(folder / name)}
        results[name] = train(recipe)
        outputs[name] = (folder / name / "hypotheses.txt").read_text().split("\n")
    console.print(comparison(results))
    console.print(samples(*load_split(DataConfig(**recipe["data"]), "test").columns(), outputs))
    print(f"models, logs and translations: {folder}")
    print(f'try it: .venv/bin/python -m examples.wmt14.translate --model {folder}/sparse "The dog sees the man."')


def comparison(results: dict[str, dict[str, Any]]) -> Table:
    table = Table(title="English to German, sentences not seen in training")
    table.add_column("")
    rows = {
        "BLEU": lambda r: f"{r['bleu']:.2f}",
        "sparsity of the sparse layers": lambda r: f"{r['sparsity']:.1%}" if "sparsity" in r else "-",
        "parameters": lambda r: f"{r['parameters']:,}",
        "training, tokens/s (measured)": lambda r: f"{r['train_tokens_per_second']:,.0f}",
        "training, seconds (measured)": lambda r: f"{r['train_seconds']:.0f}",
    }
    for name in results:
        table.add_column(name, justify="right")
    for title, value in rows.items():
        table.add_row(title, *(value(result) for result in results.values()))
    return table


def samples(sources: list[str], references: list[str], outputs: dict[str, list[str]]) -> Table:
    """The longest of the first hundred sentences: short ones are too easy to tell models apart."""
    table = Table(title="Samples", show_lines=True)
    for header in ("English", "reference", *outputs):
        table.add_column(header, overflow="fold")
    longest = sorted(range(min(100, len(sources))), key=lambda i: -len(sources[i]))[:SAMPLES]
    for i in longest:
        table.add_row(sources[i], references[i], *(column[i] for column in outputs.values()))
    return table


if __name__ == "__main__":
    main()
