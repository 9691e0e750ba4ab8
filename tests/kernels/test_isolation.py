"""The choice of the C library does not depend on what its first caller has set. Each case is a fresh process."""

import os
import subprocess
import sys

import pytest

from hf_autosparse import kernels
from paths import PYTHONPATH

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.skipif(
        kernels.library() is None, reason=f"needs the C kernels, and this machine has none: {kernels.status()}"
    ),
]
SETTINGS = {
    "plain": "contextlib.nullcontext()",
    "autocast to bfloat16": "torch.autocast('cpu', torch.bfloat16)",
    "autocast to float16": "torch.autocast('cpu', torch.float16)",
    "default dtype bfloat16": "default_dtype(torch.bfloat16)",
    "default dtype float64": "default_dtype(torch.float64)",
    "inference mode": "torch.inference_mode()",
    "meta device": "torch.device('meta')",
    "no gradients": "torch.no_grad()",
    "anomaly detection": "torch.autograd.detect_anomaly(check_nan=True)",
    "deterministic": "deterministic()",
    "another mode": "Refusing()",
}
# One parent imports torch and the package, and loads no library; each case then runs in a fork of it.
PROGRAM = """
import contextlib, os, sys, traceback, warnings
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from hf_autosparse import kernels
from hf_autosparse.kernels.cpu import library as c_library

warnings.simplefilter("ignore")

@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(torch.float32)

@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)

class Refusing(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        raise AssertionError(f"the check of the library ran {function} in the caller's mode")

def load_under(settings):
    with settings:
        assert kernels.library() is not None, kernels.status()

def load_in_vmap():
    def body(x):
        assert kernels.library() is not None, kernels.status()
        return x * 2
    assert torch.func.vmap(body)(torch.ones(3)).tolist() == [2, 2, 2]

def load_in_grad():
    weight, threshold = torch.tensor([0.5, -0.1]), torch.tensor([0.25])
    def loss(w):
        assert kernels.library() is not None, kernels.status()
        return kernels.annealed_soft_threshold(w, threshold, 0.5).sum()
    assert torch.func.grad(loss)(weight).tolist() == [1.0, 0.5]

def load_in_compiled():
    @torch.compile(backend="eager")
    def run(w):
        return kernels.annealed_soft_threshold(w, torch.tensor([0.25]), 0.5) * 2
    assert run(torch.tensor([0.5, -0.1])).tolist() == [0.5, 0.0]
    assert kernels.library() is not None, kernels.status()

def works_under(dtype):
    with default_dtype(dtype), torch.inference_mode():
        weight, x = torch.eye(70, dtype=torch.float32), torch.randn(5, 70, dtype=torch.float32)
        product = kernels.SparseMatrix(weight, kernels.library()).product(x)
        assert product.dtype == torch.float32 and torch.equal(product, x)

def works_on_meta():
    weight, x = torch.eye(70), torch.randn(5, 70)
    with torch.device("meta"):
        assert torch.equal(kernels.SparseMatrix(weight, kernels.library()).product(x), x)

cases = {name: (lambda settings=settings: load_under(eval(settings))) for name, settings in SETTINGS.items()}
cases |= {"vmap": load_in_vmap, "grad": load_in_grad, "torch.compile": load_in_compiled, "meta product": works_on_meta}
for dtype in (torch.bfloat16, torch.float64):
    cases[f"product with {dtype}"] = lambda dtype=dtype: works_under(dtype)
for name, case in cases.items():
    assert c_library._choice is None
    child = os.fork()
    if child == 0:
        try:
            case()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(name, "works" if os.waitpid(child, 0)[1] == 0 else "fails", sep=": ", flush=True)
"""


def test_each_setting_of_the_caller():
    program = f"SETTINGS = {SETTINGS!r}\n" + PROGRAM
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = dict(line.split(": ") for line in done.stdout.splitlines())
    assert len(results) == len(SETTINGS) + 6
    assert set(results.values()) == {"works"}, (results, done.stderr[-3000:])
