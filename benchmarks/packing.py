"""Pack and unpack one large weight, side by side with zstd and gzip on its dense bytes: `python benchmarks/packing.py`.

Interleaved on one thread; medians. MB/s are megabytes of dense weight per second. Needs `pip install zstandard`.
"""

import gzip
import platform
import statistics
import sys
import time

import torch
import zstandard

from hf_autosparse.packed_format import decode, encode

ROUNDS = 5
SIZE = 4096  # of the square weight


def codecs(weight):
    """Name -> (compress, decompress, bytes after compressing)."""
    raw = weight.view(torch.uint8).numpy().tobytes()
    parts = encode(weight)
    fast, squeezed = zstandard.ZstdCompressor(level=1), gzip.compress(raw, 1)
    frame = fast.compress(raw)
    return raw, {
        "packed": (
            lambda: encode(weight),
            lambda: decode(parts[0], parts[1], tuple(parts[2].tolist())),
            sum(p.numel() * p.element_size() for p in parts),
        ),
        "zstd -1": (lambda: fast.compress(raw), lambda: zstandard.ZstdDecompressor().decompress(frame), len(frame)),
        "gzip -1": (lambda: gzip.compress(raw, 1), lambda: gzip.decompress(squeezed), len(squeezed)),
    }


def seconds(action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(
        f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, 1 thread, {sys.platform}"
    )
    print(f"{SIZE} x {SIZE} normal weights, smallest magnitudes zeroed; median of {ROUNDS} rounds\n")
    print(
        "| dtype | sparsity | codec | size / dense | ideal | pack MB/s | unpack MB/s | pack time / packed's | unpack |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        for sparsity in (0.6, 0.9):
            weight = torch.randn(SIZE, SIZE)
            weight[weight.abs() <= weight.abs().flatten()[:1_000_000].quantile(sparsity)] = 0
            weight = weight.to(dtype)
            raw, actions = codecs(weight)
            times = {name: ([], []) for name in actions}
            for _ in range(ROUNDS):
                for name, (compress, decompress, _size) in actions.items():
                    times[name][0].append(seconds(compress))
                    times[name][1].append(seconds(decompress))
            medians = {name: tuple(map(statistics.median, pair)) for name, pair in times.items()}
            bits = weight.element_size() * 8
            ideal = weight.count_nonzero().item() / weight.numel() + 1 / bits
            for name, (_, _, size) in actions.items():
                speed = [len(raw) / s / 1e6 for s in medians[name]]
                ratio = [s / p for s, p in zip(medians[name], medians["packed"], strict=True)]
                print(
                    f"| {str(dtype).removeprefix('torch.')} | {sparsity} | {name} | {size / len(raw):.4f} | {ideal:.4f}"
                    f" | {speed[0]:.0f} | {speed[1]:.0f} | {ratio[0]:.1f} | {ratio[1]:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
