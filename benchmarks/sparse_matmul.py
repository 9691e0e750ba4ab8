"""Y = X W^T with zeros in W: the kernel, dense torch, torch's CSR and SciPy's, side by side.

    python benchmarks/sparse_matmul.py --threads 1

Random unstructured zeros, float32. "cache": the same weight again and again. "memory": 64 MiB of dense weights and
their sparse forms in turn, as a model's layers come in decoding.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from measuring import arguments, device, interleaved, prune, summary, write

from hf_autosparse import kernels

SHAPES = [(512, 512), (2048, 512), (512, 2048), (4096, 1024)]
SPARSITIES = [0.5, 0.6, 0.8, 0.9, 0.95]
TOKENS = [1, 4, 16, 64, 256, 1024]
MEMORY_BYTES, MEMORY_TOKENS = 64 * 2**20, 16


def contestants(weights: list[torch.Tensor], x: torch.Tensor) -> dict[str, object]:
    """Name -> a call that multiplies x with every one of the weights."""
    matrices = [kernels.SparseMatrix(weight, kernels.library()) for weight in weights]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that its CSR support is in beta
        csr = [weight.to_sparse_csr() for weight in weights]
    calls = {
        "dense": lambda: [F.linear(x, weight) for weight in weights],
        "hf_autosparse": lambda: [matrix.product(x) for matrix in matrices],
        "torch CSR": lambda: [(weight @ x.T).T for weight in csr],
    }
    try:
        from scipy.sparse import csr_array
    except ImportError:
        return calls
    scipy, columns = [csr_array(weight.numpy()) for weight in weights], x.numpy().T.copy()
    return calls | {"scipy CSR": lambda: [weight @ columns for weight in scipy]}


def main() -> None:
    args = arguments(__doc__)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    where = device()
    print(where)
    shapes, sparsities, tokens = (SHAPES[1:2], [0.8, 0.9], [1, 16, 256]) if args.quick else (SHAPES, SPARSITIES, TOKENS)
    rounds, seconds = (5, 0.2) if args.quick else (11, 0.4)
    print("| weight | sparsity | from | tokens | dense us | kernel us | GFLOP/s of non-zeros | speed-up | others |")
    print("|---|---|---|---|---|---|---|---|---|")
    results = []
    for rows, cols in shapes:
        copies = -(-MEMORY_BYTES // (rows * cols * 4))
        for sparsity in sparsities:
            weights = []
            for _ in range(copies):
                weights.append(torch.randn(rows, cols))
                prune(weights[-1], sparsity)
            for count in tokens:
                x = torch.randn(count, cols)
                for source, used in (("cache", weights[:1]), ("memory", weights)):
                    if source == "memory" and count > MEMORY_TOKENS:
                        continue
                    figures = summary(interleaved(contestants(used, x), rounds, seconds), "dense")
                    for entry in figures.values():  # per weight
                        entry["median_s"] /= len(used)
                        entry["min_s"] /= len(used)
                    kernel = figures["hf_autosparse"]
                    work = 2 * count * int(used[0].count_nonzero())
                    others = ", ".join(
                        f"{name} {entry['speedup']:.2f}"
                        for name, entry in figures.items()
                        if name not in ("dense", "hf_autosparse")
                    )
                    print(
                        f"| {rows}x{cols} | {sparsity} | {source} | {count} | {figures['dense']['median_s'] * 1e6:.0f}"
                        f" | {kernel['median_s'] * 1e6:.0f} | {work / kernel['median_s'] / 1e9:.0f}"
                        f" | {kernel['speedup']:.2f} | {others} |",
                        flush=True,
                    )
                    results.append(
                        {"weight": [rows, cols], "sparsity": sparsity, "from": source, "tokens": count} | figures
                    )
    if not args.quick:
        write("sparse_matmul", where, {"rounds": rounds, "seconds": seconds}, results)


if __name__ == "__main__":
    main()
