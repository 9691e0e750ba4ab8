"""Greedy translation by a base-size model (6 + 6 layers, width 512), dense and after to_inference, side by side.

    python benchmarks/decode.py --threads 1

Random weights, the smallest magnitudes of each Linear but the output layer zeroed; `--uneven` prunes rows unequally, as
learned thresholds do. "free" is the limit: the sparse layers' products cost nothing. "int8" is torch's dynamic
quantisation of every Linear of the dense model. It includes the output layer, which the other models leave dense; so
the sparse ones and the limit are shown with an int8 output layer too ("+ int8 output").
"""

from __future__ import annotations

import argparse
import copy
import functools
import warnings

import torch
from measuring import device, interleaved, prune, summary, write
from torch import nn
from transformers import MarianConfig, MarianMTModel

from hf_autosparse import inference_report, sparsity, to_inference

SOURCE_TOKENS, NEW_TOKENS = 24, 24


def base_model(vocabulary: int, layers: int = 6) -> MarianMTModel:
    torch.manual_seed(0)
    return MarianMTModel(
        MarianConfig(
            vocab_size=vocabulary,
            d_model=512,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_attention_heads=8,
            decoder_attention_heads=8,
            encoder_ffn_dim=2048,
            decoder_ffn_dim=2048,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
            forced_eos_token_id=None,
        )
    ).eval()


def layers_to_prune(model: nn.Module) -> list[nn.Linear]:
    return [m for m in model.modules() if isinstance(m, nn.Linear) and m is not model.get_output_embeddings()]


@torch.no_grad()
def pruned(model: nn.Module, fraction: float, uneven: bool) -> nn.Module:
    model = copy.deepcopy(model)
    for layer in layers_to_prune(model):
        prune(layer.weight, fraction, uneven)
    return model


class Free(nn.Module):
    """A Linear that costs nothing: zeros that are there already."""

    def __init__(self, outputs: int):
        super().__init__()
        self.outputs = outputs
        self.ready: dict[tuple[int, ...], torch.Tensor] = {}

    def forward(self, input):
        shape = (*input.shape[:-1], self.outputs)
        if shape not in self.ready:
            self.ready[shape] = torch.zeros(shape)
        return self.ready[shape]


def freed(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not model.get_output_embeddings():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, Free(module.out_features))
    return model


def quantised(model: nn.Module, layers: set) -> nn.Module:
    """A copy with these layers (names or types) in torch's dynamic int8."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates this interface in favour of torchao
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), layers, dtype=torch.qint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="batch 1 only, under a minute; writes nothing")
    parser.add_argument("--uneven", action="store_true", help="rows of unequal sparsity")
    parser.add_argument("--vocabulary", type=int, default=32_000)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    where = device()
    print(where)
    dense = base_model(args.vocabulary)
    sparse_weights = {f"{fraction:.0%}": pruned(dense, fraction, args.uneven) for fraction in (0.8, 0.9)}
    models = {"dense": dense, "int8": quantised(dense, {nn.Linear}), "free": freed(dense)}
    models |= {name: to_inference(copy.deepcopy(model)) for name, model in sparse_weights.items()}
    for name in sparse_weights:
        picked = sum(row.backend == "sparse" for row in inference_report(models[name]).rows)
        print(f"{name}: sparsity {sparsity(models[name]):.2%} with the output layer, {picked} layers sparse")
    models |= {f"{name} + int8 output": quantised(models[name], {"lm_head"}) for name in ("free", *sparse_weights)}
    rounds, seconds = (3, 2.0) if args.quick else (15, 40.0)
    results = []
    for batch in (1,) if args.quick else (1, 16):
        torch.manual_seed(1)
        ids = torch.randint(2, args.vocabulary, (batch, SOURCE_TOKENS))
        settings: dict = {
            "max_new_tokens": NEW_TOKENS,
            "min_new_tokens": NEW_TOKENS,
            "do_sample": False,
            "num_beams": 1,
        }
        same = {
            name: torch.equal(model.generate(ids, **settings), models[name].generate(ids, **settings))
            for name, model in sparse_weights.items()
        }
        calls = {name: functools.partial(model.generate, ids, **settings) for name, model in models.items()}
        figures = summary(interleaved(calls, rounds, seconds), "dense")
        print(f"\nbatch {batch}; the same tokens as with dense products: {same}")
        print("| model | ms a step | tokens/s | speed-up | quartiles | share of the limit | Linears alone |")
        print("|---|---|---|---|---|---|---|")
        for name, entry in figures.items():
            free = figures["free + int8 output" if "output" in name else "free"]
            entry["tokens_per_s"] = batch * NEW_TOKENS / entry["median_s"]
            entry["share_of_limit"] = free["median_s"] / entry["median_s"]
            if name in sparse_weights:
                rest = free["median_s"]
                entry["linears_speedup"] = (figures["dense"]["median_s"] - rest) / (entry["median_s"] - rest)
            low, high = entry["speedup_quartiles"]
            print(
                f"| {name} | {entry['median_s'] / NEW_TOKENS * 1e3:.2f} | {entry['tokens_per_s']:.0f}"
                f" | {entry['speedup']:.2f} | {low:.2f} to {high:.2f} | {entry['share_of_limit']:.0%}"
                f" | {entry.get('linears_speedup', '')!s:.4} |",
                flush=True,
            )
        results.append({"batch": batch, "same_tokens": same} | figures)
    if not args.quick:
        name = "decode_uneven" if args.uneven else "decode"
        write(name, where, {**vars(args), "source_tokens": SOURCE_TOKENS, "new_tokens": NEW_TOKENS}, results)


if __name__ == "__main__":
    main()
