"""What only a GPU can show. test_triton_threshold.py, test_bitmask_matrix.py and test_gpu_inference.py, which run in
Triton's interpreter elsewhere, run compiled where there is one."""

import copy

import pytest
import torch
from torch import nn

from hf_autosparse import AutoSparseConfig, functional, inference_report, sparsify, to_inference
from hf_autosparse.functional import n_of_m_mask
from hf_autosparse.inference import measure as crossover
from hf_autosparse.kernels import annealed_soft_threshold
from hf_autosparse.kernels.triton import availability as gpu
from hf_autosparse.kernels.triton.bitmask_matrix import BitmaskMatrix

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor:UserWarning"),
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_AUTOSPARSE_CACHE", str(tmp_path))


def weight_of(rows, cols, sparsity, dtype=torch.bfloat16):
    generator = torch.Generator("cuda").manual_seed(0)
    weight = torch.randn(rows, cols, device="cuda", generator=generator)
    return (weight * (torch.rand(rows, cols, device="cuda", generator=generator) >= sparsity)).to(dtype)


def test_the_kernels_are_there():
    assert gpu.is_available(), gpu.status()


@pytest.mark.parametrize("threshold_shape", [(1,), (3000, 1), (1, 5001)], ids=str)
def test_threshold_on_a_large_weight_is_the_references_and_the_same_in_every_run(threshold_shape):
    generator = torch.Generator("cuda").manual_seed(0)
    weight = torch.randn(3000, 5001, device="cuda", generator=generator)
    threshold = torch.rand(threshold_shape, device="cuda", generator=generator)
    grad = torch.randn(3000, 5001, device="cuda", generator=generator)
    results = []
    for function in (annealed_soft_threshold, annealed_soft_threshold, functional.annealed_soft_threshold):
        w, t = weight.clone().requires_grad_(), threshold.clone().requires_grad_()
        output = function(w, t, 0.5, None)
        output.backward(grad)
        results.append((output, w.grad, t.grad))
    first, again, reference = results
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(first[0], reference[0]) and torch.equal(first[1], reference[1])
    torch.testing.assert_close(first[2], reference[2], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_training_under_autocast_is_that_of_plain_torch(granularity, monkeypatch):
    torch.manual_seed(0)
    config = AutoSparseConfig(first_last="none", threshold_init={"sparsity": 0.6}, threshold_granularity=granularity)
    one = sparsify(nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 32)).cuda(), config)
    other = copy.deepcopy(one)
    x = torch.randn(40, 96, device="cuda")
    losses = []
    for model, there in ((one, True), (other, False)):
        monkeypatch.setattr(gpu, "_choice", (there, "for this test"))
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(x).float().square().mean()
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == losses[1]
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        if name.endswith("threshold"):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)
        else:
            assert torch.equal(a.grad, b.grad), name


@pytest.mark.parametrize("tokens", [1, 3, 16])
@pytest.mark.parametrize(("rows", "cols"), [(4096, 4096), (513, 11001)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bitmask_product_of_a_large_weight(dtype, rows, cols, tokens):
    weight = weight_of(rows, cols, 0.8, dtype)
    x = torch.randn(tokens, cols, device="cuda").to(dtype)
    matrix = BitmaskMatrix(weight)
    product, exact = matrix.product(x), x.double() @ weight.double().T
    assert torch.equal(product, matrix.product(x))
    tolerance = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(product.double(), exact, rtol=tolerance, atol=tolerance * float(exact.abs().max()))


@pytest.mark.parametrize("tokens", [1, 16, 300])
def test_semi_structured_product(tokens):
    weight = weight_of(256, 512, 0.0)
    weight *= n_of_m_mask(weight.abs(), 2, 4)
    dense = nn.Sequential(nn.Linear(512, 256)).to("cuda", torch.bfloat16)
    dense[0].weight.data.copy_(weight)
    model = to_inference(copy.deepcopy(dense), "semi_structured")
    assert inference_report(model).rows[0].bytes < weight.nbytes
    x = torch.randn(tokens, 512, device="cuda", dtype=torch.bfloat16)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), dense(x), rtol=0.02, atol=0.05)


def test_auto_measures_on_the_gpu_and_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setattr(crossover, "TOKENS", (1, 16))
    model = nn.Sequential(nn.Linear(2048, 1024)).to("cuda", torch.bfloat16)
    model[0].weight.data.copy_(weight_of(1024, 2048, 0.9))
    (row,) = inference_report(to_inference(model)).rows
    assert "measured" in row.reason and row.backend in ("dense", "bitmask")
    (file,) = tmp_path.glob("crossover-*.json")
    assert torch.cuda.get_device_name() in file.read_text()


def test_in_a_cuda_graph():
    model = nn.Sequential(nn.Linear(1024, 512)).to("cuda", torch.bfloat16)
    model[0].weight.data.copy_(weight_of(512, 1024, 0.8))
    to_inference(model, "bitmask")
    x = torch.randn(1, 1024, device="cuda", dtype=torch.bfloat16)
    with torch.inference_mode():
        expected = model(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = model(x)
        output.zero_()
        graph.replay()
        assert torch.equal(output, expected)
