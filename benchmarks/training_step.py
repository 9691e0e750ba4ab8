"""One optimizer step of a base-size translator: dense, and sparse with thresholds in plain torch or in C.

    python benchmarks/training_step.py --threads 1

Forward, backward and fused AdamW; 96 sparse layers with 44 M weights; float32, 60 % sparsity, alpha 0.5. The products
are dense in all of them: this is what thresholding costs.
"""

from __future__ import annotations

import copy
from unittest import mock

import torch
from decode import base_model
from measuring import arguments, device, interleaved, summary, write

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


def main() -> None:
    args = arguments(__doc__)
    torch.set_num_threads(args.threads)
    where = device()
    print(where)
    dense = base_model(VOCABULARY)
    config = AutoSparseConfig(threshold_init={"sparsity": 0.6}, alpha_init=0.5, alpha_schedule="fixed")
    sparse = sparsify(copy.deepcopy(dense), config)
    layers = sparse_layers(sparse).values()
    print(f"{len(layers)} sparse layers, {sum(layer.weight.numel() for layer in layers):,} weights")
    rounds = 3 if args.quick else 15
    results = []
    for sentences in (SENTENCES // 4,) if args.quick else (SENTENCES, SENTENCES // 4):
        ids = torch.randint(2, VOCABULARY, (sentences, TOKENS), generator=torch.Generator().manual_seed(0))
        calls = {
            "dense": stepper(copy.deepcopy(dense), ids),
            "sparse, torch": stepper(copy.deepcopy(sparse), ids, plain_torch=True),
            "sparse, C": stepper(copy.deepcopy(sparse), ids),
        }
        figures = summary(interleaved(calls, rounds, 0), "dense")
        print(f"\n{sentences} sentences of {TOKENS} tokens on each side")
        print("| step | seconds | time / dense | quartiles |")
        print("|---|---|---|---|")
        for name, entry in figures.items():
            low, high = entry["speedup_quartiles"]
            print(
                f"| {name} | {entry['median_s']:.3f} | {1 / entry['speedup']:.3f} | {1 / high:.3f} to {1 / low:.3f} |"
            )
        results.append({"sentences": sentences, "tokens": TOKENS} | figures)
    if not args.quick:
        write("training_step", where, {"vocabulary": VOCABULARY, "rounds": rounds}, results)


if __name__ == "__main__":
    main()
