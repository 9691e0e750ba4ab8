"""The Triton kernels of the soft threshold against the reference in functional.py."""

import sys

import pytest
import torch

from hf_autosparse import functional, kernels
from hf_autosparse.functional import soft_threshold
from hf_autosparse.kernels import annealed_soft_threshold
from hf_autosparse.kernels.triton import availability as gpu
from threshold_example import example

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy, which the interpreter uses

# (weight, threshold): one for the layer, one for each output of a Linear, Conv2d, Conv1D; one tile and several
SHAPES = [
    ((7,), (1,)),
    ((33, 17), (1,)),
    ((3, 8193), (1,)),
    ((33, 17), (33, 1)),
    ((5, 5000), (5, 1)),
    ((8, 3, 3, 3), (8, 1, 1, 1)),
    ((33, 70), (1, 70)),
    ((70, 130), (1, 130)),
]


@pytest.fixture
def kernel(triton_device):
    from hf_autosparse.kernels.triton import threshold as triton_threshold

    return triton_threshold


def reference(weight, threshold, grad, alpha, dtype):
    """Effective weight and gradients by plain torch; the effective weight goes to `dtype` as a product converts it."""
    weight, threshold = weight.clone().requires_grad_(), threshold.clone().requires_grad_()
    output = functional.annealed_soft_threshold(weight, threshold, alpha, None).to(dtype)
    output.backward(grad)
    return output.detach(), weight.grad, threshold.grad


def equal(a, b):
    """To the bit, up to the payload of NaN."""
    return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("shape", "threshold_shape"), SHAPES, ids=str)
def test_agrees_with_the_reference(shape, threshold_shape, alpha, kernel, triton_device):
    weight, threshold, grad = (tensor.to(triton_device) for tensor in example(shape, threshold_shape))
    layout = kernel.layout(weight, threshold)
    expected, expected_weight, eager = reference(weight, threshold, grad, alpha, torch.float32)
    assert equal(kernel.forward(weight, threshold, layout, torch.float32), expected)
    grad_weight, grad_threshold = kernel.backward(weight, threshold, grad, alpha, layout)
    assert equal(grad_weight, expected_weight)
    *_, exact = reference(weight.double(), threshold.double(), grad.double(), alpha, torch.float64)
    assert grad_threshold.shape == threshold.shape
    error, eager_error = ((x.double() - exact).abs().max() for x in (grad_threshold, eager))
    assert error <= 2 * eager_error + torch.finfo(torch.float32).eps * exact.abs().max()
    again = kernel.backward(weight, threshold, grad, alpha, layout)
    assert equal(again[0], grad_weight) and equal(again[1], grad_threshold)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("master", ["float32", "as the output"])
