"""`to_inference` with the forms for a GPU. Without one the bitmask is said to be for the CPU and runs in Triton's
interpreter, and torch's 2:4 form, which needs the GPU, is replaced by the dense weight."""

import copy
import dataclasses
import pickle

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_autosparse import inference_report, to_inference
from hf_autosparse.functional import n_of_m_mask
from hf_autosparse.inference import measure as measuring
from hf_autosparse.inference.layers import InferenceLinear
from hf_autosparse.kernels import backends as registry
from hf_autosparse.kernels import get_backend, registered_backends
from hf_autosparse.kernels.autotune import Measurement
from hf_autosparse.kernels.cuda.semi_structured import SemiStructuredMatrix
from hf_autosparse.kernels.triton import availability as gpu
from hf_autosparse.kernels.triton.bitmask_matrix import BitmaskMatrix


def pruned(layer, sparsity=0.8):
    with torch.no_grad():
        layer.weight.mul_(torch.rand(layer.weight.shape) >= sparsity)
    return layer


def two_of_four(layer):
    with torch.no_grad():
        layer.weight.mul_(n_of_m_mask(layer.weight.abs(), 2, 4))
    return layer


@pytest.fixture
def device(triton_device, monkeypatch, tmp_path):
    """Where models of these tests are, with the GPU's forms, and only these, on offer there."""
    monkeypatch.setenv("HF_AUTOSPARSE_CACHE", str(tmp_path))
    torch.manual_seed(0)
    if triton_device == "cpu":
        from hf_autosparse.kernels.triton import matvec as triton_matvec

        monkeypatch.setattr(triton_matvec, "_multiprocessors", lambda device: 0)
        monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda weight: weight)
        monkeypatch.setattr(SemiStructuredMatrix, "bytes", 0)
        monkeypatch.setattr(gpu, "_choice", (True, "for this test"))
        here = {
            form.name: dataclasses.replace(form, device="cpu", is_available=lambda: True)
            for form in registered_backends("cuda")
        }
        monkeypatch.setattr(registry, "_registered", here)
    return triton_device


@pytest.fixture
def speedups(monkeypatch):
    """Form -> what `_measure` finds for it."""
    given = {"bitmask": {1: 2.0, 16: 1.2}, "semi_structured": {1: 1.0, 16: 1.1, 256: 1.5}}
    monkeypatch.setattr(measuring, "_measure", lambda *arguments: Measurement(given[arguments[-1].name], 0.0))
    return given


@pytest.fixture
def products(monkeypatch):
    """Lists the forms that make a product."""
    made = []
    for form in (BitmaskMatrix, SemiStructuredMatrix):
        product = form.product
        monkeypatch.setattr(
            form, "product", lambda self, *a, product=product: made.append(type(self)) or product(self, *a)
        )
    return made


@pytest.mark.parametrize("layer", [nn.Linear(50, 33), nn.Linear(50, 33, bias=False), Conv1D(33, 50)], ids=str)
def test_a_bitmask_layer_computes_what_the_dense_one_does(layer, device, products):
    dense = nn.Sequential(pruned(copy.deepcopy(layer))).to(device)
    model = to_inference(copy.deepcopy(dense), "bitmask")
    (row,) = inference_report(model).rows
    assert row.backend == "bitmask" and row.bytes == model[0].matrix_bytes > 0
    with torch.inference_mode():
        for shape in ((50,), (2, 1, 50), (40, 50)):
            x = torch.randn(shape, device=device)
            torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)
        assert len(products) == 3  # the last gave the 40 tokens back
        copied = pickle.loads(pickle.dumps(model))
        assert torch.equal(copied(x), model(x)) and copied[0].backend == "bitmask"
        with torch.autocast(device, torch.bfloat16):
            assert model(x).dtype == torch.bfloat16
        assert len(products) == 5
    back = to_inference(model, "dense")
    assert type(back[0]) is type(layer) and "backend" not in vars(back[0])


def test_half_precision(device, products):
    dense = nn.Sequential(pruned(nn.Linear(64, 32))).to(device, torch.bfloat16)
    model = to_inference(copy.deepcopy(dense), "bitmask")
    x = torch.randn(3, 64, device=device, dtype=torch.bfloat16)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), dense(x), rtol=0.02, atol=0.02)
        assert len(products) == 1
        with pytest.raises(RuntimeError, match="dtype"):
            model(x.float())  # the dense layer's own message


