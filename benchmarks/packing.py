"""Pack and unpack one large weight on one core, side by side with zstd and gzip on its dense bytes, and with a copy.

    python -m benchmarks.packing

MB/s are megabytes of dense weight per second; contestants run in turns, medians. Needs `pip install zstandard`.
"""

from __future__ import annotations

import argparse
import functools
import gzip

import torch
import zstandard
from torch import Tensor

from benchmarks.measuring import device, interleaved, prune, summary, write
from hf_autosparse.serialization.bitmask_format import decode, encode

SIZE = 4096  # of the square weight
SPARSITIES = (0.6, 0.8, 0.9)
ROUNDS, SECONDS = 7, 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one dtype and sparsity; writes nothing")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    torch.manual_seed(0)
    where = device()
    print(where)
    print("| dtype | sparsity | codec | size / dense | ideal | pack MB/s | unpack MB/s | x packed's time | unpacking |")
    print("|---|---|---|---|---|---|---|---|---|")
    results = []
    for dtype in (torch.float32,) if quick else (torch.float32, torch.bfloat16):
        for sparsity in SPARSITIES[1:2] if quick else SPARSITIES:
            weight = torch.randn(SIZE, SIZE)
            prune(weight, sparsity)
            results.append(measure(weight.to(dtype), sparsity))
    if not quick:
        write("packing", where, {"weight": [SIZE, SIZE], "rounds": ROUNDS, "seconds": SECONDS}, results)


def measure(weight: Tensor, sparsity: float) -> dict[str, object]:
    codecs = contestants(weight)
    packing = summary(interleaved({name: codec[0] for name, codec in codecs.items()}, ROUNDS, SECONDS), "packed")
    unpacking = summary(interleaved({name: codec[1] for name, codec in codecs.items()}, ROUNDS, SECONDS), "packed")
    bits = weight.element_size() * 8
    ideal = weight.count_nonzero().item() / weight.numel() + 1 / bits
    dtype = str(weight.dtype).removeprefix("torch.")
    result: dict[str, object] = {"dtype": dtype, "sparsity": sparsity, "ideal": ideal}
    for name, (_, _, size) in codecs.items():
        row = {"size": size / weight.nbytes, "packing": packing[name], "unpacking": unpacking[name]}
        for direction in (packing[name], unpacking[name]):
            direction["megabytes_per_second"] = weight.nbytes / direction["median_s"] / 1e6
        speeds = " | ".join(f"{row[way]['megabytes_per_second']:.0f}" for way in ("packing", "unpacking"))
        ratios = " | ".join(f"{1 / row[way]['speedup']:.1f}" for way in ("packing", "unpacking"))
        print(f"| {dtype} | {sparsity} | {name} | {row['size']:.4f} | {ideal:.4f} | {speeds} | {ratios} |", flush=True)
        result[name] = row
    return result


def contestants(weight: Tensor) -> dict[str, tuple]:
    """Name -> (compress, decompress, bytes after compressing)."""
    raw = weight.view(torch.uint8).numpy().tobytes()
    bitmask, values, shape = encode(weight)
    fast, squeezed = zstandard.ZstdCompressor(level=1), gzip.compress(raw, 1)
    frame = fast.compress(raw)
    packed_size = sum(part.nbytes for part in (bitmask, values, shape))
    return {
        "packed": (
            functools.partial(encode, weight),
            functools.partial(decode, bitmask, values, tuple(shape.tolist())),
            packed_size,
        ),
        "copy": (weight.clone, weight.clone, len(raw)),
        "zstd -1": (lambda: fast.compress(raw), lambda: zstandard.ZstdDecompressor().decompress(frame), len(frame)),
        "gzip -1": (lambda: gzip.compress(raw, 1), lambda: gzip.decompress(squeezed), len(squeezed)),
    }


if __name__ == "__main__":
    main()