@pytest.mark.parametrize(("shape", "threshold_shape"), [SHAPES[1], SHAPES[3], SHAPES[6]], ids=str)
def test_half_precision(shape, threshold_shape, master, dtype, kernel, triton_device):
    weight, threshold, grad = (tensor.to(triton_device) for tensor in example(shape, threshold_shape))
    weight, grad = weight if master == "float32" else weight.to(dtype), grad.to(dtype)
    layout = kernel.layout(weight, threshold)
    expected, expected_weight, expected_threshold = reference(weight, threshold, grad, 0.5, dtype)
    assert equal(kernel.forward(weight, threshold, layout, dtype), expected)
    grad_weight, grad_threshold = kernel.backward(weight, threshold, grad, 0.5, layout)
    assert equal(grad_weight, expected_weight)
    torch.testing.assert_close(grad_threshold, expected_threshold, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threshold", [0.0, -0.25, 1e-30, float("inf"), float("nan")])
def test_extreme_values_to_the_bit(threshold, kernel, triton_device):
    inf, nan = float("inf"), float("nan")
    weight = torch.tensor([0.0, 1e-30, -1e-30, 1.0, -2.0, 3e38, inf, -inf, nan], device=triton_device)
    threshold = torch.tensor([threshold], device=triton_device)
    layout = kernel.layout(weight, threshold)
    assert equal(kernel.forward(weight, threshold, layout, torch.float32), soft_threshold(weight, threshold))
    for grad in (torch.ones_like(weight), torch.full_like(weight, nan), torch.full_like(weight, inf)):
        expected = reference(weight, threshold, grad, 0.0, torch.float32)
        grad_weight, grad_threshold = kernel.backward(weight, threshold, grad, 0.0, layout)
        assert equal(grad_weight, expected[1]) and equal(grad_threshold, expected[2])


def test_a_gradient_that_is_not_contiguous(kernel, triton_device):
    weight, threshold, grad = (tensor.to(triton_device) for tensor in example((20, 30), (1,)))
    layout = kernel.layout(weight, threshold)
    expected = kernel.backward(weight, threshold, grad, 0.3, layout)
    result = kernel.backward(weight, threshold, grad.T.contiguous().T, 0.3, layout)
    assert equal(result[0], expected[0]) and equal(result[1], expected[1])


@pytest.mark.parametrize(
    ("weight", "threshold"),
    [
        (torch.ones(2, 2, dtype=torch.float64), torch.ones(1)),
        (torch.ones(4, 2).T, torch.ones(1)),
        (torch.ones(0, 2), torch.ones(1)),
        (torch.ones(2, 3, 4), torch.ones(1, 3, 1)),
        (torch.ones(2, 3), torch.ones(3)),
        (torch.ones(2, 2), torch.ones(1, device="meta")),
    ],
    ids=["float64", "not contiguous", "empty", "inner dimension", "fewer dimensions", "two devices"],
)
def test_anything_else_takes_plain_torch(weight, threshold, kernel):
    assert kernel.layout(weight, threshold) is None


# ---- functional.py takes the kernels ----


@pytest.fixture
def dispatched(kernel, monkeypatch):
    """Sends every tensor to the Triton kernels and lists the dtypes of the effective weights that they make."""
    made, forward = [], kernel.forward
    monkeypatch.setattr(gpu, "takes", lambda tensor: True)
    monkeypatch.setattr(gpu, "_choice", (True, "for this test"))
    monkeypatch.setattr(kernel, "forward", lambda *a: made.append(a[-1]) or forward(*a))
    return made


def step(weight, threshold, x, **options):
    """Loss and gradients of a product with the effective weight."""
    weight, threshold = weight.clone().requires_grad_(), threshold.clone().requires_grad_()
    loss = torch.nn.functional.linear(x, annealed_soft_threshold(weight, threshold, 0.5, **options)).square().sum()
    loss.backward()
    return loss.detach(), weight.grad, threshold.grad


def test_dispatch(dispatched, triton_device, monkeypatch):
    weight, threshold, x = (tensor.to(triton_device) for tensor in example((33, 17), (33, 1)))
    result = step(weight, threshold, x)
    assert dispatched == [torch.float32]
    step(weight, threshold, x, backward_sparsity=0.5)
    step(weight.double(), threshold, x.double())
    assert len(dispatched) == 1
    monkeypatch.setattr(gpu, "_choice", (False, "for this test"))
    expected = step(weight, threshold, x)
    assert len(dispatched) == 1
    assert equal(result[0], expected[0]) and equal(result[1], expected[1])
    torch.testing.assert_close(result[2], expected[2])


def test_autocast_gets_its_own_dtype_in_training_only(dispatched, triton_device, monkeypatch):
    weight, threshold, x = (tensor.to(triton_device) for tensor in example((33, 17), (1,)))
    with torch.autocast(triton_device, torch.bfloat16):
        result = step(weight, threshold, x)
        with torch.no_grad():
            assert annealed_soft_threshold(weight, threshold, 0.5).dtype == torch.float32  # for saving
    assert dispatched == [torch.bfloat16, torch.float32]
    monkeypatch.setattr(gpu, "_choice", (False, "for this test"))
    with torch.autocast(triton_device, torch.bfloat16):
        expected = step(weight, threshold, x)
    assert equal(result[0], expected[0]) and equal(result[1], expected[1])
    torch.testing.assert_close(result[2], expected[2])


def test_a_dtype_asked_for(dispatched, triton_device, monkeypatch):
    weight, threshold, _ = (tensor.to(triton_device) for tensor in example((33, 17), (1,)))
    expected = soft_threshold(weight, threshold).bfloat16()
    assert equal(annealed_soft_threshold(weight, threshold, 0.5, dtype=torch.bfloat16), expected)
    monkeypatch.undo()
    assert equal(annealed_soft_threshold(weight, threshold, 0.5, dtype=torch.bfloat16), expected)
    assert equal(annealed_soft_threshold(weight, threshold, 0.5, 0.5, dtype=torch.bfloat16), expected)


def test_second_derivatives_take_plain_torch(dispatched, triton_device):
    weight = torch.tensor([0.5, -0.1, -0.7], device=triton_device, requires_grad=True)
    threshold = torch.tensor([0.2], device=triton_device)
    loss = annealed_soft_threshold(weight, threshold, 0.0, dtype=torch.bfloat16).float().pow(3).sum()
    (first,) = torch.autograd.grad(loss, weight, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), weight)
    torch.testing.assert_close(second, torch.tensor([1.8, 0.0, -3.0], device=triton_device), rtol=0.01, atol=0)


# ---- Whether they are to be had ----


def test_the_small_example_is_computed_right(kernel, triton_device):
    assert gpu._computes(triton_device)


@pytest.fixture
def undecided(monkeypatch):
    monkeypatch.setattr(gpu, "_choice", None)
    monkeypatch.delenv(gpu.VARIABLE, raising=False)


def test_without_triton_the_log_says_so_once(undecided, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(gpu, "takes", lambda tensor: True)
    for _ in range(2):
        assert annealed_soft_threshold(torch.ones(2), torch.tensor([0.25]), 0.0).tolist() == [0.75, 0.75]
    assert caplog.text.count("GPU kernels: plain torch, because triton cannot be imported") == 1


@pytest.mark.parametrize(
    ("computes", "reason"),
    [
        (lambda device: 1 / 0, "fails: ZeroDivisionError: division by zero"),
        (lambda device: False, "computes wrong results"),
    ],
)
def test_kernels_that_do_not_work_are_not_used(computes, reason, kernel, undecided, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(gpu, "_computes", computes)
    assert gpu.threshold() is None and gpu.status().startswith("plain torch, because triton")
    assert gpu.status().endswith(reason)


def test_the_variable_turns_them_off(undecided, monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, "torch")
    assert not gpu.is_available() and gpu.status() == "plain torch (HF_AUTOSPARSE_KERNELS=torch)"


def test_on_the_cpu_nothing_is_decided(undecided):
    annealed_soft_threshold(torch.ones(2), torch.tensor([0.25]), 0.0)
    assert gpu._choice is None