def test_semi_structured(device, products):
    dense = nn.Sequential(two_of_four(nn.Linear(64, 32)), pruned(nn.Linear(32, 64), 0.1)).to(device, torch.bfloat16)
    model = to_inference(copy.deepcopy(dense), "semi_structured")
    assert [row.backend for row in inference_report(model).rows] == ["semi_structured", "dense"]
    x = torch.randn(3, 64, device=device, dtype=torch.bfloat16)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), dense(x), rtol=0.02, atol=0.02)
    assert len(products) == 1


def test_a_weight_that_is_not_two_of_four(device):
    model = nn.Sequential(pruned(nn.Linear(64, 32), 0.4), pruned(nn.Linear(32, 3))).to(device, torch.float16)
    with pytest.raises(ValueError, match="'semi_structured' cannot take 0.weight: not 2:4, more than two of four"):
        to_inference(model, "semi_structured")
    assert type(model[0]) is nn.Linear
    with pytest.raises(ValueError, match="cannot take 1.weight: 3 x 32 is not a multiple of 32 x 64; leave it dense"):
        to_inference(model, "dense", {"1": "semi_structured"})
    model = to_inference(model.float(), "semi_structured")
    assert inference_report(model).rows[0].reason == "float32: the kernels compute in bfloat16 and float16"


def test_auto_takes_the_form_that_gains_most(device, speedups):
    model = nn.Sequential(two_of_four(nn.Linear(64, 32)), pruned(nn.Linear(64, 32))).to(device, torch.bfloat16)
    rows = inference_report(to_inference(model)).rows
    assert [row.backend for row in rows] == ["bitmask", "bitmask"]
    assert model[0].sparse_for == ((1, float("inf")),)
    speedups["semi_structured"] = {1: 1.5, 16: 1.8, 256: 0.9}
    rows = inference_report(to_inference(model, remeasure=True)).rows
    assert [row.backend for row in rows] == ["semi_structured", "bitmask"]  # the other weight is not 2:4
    assert model[0].sparse_for == ((1, 16),)
    assert rows[0].reason == "measured (tokens 1: 1.5x, 16: 1.8x, 256: 0.9x); dense for 256"
    speedups.update(bitmask={1: 1.0}, semi_structured={1: 0.8})
    model = to_inference(model, remeasure=True)
    assert type(model[0]) is type(model[1]) is nn.Linear
    assert inference_report(model).rows[1].reason == "not measured faster (tokens 1: 1.0x)"


def test_a_real_measurement(device, monkeypatch):
    monkeypatch.setattr(measuring, "TOKENS", (1, 64))
    monkeypatch.setattr(measuring, "_ROUNDS", 1)
    monkeypatch.setattr(measuring, "_SECONDS", 0.0)
    monkeypatch.setitem(measuring._LARGE, "cpu", 0)
    layer = nn.Linear(64, 32).to(device, torch.bfloat16)
    assert list(measuring._measure(layer, 0.5, 0, get_backend("bitmask")).speedups) == [1]
    for two in (layer, Conv1D(32, 64).to(device, torch.bfloat16)):
        assert list(measuring._measure(two, 0.5, 0, get_backend("semi_structured")).speedups) == [1, 64]


def test_where_no_kernel_is_there(device, monkeypatch):
    for name in ("bitmask", "semi_structured"):
        none = dataclasses.replace(get_backend(name), is_available=lambda: False, status=lambda: "plain torch")
        monkeypatch.setitem(registry._registered, name, none)
    model = nn.Sequential(pruned(nn.Linear(64, 32))).to(device)
    assert inference_report(to_inference(model)).rows[0].reason == "this machine lacks the Triton kernels"
    with pytest.raises(RuntimeError, match="'bitmask' needs the Triton kernels, but this machine takes plain torch"):
        to_inference(model, "bitmask")


def test_convolutions_stay_dense(device):
    model = to_inference(nn.Sequential(pruned(nn.Conv2d(8, 8, 1))).to(device), "bitmask")
    assert inference_report(model).rows[0].reason == f"a convolution, for which {device} has no backend"


@pytest.mark.parametrize("backend", ["bitmask", "semi_structured"])
def test_on_the_cpu_they_are_refused(backend):
    model = nn.Sequential(pruned(nn.Linear(64, 32)))
    with pytest.raises(ValueError, match=f"'{backend}' computes on 'cuda', but 0.weight is on cpu: call model.to"):
        to_inference(model, backend)
    assert type(model[0]) is nn.Linear


def test_a_model_taken_to_the_cpu_computes_densely(products):
    model = nn.Sequential(pruned(nn.Linear(64, 32)))
    expected, x = copy.deepcopy(model), torch.randn(2, 64)
    model[0].__class__ = InferenceLinear
    model[0].prepare((), "bitmask")
    model[0].sparse_for = ((1, float("inf")),)
    with torch.inference_mode():
        assert torch.equal(model(x), expected(x)) and not products
