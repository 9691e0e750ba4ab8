"""How the C library comes about: built once, cached, chosen by the processor, and what happens where it cannot be."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_autosparse import kernels
from hf_autosparse.kernels.cpu import binding, build
from hf_autosparse.kernels.cpu import library as c_library

pytestmark = pytest.mark.skipif(
    kernels.library() is None, reason=f"needs the C kernels, and this machine has none: {kernels.status()}"
)

STATUS = "from hf_autosparse import kernels; print(kernels.status())"
LOGGING = "import logging; logging.basicConfig(format='%(levelname)s %(message)s', level='INFO')\n"


@pytest.fixture
def run(tmp_path):
    """Runs a program in a process of its own, with an empty cache and no installed library."""

    def start(program: str = STATUS, **variables: str) -> subprocess.Popen:
        hide = "import hf_autosparse.kernels.cpu.binding as b; b.__file__ = '/nowhere/binding.py'\n"
        environment = {**os.environ, "HF_AUTOSPARSE_CACHE": str(tmp_path / "cache"), **variables}
        return subprocess.Popen(
            [sys.executable, "-c", LOGGING + hide + program],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def outcome(process: subprocess.Popen) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return out, err


def test_first_use_builds_once_whoever_comes_first(run, tmp_path):
    results = [outcome(process) for process in [run(), run()]]
    (built,) = (tmp_path / "cache").iterdir()  # no draft is left behind
    stamp = built.stat().st_mtime_ns
    results.append(outcome(run()))
    assert built.stat().st_mtime_ns == stamp
    for out, err in results:
        assert re.fullmatch(rf"C for \w+, {re.escape(str(built))}\n", out)
        assert err.count("INFO hf_autosparse kernels: C for") == 1


def test_without_a_working_compiler_plain_torch_computes_and_the_log_says_why(run, tmp_path):
    (tmp_path / "wrong.h").write_text("#include <string.h>\n#define memcpy(to, from, bytes) memset(to, 0, bytes)\n")
    (tmp_path / "file").touch()
    cases = {
        "CC=/no/such/cc is not there": {"CC": "/no/such/cc"},
        r"false failed: exit status 1": {"CC": "false"},
        r"library\.so|Error|computes wrong results with": {"CC": f"cc -include {tmp_path / 'wrong.h'}"},
        r"Not a directory|File exists": {"HF_AUTOSPARSE_CACHE": str(tmp_path / "file")},
        r"\(HF_AUTOSPARSE_KERNELS=torch\)": {"HF_AUTOSPARSE_KERNELS": "torch"},
    }
    program = "import torch\n" + STATUS
    program += (
        "; kernels.status(); print(kernels.annealed_soft_threshold(torch.ones(2), torch.tensor([0.5]), 0.0).tolist())"
    )
    processes = [run(program, **variables) for variables in cases.values()]
    for reason, process in zip(cases, processes, strict=True):
        out, err = outcome(process)
        assert out.startswith("plain torch") and re.search(reason, out), out
        assert "[0.5, 0.5]" in out
        assert err.count("WARNING hf_autosparse kernels: plain torch") == 1


def test_an_unknown_choice_is_refused():
    with pytest.raises(ValueError, match=r"HF_AUTOSPARSE_KERNELS='mmx': unknown; allowed here are 'auto', 'torch' and"):
        c_library._load("mmx")


def test_what_the_processor_cannot_run_is_refused(monkeypatch):
    monkeypatch.setattr(c_library, "supported_isas", lambda: ["sse2"])
    monkeypatch.setattr(c_library, "instruction_sets", lambda: {"sse2": (), "avx2": ()})
    with pytest.raises(ValueError, match="HF_AUTOSPARSE_KERNELS='avx2': this processor cannot run it"):
        c_library._load("avx2")


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ("DEFAULT", ["sse2"]),
        ("AVX2", ["avx2", "sse2"]),
        ("AVX512", ["avx512", "avx2", "sse2"]),
        ("AVX512_VNNI", ["avx512", "avx2", "sse2"]),
    ],
)
def test_instruction_set_follows_what_torch_found(capability, expected, monkeypatch):
    monkeypatch.setattr(binding, "instruction_sets", lambda: build._ISAS["x86_64"])
    monkeypatch.setattr(binding, "processor_flags", set)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert binding.supported_isas() == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("flags : avx512f avx512_vnni", ["avx512"]),
        ("flags : avx512_vbmi2 avx512_vnni", ["avx512vbmi2", "avx512"]),
        (
            "vendor_id : AuthenticAMD\nflags : avx512_bf16 avx512_vbmi2 avx512_vnni",
            ["avx512bf16", "avx512vbmi2", "avx512"],
        ),
        (
            "vendor_id : GenuineIntel\nflags : avx512_bf16 avx512_vbmi2 avx512_vnni",
            ["avx512vbmi2", "avx512bf16", "avx512"],
        ),
    ],
)
def test_beyond_avx512_linux_says_what_there_is(said, expected, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{said}\n\nprocessor : 1\nflags : avx512_vbmi2 avx512_vnni\n")
    monkeypatch.setattr(binding, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(binding, "instruction_sets", lambda: build._ISAS["x86_64"])
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert binding.supported_isas() == [*expected, "avx2", "sse2"]
    monkeypatch.setattr(binding, "_CPUINFO", tmp_path / "nothing")
    assert binding.supported_isas() == ["avx512", "avx2", "sse2"]


def test_sources_are_compiled_for_the_instruction_sets_they_gain_from():
    assert build.isa_of("threshold.c", "avx512bf16") == "avx512"
    assert build.isa_of("bitmask_matmul.c", "avx512bf16") == "avx512bf16"
    assert build.isa_of("threshold.c", "avx2") == "avx2"


def test_an_instruction_set_the_compiler_did_not_know_is_not_offered():
    path = kernels.library().path
    with pytest.raises(build.BuildError, match="was compiled without avx1024"):
        binding.bind(path, "avx1024")


def test_the_name_changes_with_the_sources(tmp_path, monkeypatch):
    before = build.library_name()
    for source in build._SOURCES.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(build, "_SOURCES", tmp_path)
    assert build.library_name() == before
    (tmp_path / "threshold.c").write_bytes(b"int x;\n")
    assert build.library_name() != before


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_torchs_openmp_is_the_only_one():
    """In a process of its own: other libraries bring one too (scikit-learn)."""
    program = """
from pathlib import Path
from hf_autosparse import kernels
kernels.library()
print({line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line})
"""
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert len(ast.literal_eval(printed)) == 1, printed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_works_in_a_forked_child():
    """The parent's OpenMP threads don't exist in the child: waiting for them would never end."""
    program = """
import os, signal, torch
from hf_autosparse import kernels
torch.set_num_threads(2)
weight, x = torch.randn(512, 512), torch.randn(64, 512)
matrix = kernels.SparseMatrix(weight, kernels.library())
expected = matrix.product(x)
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if torch.equal(matrix.product(x), expected) else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)
