"""What the kernels for a GPU are worth: the soft threshold, products of few tokens, 2:4 products.

    python -m benchmarks.gpu

Everything is interleaved with its plain counterpart and timed with CUDA events behind a cleared L2 cache. Without a GPU
`TRITON_INTERPRET=1 python -m benchmarks.gpu --interpret` runs the same code on tiny sizes in Triton's interpreter: it
shows that the script works, and its times mean nothing.
"""

from __future__ import annotations

import argparse
import os
import platform
import time

import torch
import torch.nn.functional as F

from benchmarks.measuring import summary, write
from hf_autosparse import functional, kernels
from hf_autosparse.functional import n_of_m_mask
from hf_autosparse.kernels.cuda.semi_structured import SemiStructuredMatrix
from hf_autosparse.kernels.triton import availability as gpu
from hf_autosparse.kernels.triton.bitmask_matrix import BitmaskMatrix

SHAPES = [(1024, 1024), (4096, 1024), (4096, 4096), (11008, 4096), (4096, 11008)]
SPARSITIES = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
ALPHA = 0.5
L2_BYTES = 256 * 2**20  # written between two timings: more than the cache of any card


def interleaved(actions, rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each action in every round, in turns, the order reversed from round to round."""
    times = {name: [] for name in actions}
    order, flush = list(actions), torch.empty(L2_BYTES if device == "cuda" else 1, dtype=torch.uint8, device=device)
    for name in order:
        actions[name]()
    for _ in range(rounds):
        for name in order:
            flush.zero_()
            times[name].append(seconds(actions[name], device))
        order.reverse()
    return times


def seconds(action, device: str) -> float:
    if device != "cuda":
        begin = time.perf_counter()
        action()
        return time.perf_counter() - begin
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    action()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def threshold(shape, per_channel: bool, device: str) -> dict[str, object]:
    """Forward and backward of the effective weight alone, as bf16 autocast has them: plain torch and its own cast."""
    weight = torch.randn(shape, device=device, requires_grad=True)
    cut = torch.full((shape[0], 1) if per_channel else (1,), 0.8, device=device, requires_grad=True)
    grad = torch.randn(shape, device=device).bfloat16()
    plain = functional.annealed_soft_threshold

    def run(effective) -> None:
        effective.backward(grad)
        weight.grad = cut.grad = None

    return {
        "plain torch": lambda: run(plain(weight, cut, ALPHA, None).bfloat16()),
        "Triton": lambda: run(kernels.annealed_soft_threshold(weight, cut, ALPHA, dtype=torch.bfloat16)),
    }


def products(shape, sparsity: float, tokens: int, device: str) -> dict[str, object]:
    weight = torch.randn(shape, device=device)
    weight = (weight * (torch.rand(shape, device=device) >= sparsity)).bfloat16()
    x = torch.randn(tokens, shape[1], device=device).bfloat16()
    matrix = BitmaskMatrix(weight)
    return {"dense": lambda: F.linear(x, weight), "bitmask": lambda: matrix.product(x)}


def two_of_four(shape, tokens: int, device: str) -> dict[str, object]:
    weight = torch.randn(shape, device=device).bfloat16()
    weight *= n_of_m_mask(weight.abs(), 2, 4)
    x = torch.randn(tokens, shape[1], device=device).bfloat16()
    matrix = SemiStructuredMatrix(weight)
    calls = {"dense": lambda: F.linear(x, weight), "2:4": lambda: matrix.product(x)}
    if tokens <= kernels.get_backend("bitmask").most_tokens:
        bitmask = BitmaskMatrix(weight)
        calls["bitmask"] = lambda: bitmask.product(x)
    return calls


def cases(device: str, quick: bool):
    """(what is measured, function that makes the actions and its arguments, baseline)."""
    shapes, sparsities = (SHAPES[2:3], [0.8]) if quick else (SHAPES, SPARSITIES)
    tokens = [1, 16] if quick else [1, 2, 4, 8, 16]
    many = [1, 16, 256] if quick else [1, 4, 16, 64, 256, 1024, 4096]
    if device != "cuda":
        shapes, sparsities, tokens, many = [(32, 320)], [0.8], [1, 3], []
    for shape in shapes:
        for per_channel in (False, True):
            name = {"what": "threshold", "weight": list(shape), "by": "channel" if per_channel else "layer"}
            yield name, (threshold, shape, per_channel), "plain torch"
        for sparsity in sparsities:
            for count in tokens:
                name = {"what": "product", "weight": list(shape), "sparsity": sparsity, "tokens": count}
                yield name, (products, shape, sparsity, count), "dense"
        for count in many:
            yield {"what": "2:4", "weight": list(shape), "tokens": count}, (two_of_four, shape, count), "dense"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a part of it; writes nothing")
    parser.add_argument("--interpret", action="store_true", help="tiny sizes in Triton's interpreter; times nothing")
    args = parser.parse_args()
    device = "cpu" if args.interpret else "cuda"
    if args.interpret:
        if os.environ.get("TRITON_INTERPRET") != "1":
            parser.error("--interpret needs the environment variable TRITON_INTERPRET=1")
        gpu.takes, gpu._choice = (lambda tensor: True), (True, "Triton's interpreter")
        from hf_autosparse.kernels.triton import matvec as triton_matvec

        triton_matvec._multiprocessors = lambda device: 1
    elif not torch.cuda.is_available():
        parser.error("this needs a CUDA GPU; --interpret shows without one that the script works")
    elif not gpu.is_available():
        parser.error(f"this needs the Triton kernels, but this machine takes {gpu.status()}")
    torch.manual_seed(0)
    where = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "the interpreter: no times are given",
        "threads": torch.get_num_threads(),
        "kernels": gpu.status(),
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()},
    }
    print(where)
    results = []
    for name, (make, *arguments), baseline in cases(device, args.quick):
        figures = summary(interleaved(make(*arguments, device), 1 if args.interpret else 50, device), baseline)
        results.append(name | figures)
        times = ", ".join(f"{key} {f['median_s'] * 1e6:.1f} us ({f['speedup']:.2f}x)" for key, f in figures.items())
        print(*name.values(), "runs" if args.interpret else times, flush=True)
    if not (args.quick or args.interpret):
        write("gpu", where, {"rounds": 50, "alpha": ALPHA, "dtype": "bfloat16"}, results)


if __name__ == "__main__":
    main()
