"""Y = X W^T with a weight as a bitmask and its non-zeros: bfloat16, float16 and int8 against torch's dense products.

    python -m benchmarks.bitmask_matmul --threads 1
    python -m benchmarks.bitmask_matmul --threads 1 --cpu-time   # on a machine that has other work to do

Six weights of 4096 x 1024 in turn, as a model's layers come in decoding; random unstructured zeros. "error": of the
product, relative to the one with the unrounded float32 weight and activations in float64. Results are written to a file
of their own for each processor.
"""

from __future__ import annotations

import argparse
import copy
import re
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.measuring import device, interleaved, prune, summary, write
from hf_autosparse.kernels import SparseMatrix, library
from hf_autosparse.kernels.cpu.bitmask_matrix import RowBitmaskMatrix

NAME = "bitmask_matmul"
SHAPE, COPIES = (4096, 1024), 6
SPARSITIES = (0.5, 0.6, 0.8, 0.9)
TOKENS = (1, 4, 16, 64, 256)
ROUNDS, SECONDS = 9, 0.5
BASELINE = "torch float32"

Product = Callable[[], list[Tensor]]


def slug(processor: str) -> str:
    """A processor's name as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "_", processor.lower()).strip("_")


def dynamic_int8(weight: Tensor) -> nn.Module:
    layer = nn.Linear(*reversed(SHAPE), bias=False)
    layer.weight.data = weight
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is deprecated
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {nn.Linear}, dtype=torch.qint8)


def forms(weight: Tensor) -> dict[str, tuple[torch.dtype, list[object]]]:
    """Name -> dtype of the activations, copies of the weight's sparse form."""
    kernels = library()
    if kernels is None:
        raise SystemExit("needs the C kernels")
    return {
        "sparse": (torch.float32, [SparseMatrix(weight, kernels) for _ in range(COPIES)]),
        "bitmask bfloat16": (torch.bfloat16, [RowBitmaskMatrix(weight.bfloat16(), kernels) for _ in range(COPIES)]),
        "bitmask float16": (torch.float16, [RowBitmaskMatrix(weight.half(), kernels) for _ in range(COPIES)]),
        "bitmask int8": (
            torch.bfloat16,
            [RowBitmaskMatrix(weight.bfloat16(), kernels, torch.int8) for _ in range(COPIES)],
        ),
    }


def products(matrices: list[object], x: Tensor) -> Product:
    return lambda: [matrix.product(x) for matrix in matrices]


def measure(weight: Tensor, tokens: int, clock: Callable[[], float]) -> dict[str, dict[str, float]]:
    x = torch.randn(tokens, SHAPE[1])
    half = x.bfloat16()
    dense = [weight.clone() for _ in range(COPIES)]
    halves = [weight.bfloat16() for _ in range(COPIES)]
    quantized = [copy.deepcopy(layer) for layer in [dynamic_int8(weight)] for _ in range(COPIES)]
    calls: dict[str, Product] = {
        BASELINE: lambda: [nn.functional.linear(x, w) for w in dense],
        "torch bfloat16": lambda: [nn.functional.linear(half, w) for w in halves],
        "torch dynamic int8": lambda: [layer(x) for layer in quantized],
    }
    sizes = {}
    for name, (dtype, matrices) in forms(weight).items():
        calls[name] = products(matrices, x.to(dtype))
        sizes[name] = matrices[0].bytes / weight.numel()
    expected = x.double() @ weight.double().T
    figures = summary(interleaved(calls, ROUNDS, SECONDS, clock), BASELINE)
    for name, entry in figures.items():
        error = (calls[name]()[0].double() - expected).norm() / expected.norm()
        entry |= {"error": float(error)} | ({"bytes_a_weight": sizes[name]} if name in sizes else {})
        entry["median_s"] /= COPIES
        entry["min_s"] /= COPIES
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="threads of every contestant (default: 1)")
    parser.add_argument("--cpu-time", action="store_true", help="processor time instead of time; one thread only")
    parser.add_argument("--quick", action="store_true", help="a part of it; writes nothing")
    args = parser.parse_args()
    if args.cpu_time and args.threads != 1:
        parser.error("--cpu-time adds up the time of all threads: it is for --threads 1")
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.cpu_time else time.perf_counter
    where, results = device(), []
    print(where)
    torch.manual_seed(0)
    with torch.inference_mode():
        for sparsity in (0.8,) if args.quick else SPARSITIES:
            weight = torch.randn(SHAPE)
            prune(weight, sparsity)
            for tokens in (1, 64) if args.quick else TOKENS:
                figures = measure(weight, tokens, clock)
                results.append({"sparsity": sparsity, "tokens": tokens, "contestants": figures})
                line = ", ".join(f"{name} {entry['speedup']:.2f}" for name, entry in figures.items())
                print(f"{sparsity:.0%} zeros, {tokens} tokens, times torch float32: {line}", flush=True)
    if not args.quick:
        settings = {"shape": SHAPE, "copies": COPIES, "rounds": ROUNDS, "seconds": SECONDS, "clock": clock.__name__}
        write(f"{NAME}_{slug(str(where['processor']))}", where, settings, results)


if __name__ == "__main__":
    main()
