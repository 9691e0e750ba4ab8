"""The compiled library: where it is, how its functions are called."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..environment import cache_directory
from .build import BuildError, build, compiler, compiler_key, instruction_sets, isa_of, library_name

_CPUINFO = Path("/proc/cpuinfo")
_PTR, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_Signature = tuple[Any, list[Any]]
_SIGNATURES: dict[str, _Signature] = {
    "matmul": (_INT, [_PTR, _PTR, _PTR, _LONG, _PTR, _PTR, _INT]),
    "gradient": (_INT, [_PTR, _PTR, _PTR, _PTR, _LONG, _LONG, _LONG, _INT]),
    "bitmask_matmul": (_INT, [_PTR, _INT, _PTR, _PTR, _LONG, _PTR, _INT]),
    "screen": (_LONG, [_PTR, _PTR, _PTR, _PTR, _PTR, _PTR, _PTR, _PTR, _LONG, _LONG, _LONG, _INT, _LONG, _INT]),
    "forward": (None, [_PTR, _PTR, _PTR, _LONG, _LONG, _INT, _INT]),
    "backward": (_INT, [_PTR, _PTR, _PTR, _FLOAT, _PTR, _PTR, _LONG, _LONG, _INT, _INT]),
}
_PLAN: _Signature = (_LONG, [_PTR, _LONG, _LONG, _LONG, _LONG, _INT, _PTR, _PTR, _PTR, _PTR, _PTR, _PTR])
_FILL: _Signature = (_INT, [_PTR, _PTR, _LONG, _LONG, _INT])
_BITMASK: dict[str, _Signature] = {
    "bitmask_plan": (None, [_PTR, _INT, _LONG, _LONG, _LONG, _LONG, _INT, _PTR, _PTR, _PTR, _PTR, _INT]),
    "bitmask_fill": (None, [_PTR, _PTR, _INT, _LONG, _LONG, _INT]),
    "bitmask_expand": (None, [_PTR, _LONG, _LONG, _PTR, _INT]),
    "bitmask_align": (None, [_PTR, _LONG, _LONG, _PTR, _PTR, _INT]),
}

Function = Callable[..., Any]

_forked = False


@dataclass(frozen=True)
class Library:
    """The functions of csrc/, for one instruction set. They check nothing: callers pass sound pointers and sizes."""

    path: Path
    isa: str
    plan: Function
    fill: Function
    matmul: Function
    gradient: Function
    screen: Function
    forward: Function
    backward: Function
    bitmask_matmul: Function
    bitmask_plan: Function
    bitmask_fill: Function
    bitmask_expand: Function
    bitmask_align: Function

    @property
    def version(self) -> str:
        """Changes with the sources, the compiler and the instruction set."""
        return f"{self.path.stem} {self.isa}"


def threads() -> int:
    """Threads to use: torch's number, but one in a forked child, where the parent's OpenMP threads are gone."""
    return 1 if _forked else torch.get_num_threads()


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


def library_file() -> Path:
    """The library of the current sources: the installed one, else the cached one, which is built if need be.

    Raises:
        BuildError: it cannot be built.
        OSError: the cache cannot be written.
    """
    installed = Path(__file__).parents[1] / library_name()
    if installed.is_file():
        return installed
    command = compiler()
    cached = cache_directory() / f"{installed.stem}-{compiler_key(command)}.so"
    if not cached.is_file():
        build(cached)
    return cached


def supported_isas() -> list[str]:
    """What this processor can run of what the library is compiled for, best first.

    torch knows the processor and what the system lets it use; what torch does not tell apart, Linux does.
    """
    isas = list(instruction_sets())
    if isas[0] != "sse2":
        return isas[::-1]
    capability = torch.backends.cpu.get_cpu_capability()
    if not capability.startswith("AVX512"):
        return ["avx2", "sse2"] if capability == "AVX2" else ["sse2"]
    found = ["avx512", "avx2", "sse2"]
    flags = processor_flags()
    if {"avx512_vbmi2", "avx512_vnni"} <= flags:
        found.insert(0, "avx512vbmi2")
        if "avx512_bf16" in flags:
            # On Intel's processors the product of bfloat16 pairs is slower than two of floats.
            found.insert(1 if "GenuineIntel" in flags else 0, "avx512bf16")
    return found


def processor_flags() -> set[str]:
    """What Linux says of the first processor: its maker and its abilities, as /proc/cpuinfo names them."""
    found: set[str] = set()
    if _CPUINFO.is_file():
        for line in _CPUINFO.read_text().partition("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("vendor_id", "flags"):
                found.update(value.split())
    return found


def bind(path: Path, isa: str) -> Library:
    """Load the library and take its functions for one instruction set.

    Raises:
        OSError: it does not load.
        BuildError: its compiler did not know the instruction set.
    """
    loaded = ctypes.CDLL(str(path))  # releases the GIL during calls
    functions = {"plan": ("autosparse_plan", _PLAN), "fill": ("autosparse_fill", _FILL)}
    functions |= {name: (f"autosparse_{name}", signature) for name, signature in _BITMASK.items()}
    for name, signature in _SIGNATURES.items():
        functions[name] = f"autosparse_{name}_{isa_of(f'{name}.c', isa)}", signature
    bound: dict[str, Function] = {}
    for name, (symbol, (result, arguments)) in functions.items():
        try:
            function = getattr(loaded, symbol)
        except AttributeError as error:
            raise BuildError(f"{path} was compiled without {isa}") from error
        function.restype, function.argtypes = result, arguments
        bound[name] = function
    return Library(path, isa, **bound)
