"""What this machine can do at most, measured: multiply-adds a second, and bytes read a second from cache or memory.

    python -m benchmarks.machine_limits --threads 1

In the instruction set of the kernels. A product that skips zeros is never faster than its non-zeros are multiplied,
nor than its weight is read.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from hf_autosparse import kernels
from hf_autosparse.kernels.cpu import build

SOURCE = Path(__file__).with_suffix(".c")
MEMORY = 256 * 2**20  # bytes: more than caches hold
_ROUNDS, _SECONDS = 30, 0.01
_GRAIN = 12 * 16  # floats: what read_floats reads at a time, for the widest vectors


class MachineLimits:
    """Measured when it is asked for.

    Args:
        threads: as many as the product runs in.

    Raises:
        BuildError: no C compiler.
    """

    def __init__(self, threads: int):
        self.threads = threads
        self._library = _library()
        self._pool = ThreadPoolExecutor(threads)  # ctypes releases the interpreter's lock

    @functools.cached_property
    def flops(self) -> float:
        """float32 operations a second of all threads; a multiply-add is two."""
        steps = int(_SECONDS * 2e8)
        seconds = self._best(lambda _: self._library.multiply_add(steps, 0.5, 1.0))
        return self.threads * steps * self._library.operations() / seconds

    def bandwidth(self, size: int) -> float:
        """Bytes a second that all threads read together, again and again from the same `size` bytes."""
        return self._bandwidth(1 << max(14, (min(size, MEMORY) - 1).bit_length()))

    @functools.cache  # noqa: B019 - one object a run
    def _bandwidth(self, size: int) -> float:
        count = max(1, size // 4 // self.threads // _GRAIN) * _GRAIN
        data = torch.ones(self.threads * count)
        times = max(1, int(_SECONDS * 2e10 / data.nbytes))

        def read(thread: int) -> None:
            self._library.read_floats(data.data_ptr() + 4 * count * thread, count, times)

        return data.nbytes * times / self._best(read)

    def seconds(self, nonzeros: int, tokens: int, size: int, from_memory: bool) -> float:
        """The least time of a product: its multiply-adds, or reading the sparse weight's `size` bytes, if that is more.

        Activations are taken for free.
        """
        reading = size / self.bandwidth(MEMORY if from_memory else size)
        return max(2 * nonzeros * tokens / self.flops, reading)

    def _best(self, work) -> float:
        best = float("inf")
        for _ in range(_ROUNDS):
            begin = time.perf_counter()
            list(self._pool.map(work, range(self.threads)))
            best = min(best, time.perf_counter() - begin)
        return best


def _library() -> ctypes.CDLL:
    isa = kernels.library().isa
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "limits.so"
        flags = ("-O3", "-ffp-contract=fast", "-shared", "-fPIC", *build.instruction_sets()[isa])
        subprocess.run([*build.compiler(), *flags, str(SOURCE), "-o", str(path)], check=True, timeout=60)
        library = ctypes.CDLL(str(path))
    library.operations.restype = ctypes.c_long
    library.multiply_add.argtypes = [ctypes.c_long, ctypes.c_float, ctypes.c_float]
    library.multiply_add.restype = ctypes.c_float
    library.read_floats.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_long]
    library.read_floats.restype = ctypes.c_float
    return library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    limits = MachineLimits(parser.parse_args().threads)
    print(f"{limits.flops / 1e9:.0f} GFLOP/s")
    for size in (2**15, 2**18, 2**20, 2**22, 2**24, MEMORY):
        print(f"{limits.bandwidth(size) / 1e9:.1f} GB/s from {size / 2**20:g} MiB")


if __name__ == "__main__":
    main()
