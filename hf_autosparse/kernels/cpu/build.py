"""Compile the C sources into one shared library.

Standard library only and no relative import: the package's own build runs this file before anything is installed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

_SOURCES = Path(__file__).parents[1] / "csrc"
_ONCE = ("sparse_pack.c", "bitmask_pack.c")
_PER_ISA = ("sparse_matmul.c", "sparse_gradient.c", "screen.c", "threshold.c", "bitmask_matmul.c")
# -ffast-math would change results, and at link time it makes the whole process flush denormals.
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq")
_VBMI2 = (*_AVX512, "-mavx512vbmi2", "-mavx512vnni")
# Machine -> name -> flags; the first runs on every machine of that kind, later ones are better, chosen when loading.
_ISAS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "sse2": (),
        "avx2": _AVX2,
        "avx512": _AVX512,
        "avx512vbmi2": _VBMI2,
        "avx512bf16": (*_VBMI2, "-mavx512bf16"),
    },
    "aarch64": {"neon": ()},
}
# An instruction set that only some sources gain from -> the one that the others are compiled for.
_EXTENDS = {"avx512vbmi2": "avx512", "avx512bf16": "avx512"}
_GAINING = ("bitmask_matmul.c",)
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_TIMEOUT = 300  # seconds, all objects together; it usually takes about five


class BuildError(RuntimeError):
    """No library, and why."""


def instruction_sets() -> dict[str, tuple[str, ...]]:
    """Name -> compiler flags of the instruction sets to compile for on this kind of machine, best last."""
    machine = platform.machine().lower()
    return _ISAS.get(_MACHINES.get(machine, machine), {"generic": ()})


def isa_of(source: str, isa: str) -> str:
    """The instruction set that a source is compiled for where `isa` is chosen."""
    return isa if source in _GAINING else _EXTENDS.get(isa, isa)


def library_name() -> str:
    """File name of the library that these sources make: stale builds are never taken for current ones."""
    digest = hashlib.sha256(repr((platform.system(), instruction_sets(), _FLAGS)).encode())
    for path in sorted(_SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"autosparse-{digest.hexdigest()[:16]}.so"


def compiler() -> list[str]:
    """The command of the C compiler: $CC, else the first of cc, gcc and clang.

    Raises:
        BuildError: there is none.
    """
    named = os.environ.get("CC")
    candidates = [shlex.split(named)] if named else [["cc"], ["gcc"], ["clang"]]
    for command in candidates:
        if path := shutil.which(command[0]):
            return [path, *command[1:]]
    raise BuildError(f"CC={named} is not there" if named else "there is no C compiler (cc, gcc or clang)")


def compiler_key(command: list[str]) -> str:
    """Changes with the compiler, without running it."""
    path = Path(command[0]).resolve()
    stat = path.stat()
    identity = repr((str(path), command[1:], stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(identity.encode()).hexdigest()[:8]


def build(target: Path) -> None:
    """Compile the library and put it at `target` in one step, whole or not at all.

    Instruction sets that the compiler doesn't know are left out. Without OpenMP the library runs on one thread.

    Raises:
        BuildError: no compiler, or it fails; the message has its first words.
        OSError: `target` cannot be written.
    """
    command = compiler()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as scratch:
        try:
            draft = _compile(command, Path(scratch), ["-fopenmp"])
        except BuildError:
            draft = _compile(command, Path(scratch), ["-fopenmp-simd"])
        os.replace(draft, target)


def _compile(command: list[str], scratch: Path, openmp: list[str]) -> Path:
    isas = instruction_sets()
    baseline = next(iter(isas))
    jobs = [(source, baseline) for source in _ONCE]
    jobs += [(source, isa) for isa in isas for source in _PER_ISA if isa_of(source, isa) == isa]
    running = []
    for source, isa in jobs:
        result = scratch / f"{source}-{isa}.o"
        flags = [*_FLAGS, *openmp, *isas[isa], f"-DISA={isa}"]
        running.append((isa, result, _start([*command, *flags, "-c", str(_SOURCES / source), "-o", str(result)])))
    results: dict[str, list[Path]] = {isa: [] for isa in isas}
    failures: dict[str, str] = {}
    for isa, result, process in running:
        error = _finish(process)
        results[isa].append(result)
        if error is not None:
            failures.setdefault(isa, error)
    if baseline in failures:
        raise BuildError(f"{shlex.join(command)} failed: {failures[baseline]}")
    objects = [str(result) for isa, made in results.items() if isa not in failures for result in made]
    draft = scratch / "library.so"
    error = _finish(_start([*command, "-shared", *openmp, *objects, "-o", str(draft)]))
    if error is not None:
        raise BuildError(f"{shlex.join(command)} failed to link: {error}")
    return draft


def _start(command: list[str]) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{command[0]} does not run: {error}") from error


def _finish(process: subprocess.Popen[str]) -> str | None:
    """None if the process ended well, else the end of what it said."""
    try:
        _, said = process.communicate(timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"it ran longer than {_TIMEOUT} s"
    return None if process.returncode == 0 else said.strip()[-500:] or f"exit status {process.returncode}"
