import threading

import pytest
import torch

from hf_autosparse import kernels
from hf_autosparse.kernels.cpu import binding, sparse_matrix
from hf_autosparse.kernels.cpu import library as c_library

pytestmark = pytest.mark.skipif(
    kernels.library() is None, reason=f"needs the C kernels, and this machine has none: {kernels.status()}"
)
SHAPES = [(1, 1), (3, 5), (5, 3), (4, 256), (257, 255), (7, 1030), (300, 64), (70, 513)]
TOKENS = [1, 2, 3, 4, 7, 8, 9, 16, 17, 24, 25, 33, 50]


@pytest.fixture(params=binding.supported_isas())
def library(request):
    chosen, reason = c_library._load(request.param)
    if chosen is None:
        pytest.skip(reason)
    return chosen


def weight_of(rows, cols, sparsity, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator)
    return weight * (torch.rand(rows, cols, generator=generator) >= sparsity)


def assert_exact(result, x, weight, bias):
    """Rounding errors of a float32 sum: a few units in the last place of the sum of the magnitudes."""
    expected = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    magnitude = torch.nn.functional.linear(x.abs(), weight.abs(), bias.abs())
    assert ((result - expected).abs() <= 4 * torch.finfo(torch.float32).eps * magnitude).all()


def test_by_hand(library):
    weight = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0, -3.0, 0.0]])
    x = torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]])
    matrix = kernels.SparseMatrix(weight, library)
    assert matrix.product(x).tolist() == [[201, 0, -30], [402, 0, -60]]
    assert matrix.product(x[:1], torch.tensor([0.5, 7.0, 0.0])).tolist() == [[201.5, 7, -30]]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_sparsity_and_number_of_tokens(shape, library):
    generator = torch.Generator().manual_seed(1)
    for sparsity in (0.0, 0.5, 0.9, 1.0):
        weight = weight_of(*shape, sparsity)
        weight[: shape[0] // 3] = 0  # rows without entries
        bias = torch.randn(shape[0], generator=generator)
        matrix = kernels.SparseMatrix(weight, library)
        for tokens in TOKENS:
            x = torch.randn(tokens, shape[1], generator=generator)
            assert_exact(matrix.product(x, bias), x, weight, bias)


def test_strides_of_the_weight_and_leading_dimensions_of_the_activations(library):
    """A transposed weight is Conv1D's."""
    weight = weight_of(40, 96, 0.8)
    transposed = weight.T.contiguous().T
    assert transposed.stride() == (1, 40)
    x = torch.randn(2, 10, 96)
    result = kernels.SparseMatrix(weight, library).product(x)
    torch.testing.assert_close(result, x @ weight.T)
    for rows, cols in SHAPES:  # packed alike, whatever the strides
        weight, strided = weight_of(rows, cols, 0.7), torch.zeros(rows, 2 * cols)[:, ::2]
        strided.copy_(weight)
        plain = kernels.SparseMatrix(weight, library).arrays
        for other in (weight.T.contiguous().T, strided):
            again = kernels.SparseMatrix(other, library).arrays
            assert all(torch.equal(plain[name], again[name]) for name in ("order", "length", "value", "column"))
    weight = weight_of(40, 96, 0.8)
    assert torch.equal(kernels.SparseMatrix(transposed, library).product(x), result)
    torch.testing.assert_close(kernels.SparseMatrix(weight, library).product(x[1, 4]), result[1, 4])


def test_the_same_bits_for_any_number_of_threads_and_every_time(library, monkeypatch):
    weight, bias = weight_of(700, 520, 0.8), torch.randn(700)
    matrix = kernels.SparseMatrix(weight, library)
    for tokens in (1, 5, 30, 150, 400):
        x = torch.randn(tokens, 520)
        expected = matrix.product(x, bias)
        assert_exact(expected, x, weight, bias)
        for threads in (1, 2, 3, 7):
            monkeypatch.setattr(sparse_matrix, "threads", lambda count=threads: count)
            assert torch.equal(kernels.SparseMatrix(weight, library).product(x, bias), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bfloat16_values_are_the_rounded_weight_in_float32(shape, library):
    for sparsity in (0.0, 0.8, 1.0):
        weight = weight_of(*shape, sparsity)
        rounded = weight.bfloat16().float()
        bias = torch.randn(shape[0])
        matrix, expected = (
            kernels.SparseMatrix(weight, library, torch.bfloat16),
            kernels.SparseMatrix(rounded, library),
        )
        for tokens in TOKENS:
            x = torch.randn(tokens, shape[1])
            assert torch.equal(matrix.product(x, bias), expected.product(x, bias))
    images = torch.randn(2, shape[1], 3, 3)
    assert torch.equal(matrix.convolution(images), expected.convolution(images))


def test_bfloat16_rounds_to_the_nearest_and_ties_to_even(library):
    # 8 bits of precision: 1 + 2**-8 lies midway between 1 and 1 + 2**-7, 1 + 3 * 2**-8 between odd and even
    weight = torch.tensor([[1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8 + 2**-20), 3e38, 1e-40]])
    matrix = kernels.SparseMatrix(weight, library, torch.bfloat16)
    found = [matrix.product(row[None]).item() for row in torch.eye(5)]
    assert found[:3] == [1.0, 1 + 2**-6, -(1 + 2**-7)]
    assert found == weight.bfloat16().float()[0].tolist()


def test_bfloat16_takes_three_bytes_an_entry(library):
    weight = weight_of(512, 512, 0.8)
    entries = kernels.SparseMatrix(weight, library).arrays["column"].numel()
    full, half = (kernels.SparseMatrix(weight, library, dtype).bytes for dtype in (torch.float32, torch.bfloat16))
    assert full - half == 2 * entries


def test_bfloat16_values_have_no_gradient(library):
    matrix = kernels.SparseMatrix(torch.ones(1, 1), library, torch.bfloat16)
    with pytest.raises(ValueError, match="values = torch.bfloat16.*float32"):
        matrix.gradient(torch.ones(1, 1), torch.ones(1, 1), torch.zeros(1, 1))


def test_the_gradient_by_hand(library):
    matrix = kernels.SparseMatrix(torch.tensor([[5.0, 0.0, -5.0], [0.0, 0.0, 5.0]]), library)
    grad, x = torch.tensor([[1.0, 10.0], [2.0, 20.0]]), torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    out = torch.full((2, 3), 7.0)
    assert matrix.gradient(grad, x, out)
    assert out.tolist() == [[9, 7, 15], [7, 7, 150]]  # 7: no entry, not written


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_gradient_of_any_shape_sparsity_and_number_of_tokens(shape, library, monkeypatch):
    generator = torch.Generator().manual_seed(2)
    for sparsity in (0.0, 0.5, 0.9, 1.0):
        weight = weight_of(*shape, sparsity)
        weight[: shape[0] // 3] = 0  # rows without entries
        matrix = kernels.SparseMatrix(weight, library)
        for tokens in (1, 2, 4, 31, 32, 33, 63, 64, 65, 200):
            grad = torch.randn(tokens, shape[0], generator=generator)
            x = torch.randn(tokens, shape[1], generator=generator)
            results = []
            for threads in (1, 2, 3):
                monkeypatch.setattr(sparse_matrix, "threads", lambda count=threads: count)
                transposed = threads == 2  # as Conv1D holds its weight
                out = torch.zeros(shape[::-1]).T if transposed else torch.zeros(shape)
                assert matrix.gradient(grad, x, out)
                results.append(out)
            assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
            expected = (grad.double().T @ x.double()) * (weight != 0)
            magnitude = (grad.abs().T @ x.abs()) * (weight != 0)
            assert ((results[0] - expected).abs() <= 4 * torch.finfo(torch.float32).eps * magnitude).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_is_reported(bad, library, monkeypatch):
    matrix = kernels.SparseMatrix(weight_of(300, 515, 0.95), library)
    for tokens in (1, 3, 70, 130):
        for threads in (1, 2):
            monkeypatch.setattr(sparse_matrix, "threads", lambda count=threads: count)
            grad, x = torch.randn(tokens, 300), torch.randn(tokens, 515)
            assert matrix.gradient(grad, x, torch.zeros(300, 515))
            spoilt = grad.clone()
            spoilt[-1, -1] = bad
            assert not matrix.gradient(spoilt, x, torch.zeros(300, 515))
            x[tokens // 2, 0] = bad
            assert not matrix.gradient(grad, x, torch.zeros(300, 515))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_activation_that_is_not_finite_is_reported(bad, library, monkeypatch):
    matrix = kernels.SparseMatrix(weight_of(300, 515, 0.95), library)
    for tokens in (1, 3, 8, 21, 130):
        for position in (0, 511, 514):
            x = torch.randn(tokens, 515)
            x[tokens - 1, position] = bad
            for threads in (1, 2):
                monkeypatch.setattr(sparse_matrix, "threads", lambda count=threads: count)
                assert matrix.product(x) is None
    assert matrix.product(torch.full((2, 515), 3e38)) is not None  # large is not infinite
    assert matrix.convolution(torch.full((1, 515, 3, 3), bad)) is None


def test_a_weight_that_is_not_finite_is_kept():
    weight = torch.tensor([[float("nan"), 0.0], [0.0, float("inf")], [0.0, 1.0]])
    result = kernels.SparseMatrix(weight, kernels.library()).product(torch.ones(1, 2))
    assert result[0, 0].isnan() and result[0, 1:].tolist() == [float("inf"), 1]


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (1, 5), (4, 2)], ids=str)
@pytest.mark.parametrize("size", [(7, 7), (9, 5), (24, 33)], ids=str)
def test_any_convolution(kernel, size, library):
    generator = torch.Generator().manual_seed(2)
    weight = weight_of(37, 10 * kernel[0] * kernel[1], 0.8)
    bias, x = torch.randn(37, generator=generator), torch.randn(3, 10, *size, generator=generator)
    matrix = kernels.SparseMatrix(weight, library)
    for stride, dilation in ([(1, 1), (1, 1)], [(2, 2), (1, 1)], [(1, 3), (2, 1)]):
        expected = torch.nn.functional.conv2d(x, weight.view(37, 10, *kernel), bias, stride, 0, dilation)
        result = matrix.convolution(x, bias, kernel, stride, dilation)
        torch.testing.assert_close(result, expected)


def test_threads_of_the_caller_do_not_disturb_each_other():
    weight = weight_of(512, 512, 0.8)
    matrix = kernels.SparseMatrix(weight, kernels.library())
    inputs = [torch.randn(tokens, 512) for tokens in (1, 4, 30, 64)]
    expected = [matrix.product(x) for x in inputs]
    wrong = []

    def work():
        for _ in range(20):
            wrong.extend(1 for x, y in zip(inputs, expected, strict=True) if not torch.equal(matrix.product(x), y))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_memory_is_five_bytes_for_a_weight_that_is_not_zero():
    matrix = kernels.SparseMatrix(weight_of(1024, 1024, 0.8), kernels.library())
    assert matrix.bytes < 1024 * 1024 * 0.2 * 5 * 1.06
