"""`make demo-vision`: one small ResNet trained dense and sparse on scikit-learn's handwritten digits, side by side.

Needs no download. Prints one table: accuracy on images not seen in training, sparsity, speed; and sample predictions.
"""

import time
from pathlib import Path
from typing import Any

import transformers
from rich.console import Console
from rich.table import Table

from examples.vision.image_recipe import load_recipe
from examples.vision.image_sources import digits
from examples.vision.train import train

CONFIGS = Path(__file__).parent / "configs"
SAMPLES = 3
SHADES = " .:*#"


def main() -> None:
    transformers.logging.set_verbosity_error()
    console = Console()
    folder = Path("runs") / time.strftime("demo-vision-%Y%m%d-%H%M%S")
    results, outputs = {}, {}
    for name, config in (("dense", "digits_dense.yaml"), ("sparse", "digits.yaml")):
        console.rule(f"training {name}")
        results[name] = train(load_recipe(CONFIGS / config) | {"output_dir": str(folder / name)})
        outputs[name] = (folder / name / "predictions.txt").read_text().split()
    console.print(comparison(results))
    console.print(samples(outputs))
    print(f"models, logs and predictions: {folder}")


def comparison(results: dict[str, dict[str, Any]]) -> Table:
    table = Table(title="Handwritten digits, images not seen in training")
    table.add_column("")
    rows = {
        "top-1 accuracy": lambda r: f"{r['top1']:.2%}",
        "sparsity of the sparse layers": lambda r: f"{r['sparsity']:.1%}" if "sparsity" in r else "-",
        "parameters": lambda r: f"{r['parameters']:,}",
        "training, images/s (measured)": lambda r: f"{r['train_images_per_second']:,.0f}",
        "training, seconds (measured)": lambda r: f"{r['train_seconds']:.0f}",
    }
    for name in results:
        table.add_column(name, justify="right")
    for title, value in rows.items():
        table.add_row(title, *(value(result) for result in results.values()))
    return table


def samples(outputs: dict[str, list[str]]) -> Table:
    """Images on which a model errs or the two disagree, as far as there are any, then the first ones."""
    source = digits("validation")
    table = Table(title="Samples", show_lines=True)
    for header in ("image", "digit", *outputs):
        table.add_column(header, justify="center")
    truth = [source.classes[label] for label in source.labels]
    hard = [i for i in range(len(source)) if any(column[i] != truth[i] for column in outputs.values())]
    easy = [i for i in range(len(source)) if i not in hard]
    for i in (hard + easy)[:SAMPLES]:
        table.add_row(drawing(source.images[i]), truth[i], *(column[i] for column in outputs.values()))
    return table


def drawing(image) -> str:
    return "\n".join("".join(2 * SHADES[value * (len(SHADES) - 1) // 255] for value in row) for row in image.tolist())


if __name__ == "__main__":
    main()
