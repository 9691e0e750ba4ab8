"""The C kernels of the soft threshold against the reference in functional.py."""

import pytest
import torch

from hf_autosparse import kernels
from hf_autosparse.functional import soft_threshold
from hf_autosparse.kernels import annealed_soft_threshold
from hf_autosparse.kernels import soft_threshold as choosing
from hf_autosparse.kernels.cpu import binding
from hf_autosparse.kernels.cpu import library as c_library
from hf_autosparse.kernels.cpu import threshold as c_threshold
from threshold_example import example

pytestmark = pytest.mark.skipif(
    kernels.library() is None, reason=f"needs the C kernels, and this machine has none: {kernels.status()}"
)
# (weight, threshold): one for the layer, one for each output of a Linear, Conv2d, Conv1D
SHAPES = [
    ((7,), (1,)),
    ((33, 17), (1,)),
    ((3, 8193), (1,)),
    ((300, 400), (1,)),
    ((33, 17), (33, 1)),
    ((5, 9000), (5, 1)),
    ((8, 3, 3, 3), (8, 1, 1, 1)),
    ((33, 70), (1, 70)),
    ((500, 130), (1, 130)),
]


@pytest.fixture(params=binding.supported_isas())
def library(request, monkeypatch):
    """Makes `annealed_soft_threshold` use the kernels of one instruction set."""
    chosen, reason = c_library._load(request.param)
    if chosen is None:
        pytest.skip(reason)
    monkeypatch.setattr(c_library, "_choice", (chosen, reason))
    return chosen


def run(weight, threshold, grad, alpha):
    weight, threshold = weight.clone().requires_grad_(), threshold.clone().requires_grad_()
    output = annealed_soft_threshold(weight, threshold, alpha)
    output.backward(grad)
    return output.detach(), weight.grad, threshold.grad


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("shape", "threshold_shape"), SHAPES, ids=str)
def test_agrees_with_the_reference(shape, threshold_shape, alpha, library, monkeypatch):
    weight, threshold, grad = example(shape, threshold_shape)
    assert c_threshold.layout(weight, threshold)
    output, grad_weight, grad_threshold = run(weight, threshold, grad, alpha)
    monkeypatch.setattr(c_library, "_choice", (None, "the reference"))
    expected, expected_weight, eager = run(weight, threshold, grad, alpha)
    assert torch.equal(output, expected) and torch.equal(grad_weight, expected_weight)
    *_, exact = run(weight.double(), threshold.double(), grad.double(), alpha)
    error, eager_error = ((x.double() - exact).abs().max() for x in (grad_threshold, eager))
    rounding = torch.finfo(torch.float32).eps * exact.abs().max()
    assert error <= 2 * eager_error + rounding


@pytest.mark.parametrize("threshold", [0.0, -0.25, 1e-30, float("inf"), float("nan")])
def test_extreme_values_to_the_bit(threshold, library):
    inf, nan = float("inf"), float("nan")
    weight = torch.tensor([0.0, 1e-40, -1e-40, 1.0, -2.0, 3e38, inf, -inf, nan]).repeat(5)
    threshold = torch.tensor([threshold])
    result, expected = annealed_soft_threshold(weight, threshold, 0.0), soft_threshold(weight, threshold)
    assert torch.equal(result.isnan(), expected.isnan())
    assert torch.equal(result.nan_to_num().view(torch.int32), expected.nan_to_num().view(torch.int32))


def test_the_same_bits_for_any_number_of_threads(library, monkeypatch):
    for shape, threshold_shape in SHAPES:
        results = []
        for threads in (1, 2, 3):
            monkeypatch.setattr(c_threshold, "threads", lambda count=threads: count)
            results.append(run(*example(shape, threshold_shape), 0.3))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_gradient_that_is_not_contiguous(library):
    weight, threshold, grad = example((20, 30), (1,))
    expected = run(weight, threshold, grad, 0.3)
    transposed = grad.T.contiguous().T
    assert not transposed.is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(run(weight, threshold, transposed, 0.3), expected, strict=True))


@pytest.mark.parametrize(
    ("weight", "threshold"),
    [
        (torch.ones(2, 2, dtype=torch.float64), torch.ones(1)),
        (torch.ones(2, 2, dtype=torch.bfloat16), torch.ones(1)),
        (torch.ones(4, 2).T, torch.ones(1)),
        (torch.ones(0, 2), torch.ones(1)),
        (torch.ones(2, 3, 4), torch.ones(1, 3, 1)),
        (torch.ones(2, 3), torch.ones(3)),
        (torch.ones(2, 2, device="meta"), torch.ones(1)),
    ],
    ids=["float64", "bfloat16", "not contiguous", "empty", "inner dimension", "fewer dimensions", "device"],
)
def test_anything_else_takes_plain_torch(weight, threshold):
    assert c_threshold.layout(weight, threshold) is None
    assert choosing._kernel_layout(weight, threshold) is None


def test_transforms_and_second_derivatives_take_plain_torch():
    weight, threshold = torch.randn(6), torch.tensor([0.2])
    loss = lambda w: annealed_soft_threshold(w, threshold, 0.0).square().sum()  # noqa: E731
    expected = 2 * soft_threshold(weight, threshold)
    torch.testing.assert_close(torch.func.grad(loss)(weight), expected)
    weight.requires_grad_()
    (first,) = torch.autograd.grad(loss(weight), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), weight)
    torch.testing.assert_close(second, 2.0 * (weight.abs() > threshold))


def test_nothing_but_weight_and_threshold_is_saved():
    saved = []
    weight, threshold = torch.randn(64, requires_grad=True), torch.tensor([0.1], requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        annealed_soft_threshold(weight, threshold, 0.5)
    assert [t.data_ptr() for t in saved] == [weight.data_ptr(), threshold.data_ptr()]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracer does
def test_compiles_without_a_graph_break():
    def loss(weight, threshold):
        return annealed_soft_threshold(weight, threshold, 0.5).square().sum()

    grads = []
    for run in (torch.compile(loss, fullgraph=True, backend="aot_eager"), loss):
        weight = torch.linspace(-1, 1, 9).requires_grad_()
        threshold = torch.tensor([0.3], requires_grad=True)
        run(weight, threshold).backward()
        grads.append((weight.grad, threshold.grad))
    torch.testing.assert_close(*grads)
