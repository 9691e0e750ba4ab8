"""Greedy translation by a base or big Transformer (6 + 6 layers), dense and after to_inference, side by side.

    python -m benchmarks.decode --threads 1
    python -m benchmarks.decode --threads 1 --size big --batch 1   # then --batch 16: the results are kept together

Random weights, the smallest magnitudes of each Linear but the output layer zeroed; `--uneven` prunes rows unequally, as
learned thresholds do. "free" is the limit: the sparse layers' products cost nothing. "int8" is torch's dynamic
quantisation of every Linear of the dense model. It includes the output layer, which the other models leave dense; so
the sparse ones and the limit are shown with an int8 output layer too ("+ int8 output", other tokens), and the sparse
ones after screen_output ("+ screened output", the same tokens). "-bfloat16": the sparse layers' weights are bfloat16
numbers, as in a model trained so; then "auto" may store them in 3 bytes instead of 5. `--runtimes` adds the dense model
in ONNX Runtime and OpenVINO: `pip install onnx onnxscript onnxruntime openvino`.
"""

from __future__ import annotations

import argparse
import collections
import copy
import functools
import itertools
import warnings

import torch
from torch import nn
from transformers import MarianConfig, MarianMTModel

from benchmarks.decode_runtimes import runtimes
from benchmarks.measuring import device, earlier, interleaved, prune, summary, write
from hf_autosparse import inference_report, screen_output, sparsity, to_inference

SOURCE_TOKENS, NEW_TOKENS = 24, 24


WIDTHS = {"base": 512, "big": 1024}


def translator(vocabulary: int, size: str = "base", layers: int = 6) -> MarianMTModel:
    torch.manual_seed(0)
    width = WIDTHS[size]
    return MarianMTModel(
        MarianConfig(
            vocab_size=vocabulary,
            d_model=width,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_attention_heads=width // 64,
            decoder_attention_heads=width // 64,
            encoder_ffn_dim=4 * width,
            decoder_ffn_dim=4 * width,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
            forced_eos_token_id=None,
        )
    ).eval()


def layers_to_prune(model: nn.Module) -> list[nn.Linear]:
    return [m for m in model.modules() if isinstance(m, nn.Linear) and m is not model.get_output_embeddings()]


@torch.no_grad()
def pruned(model: nn.Module, fraction: float, uneven: bool, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy with that fraction of zeros; the others are rounded to `dtype` and stay float32."""
    model = copy.deepcopy(model)
    for layer in layers_to_prune(model):
        prune(layer.weight, fraction, uneven)
        layer.weight.copy_(layer.weight.to(dtype))
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


def twin(model: nn.Module) -> nn.Module:
    """A copy that shares the weights."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def quantised(model: nn.Module, layers: set) -> nn.Module:
    """A copy with these layers (names or types) in torch's dynamic int8."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates this interface in favour of torchao
        return torch.ao.quantization.quantize_dynamic(twin(model), layers, dtype=torch.qint8, inplace=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", choices=WIDTHS, default="base")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="numbers of sentences (default: 1 16)")
    parser.add_argument("--rounds", type=int, default=7, help="of each model at least (default: 7)")
    parser.add_argument("--quick", action="store_true", help="batch 1 only, under a minute; writes nothing")
    parser.add_argument("--uneven", action="store_true", help="rows of unequal sparsity")
    parser.add_argument("--runtimes", action="store_true", help="ONNX Runtime and OpenVINO too")
    parser.add_argument("--vocabulary", type=int, default=32_000)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    where = device()
    print(where)
    file = "decode" + "_big" * (args.size == "big") + "_uneven" * args.uneven
    settings = {"size": args.size, "vocabulary": args.vocabulary, "uneven": args.uneven}
    settings |= {"source_tokens": SOURCE_TOKENS, "new_tokens": NEW_TOKENS}
    batches = [1] if args.quick else args.batch
    results = [] if args.quick else [r for r in earlier(file, where, settings) if r["batch"] not in batches]
    dense = translator(args.vocabulary, args.size)
    models = {"dense": dense, "int8": quantised(dense, {nn.Linear}), "free": freed(dense)}
    expected = {}
    for fraction, dtype in itertools.product((0.8, 0.9), (torch.float32, torch.bfloat16)):
        name = f"{fraction:.0%}" + "-bfloat16" * (dtype is torch.bfloat16)
        model = pruned(dense, fraction, args.uneven, dtype)
        expected[name] = [generated(model, batch) for batch in batches]
        models[name] = to_inference(model)
        picked = collections.Counter(row.backend for row in inference_report(model).rows)
        print(f"{name}: sparsity {sparsity(model):.2%} with the output layer, {dict(picked)}")
    with_int8 = ("free", *(name for name in expected if "bfloat16" not in name))
    models |= {f"{name} + int8 output": quantised(models[name], {"lm_head"}) for name in with_int8}
    models |= {f"{name} + screened output": screen_output(twin(models[name])) for name in expected}
    rounds, seconds = (3, 2.0) if args.quick else (args.rounds, 20.0)
    for i, batch in enumerate(batches):
        same = {
            name: torch.equal(expected[name.partition(" ")[0]][i], generated(model, batch))
            for name, model in models.items()
            if name.partition(" ")[0] in expected
        }
        calls = {name: functools.partial(generated, model, batch) for name, model in models.items()}
        if args.runtimes:
            ids, right = sentences(args.vocabulary, batch), generated(dense, batch)
            rivals = runtimes(dense, ids, NEW_TOKENS)
            same |= {name: torch.equal(generate(ids), right) for name, generate in rivals.items()}
            calls |= {name: functools.partial(generate, ids) for name, generate in rivals.items()}
        figures = summary(interleaved(calls, rounds, seconds), "dense")
        print(f"\nbatch {batch}; the same tokens as with dense products: {same}")
        print("| model | ms a step | tokens/s | speed-up | quartiles | share of the limit | Linears alone |")
        print("|---|---|---|---|---|---|---|")
        for name, entry in figures.items():
            free = figures["free + int8 output" if "output" in name else "free"]
            entry["tokens_per_s"] = batch * NEW_TOKENS / entry["median_s"]
            entry["share_of_limit"] = free["median_s"] / entry["median_s"]
            if name in expected:
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
        write(file, where, settings, sorted(results, key=lambda result: result["batch"]))


def generated(model: nn.Module, batch: int) -> torch.Tensor:
    """Tokens (batch, NEW_TOKENS + 1)."""
    length = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    return model.generate(sentences(model.config.vocab_size, batch), **length, do_sample=False, num_beams=1)


def sentences(vocabulary: int, batch: int) -> torch.Tensor:
    """Random tokens (batch, SOURCE_TOKENS), the same for every model."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(2, vocabulary, (batch, SOURCE_TOKENS), generator=generator)


if __name__ == "__main__":
    main()
