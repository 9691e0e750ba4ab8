"""One optimizer step of a base-size translator: dense, and sparse with thresholds in plain torch or in C.

    python -m benchmarks.training_step --threads 1
    python -m benchmarks.training_step --threads 1 --compute

Forward, backward and fused AdamW; 96 sparse layers with 44 M weights; float32. At 60 % sparsity and alpha 0.5, with
dense products in all of them, to see what thresholding costs here and elsewhere: layers as STR's, masks of
torch.nn.utils.prune, and PQuantML's AutoSparse layer where it is installed (`pip install pquant-ml`). With `--compute`:
what sparse products save, everywhere and where "auto" takes them, at 80 and 90 % sparsity, with alpha 0 (the weight
gradient is computed where the weight is not 0) and 0.5 (everywhere). `--layers 2` takes 2 + 2 of the 6 + 6 layers and a
third of the vocabulary: the same shares in a third of the time.
"""

from __future__ import annotations

import argparse
import copy
import time
from unittest import mock

import torch

from benchmarks.decode import translator
from benchmarks.measuring import device, interleaved, summary, write
from benchmarks.training_rivals import rivals
from hf_autosparse import AutoSparseConfig, kernels, sparse_layers, sparsify

SENTENCES, TOKENS, VOCABULARY = 32, 32, 8_000


def stepper(model: torch.nn.Module, ids: torch.Tensor, plain_torch: bool = False):
    """A call that makes one optimizer step."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    library = None if plain_torch else kernels.library()

    def step():
        with mock.patch.object(kernels, "library", lambda: library):
            model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def thresholded(dense: torch.nn.Module, sparsity: float, alpha: float, compute: str = "dense") -> torch.nn.Module:
    config = AutoSparseConfig(
        threshold_init={"sparsity": sparsity}, alpha_init=alpha, alpha_schedule="fixed", compute=compute
    )
    return sparsify(copy.deepcopy(dense), config)


def thresholding(dense: torch.nn.Module, ids: torch.Tensor) -> dict:
    sparse = thresholded(dense, 0.6, 0.5)
    calls = {
        "dense": stepper(copy.deepcopy(dense), ids),
        "sparse, torch": stepper(copy.deepcopy(sparse), ids, plain_torch=True),
        "sparse, C": stepper(sparse, ids),
    }
    there, missing = rivals()
    print(missing or "no rival is missing")
    return calls | {name: stepper(treat(copy.deepcopy(dense), 0.6), ids) for name, treat in there.items()}


def computing(dense: torch.nn.Module, ids: torch.Tensor) -> dict:
    calls = {
        "dense": stepper(copy.deepcopy(dense), ids),
        "thresholds, dense products": stepper(thresholded(dense, 0.8, 0.5), ids),
    }
    for sparsity in (0.8, 0.9):
        for alpha in (0.0, 0.5):
            for compute in ("sparse", "auto"):
                name = f"compute={compute!r}, {sparsity:.0%} zeros, alpha {alpha:g}"
                calls[name] = stepper(thresholded(dense, sparsity, alpha, compute), ids)
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch and of the kernels (default: 1)")
    parser.add_argument("--compute", action="store_true", help="sparse products instead of thresholding")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of all contestants (default: 15)")
    parser.add_argument("--sentences", type=int, nargs="+", help="batch sizes (default: 32 and 8)")
    parser.add_argument("--layers", type=int, default=6, help="of the encoder and of the decoder (default: 6)")
    parser.add_argument("--cpu-time", action="store_true", help="measure the processor's time: for a busy machine")
    parser.add_argument("--quick", action="store_true", help="a part of it, under a minute; writes nothing")
    args = parser.parse_args()
    if args.cpu_time and args.threads > 1:
        parser.error("--cpu-time adds up the threads: use --threads 1")
    clock = time.process_time if args.cpu_time else time.perf_counter
    torch.set_num_threads(args.threads)
    where = device()
    print(where)
    vocabulary = VOCABULARY * args.layers // 6
    dense = translator(vocabulary, layers=args.layers)
    layers = sparse_layers(thresholded(dense, 0.6, 0.5)).values()
    print(f"{len(layers)} sparse layers, {sum(layer.weight.numel() for layer in layers):,} weights")
    rounds = 3 if args.quick else args.rounds
    sizes = args.sentences or ((SENTENCES // 4,) if args.quick else (SENTENCES, SENTENCES // 4))
    results = []
    for sentences in sizes:
        ids = torch.randint(2, vocabulary, (sentences, TOKENS), generator=torch.Generator().manual_seed(0))
        calls = computing(dense, ids) if args.compute else thresholding(dense, ids)
        figures = summary(interleaved(calls, rounds, 0, clock), "dense")
        print(f"\n{sentences} sentences of {TOKENS} tokens on each side")
        print("| step | seconds | time / dense | quartiles | dense / time |")
        print("|---|---|---|---|---|")
        for name, entry in figures.items():
            low, high = entry["speedup_quartiles"]
            print(
                f"| {name} | {entry['median_s']:.3f} | {1 / entry['speedup']:.3f} | {1 / high:.3f} to {1 / low:.3f} |"
                f" {entry['speedup']:.2f} |"
            )
        results.append({"sentences": sentences, "tokens": TOKENS} | figures)
    if not args.quick:
        name = "training_compute" if args.compute else "training_step"
        settings = {"layers": args.layers, "vocabulary": vocabulary, "rounds": rounds, "clock": clock.__name__}
        write(name if args.layers == 6 else f"{name}_{args.layers}_layers", where, settings, results)


if __name__ == "__main__":
    main()
