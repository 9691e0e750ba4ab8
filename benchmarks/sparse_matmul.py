"""Y = X W^T with zeros in W: the kernel, dense products, sparse ones and int8, side by side, against what is possible.

    python -m benchmarks.sparse_matmul --threads 1
    python -m benchmarks.sparse_matmul --threads 1 --minutes 4   # again and again, until it says that all is measured
    python -m benchmarks.sparse_matmul --threads 1 --weights runs/multi30k   # learned zeros against random ones
    python -m benchmarks.sparse_matmul --threads 1 --plot   # draws what was measured, measures nothing

Random unstructured zeros, float32. "cache": the same weight again and again. "memory": 64 MiB of dense weights and
their sparse forms in turn, as a model's layers come in decoding. "limit": machine_limits.py. The rivals (rivals.py) are
optional: `pip install onnx onnxruntime openvino scipy mkl`.
"""

from __future__ import annotations

import argparse
import functools
import math
import time

import torch

from benchmarks.learned_weights import compare
from benchmarks.machine_limits import MachineLimits
from benchmarks.measuring import device, earlier, interleaved, prune, summary, write
from benchmarks.rivals import DENSE, SPARSE, Call, prepared
from hf_autosparse import kernels
from hf_autosparse.kernels.autotune import best_times

NAME = "sparse_matmul"
SHAPES = ((512, 512), (2048, 512), (512, 2048), (4096, 1024))
SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
TOKENS = (1, 4, 16, 64, 256, 1024)
MEMORY_BYTES, MEMORY_TOKENS = 64 * 2**20, 16
ROUNDS, SECONDS = 5, 1.0
TURN = 0.003  # seconds of dense products in a turn from the cache, so that the others' weights are forgotten

Cell = tuple[tuple[int, int], float, str, int]  # shape, sparsity, where the weight comes from, tokens


def cells(quick: bool) -> list[Cell]:
    if quick:
        return [((2048, 512), 0.8, "cache", tokens) for tokens in (1, 16, 256)]
    return [
        (shape, sparsity, source, tokens)
        for tokens in TOKENS
        for shape in SHAPES
        for source in (("memory", "cache") if tokens <= MEMORY_TOKENS else ("cache",))
        for sparsity in SPARSITIES
    ]


def weights_for(shape: tuple[int, int], source: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    copies = -(-MEMORY_BYTES // (shape[0] * shape[1] * 4)) if source == "memory" else 1
    return [torch.randn(shape) for _ in range(copies)]


@functools.lru_cache(maxsize=1)
def dense_rivals(shape: tuple[int, int], source: str, tokens: int):
    """Prepared once for all sparsities: zeros are a number like others to them."""
    return prepared(DENSE, weights_for(shape, source), torch.randn(tokens, shape[1]))


def repeated(call: Call, times: int) -> None:
    for _ in range(times):
        call()


def measure(cell: Cell, limits: MachineLimits) -> dict[str, object]:
    shape, sparsity, source, tokens = cell
    dense_calls, dense_missing = dense_rivals(shape, source, tokens)
    weights = weights_for(shape, source)
    for weight in weights:
        prune(weight, sparsity)
    calls, missing = prepared(SPARSE, weights, torch.randn(tokens, shape[1]))
    calls |= dense_calls
    repeats = 1 if source == "memory" else max(1, round(TURN / best_times([calls["dense"]], 3, 0)[0]))
    turns = {name: functools.partial(repeated, call, repeats) for name, call in calls.items()}
    figures = summary(interleaved(turns, ROUNDS, SECONDS), "dense")
    for entry in figures.values():  # per product
        entry["median_s"] /= len(weights) * repeats
        entry["min_s"] /= len(weights) * repeats
    nonzeros = int(weights[0].count_nonzero())
    size = kernels.SparseMatrix(weights[0], kernels.library()).bytes
    limit = limits.seconds(nonzeros, tokens, size, source == "memory")
    own = figures["hf_autosparse"]
    return {
        "weight": list(shape),
        "sparsity": sparsity,
        "from": source,
        "tokens": tokens,
        "limit_s": limit,
        "limit_speedup": figures["dense"]["median_s"] / limit,
        "of_limit": limit / own["median_s"],
        "gflops_of_nonzeros": 2e-9 * nonzeros * tokens / own["median_s"],
        "contestants": figures,
        "missing": missing | dense_missing,
    }


def row(result: dict) -> str:
    """A line of the table."""
    figures = result["contestants"]
    low, high = figures["hf_autosparse"]["speedup_quartiles"]
    others = ", ".join(
        f"{name} {entry['speedup']:.2f}" for name, entry in figures.items() if name not in ("dense", "hf_autosparse")
    )
    return (
        f"| {'x'.join(map(str, result['weight']))} | {result['sparsity']} | {result['from']} | {result['tokens']}"
        f" | {figures['dense']['median_s'] * 1e6:.0f} | {figures['hf_autosparse']['median_s'] * 1e6:.0f}"
        f" | {figures['hf_autosparse']['speedup']:.2f} ({low:.2f} to {high:.2f}) | {result['limit_speedup']:.1f}"
        f" | {others} |"
    )


def crossover(points: list[tuple[float, float]]) -> float | None:
    """The sparsity where the speed-up passes 1, from (sparsity, speed-up) in order; None where it does not.

    The logarithm of the speed-up is taken as straight between two points.
    """
    for (low, before), (high, after) in zip(points, points[1:], strict=False):
        if before < 1 <= after:
            return low + (high - low) * math.log(1 / before) / math.log(after / before)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="threads of every contestant (default: 1)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long; run again to go on")
    parser.add_argument("--quick", action="store_true", help="a part of it, under a minute; writes nothing")
    parser.add_argument("--weights", metavar="DIRECTORY", help="a saved sparse model: its zeros against random ones")
    parser.add_argument("--plot", action="store_true", help="only draw the figures of the last run")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    where = device()
    if args.plot:
        draw(where)
        return
    print(where)
    if args.weights:
        results = compare(args.weights, rounds=11, seconds=1.0)
        write(f"{NAME}_learned", where, {"rounds": 11, "seconds": 1.0}, results)
        return
    settings = {"rounds": ROUNDS, "seconds": SECONDS, "memory_bytes": MEMORY_BYTES, "turn": TURN}
    results = [] if args.quick else earlier(NAME, where, settings)
    done = {(tuple(r["weight"]), r["sparsity"], r["from"], r["tokens"]) for r in results}
    todo = [cell for cell in cells(args.quick) if cell not in done]
    limits, end = MachineLimits(args.threads), time.monotonic() + 60 * args.minutes
    where |= {"peak_flops": limits.flops, "memory_bytes_per_s": limits.bandwidth(MEMORY_BYTES)} if todo else {}
    print("| weight | sparsity | from | tokens | dense us | kernel us | speed-up | at most | others |")
    print("|---|---|---|---|---|---|---|---|---|")
    with torch.inference_mode():
        while todo and time.monotonic() < end:
            results.append(measure(todo.pop(0), limits))
            print(row(results[-1]), flush=True)
    if not args.quick:
        write(NAME, where, settings, results)
        print(f"{len(todo)} of {len(cells(False))} are left: run again" if todo else "all is measured")
        if not todo:
            draw(where)


def draw(where: dict[str, object]) -> None:
    from benchmarks.sparse_matmul_plots import draw_all  # needs matplotlib

    draw_all(NAME, where, crossover)


if __name__ == "__main__":
    main()
