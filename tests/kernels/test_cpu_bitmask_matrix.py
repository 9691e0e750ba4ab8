"""Bits and packed non-zeros on a CPU: the format by hand, there and back, and its product on every instruction set."""

import threading

import pytest
import torch

from hf_autosparse.kernels.cpu import binding, bitmask_matrix
from hf_autosparse.kernels.cpu.bitmask_matrix import DTYPES, RowBitmaskMatrix
from hf_autosparse.kernels.cpu.build import BuildError
from hf_autosparse.serialization.bitmask_format import encode

SHAPES = [(1, 1), (3, 5), (5, 64), (26, 65), (7, 1100), (70, 300)]
TOKENS = [1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 32, 33, 50, 70, 300]
KINDS = [(dtype, dtype) for dtype in DTYPES] + [(torch.float32, torch.bfloat16)]  # of the weight, of its values


def libraries():
    try:
        path = binding.library_file()
    except (BuildError, OSError):
        return {}
    found = {}
    for isa in binding.supported_isas():
        try:
            found[isa] = binding.bind(path, isa)
        except BuildError:
            continue
    return found


LIBRARIES = libraries()
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="needs the C kernels, and they cannot be built here")
BEST = next(iter(LIBRARIES.values()), None)


@pytest.fixture(params=LIBRARIES)
def library(request):
    return LIBRARIES[request.param]


def weight_of(rows, cols, sparsity, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator)
    return (weight * (torch.rand(rows, cols, generator=generator) >= sparsity)).to(dtype)


def dense_product(x, weight, bias):
    return torch.nn.functional.linear(x.double(), weight.double(), bias.double())


def test_the_format_by_hand():
    weight = torch.zeros(3, 66)
    weight[0, 1], weight[0, 65], weight[2, 0], weight[2, 63] = 1, 2, 3, 4
    matrix = RowBitmaskMatrix(weight, BEST)
    assert matrix._mask.tolist() == [[2, 2], [0, 0], [1 - 2**63, 0]]  # bit 63 is the sign
    assert matrix._first.tolist() == [0, 2, 2, 4]
    assert matrix._value[:4].tolist() == [1, 2, 3, 4]


def test_a_product_by_hand(library):
    weight = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0, -3.0, 0.0]])
    x = torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]])
    bias = torch.tensor([0.5, 7.0, 0.0])
    for dtype in DTYPES:
        matrix = RowBitmaskMatrix(weight.to(dtype), library)
        assert matrix.product(x.to(dtype)).tolist() == [[201, 0, -30], [402, 0, -60]]
        assert matrix.product(x[0].to(dtype) / 2, bias.to(dtype)).tolist() == [101, 7, -15]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_is_exact_to_rounding(shape, library):
    for sparsity in (0.0, 0.5, 0.9, 1.0):
        weight, bias = weight_of(*shape, sparsity), torch.randn(shape[0])
        weight[: shape[0] // 3] = 0  # rows without entries
        for values in (torch.float32, torch.bfloat16):
            matrix = RowBitmaskMatrix(weight, library, values)
            held = weight.to(values).float()
            for tokens in TOKENS:
                x = torch.randn(tokens, shape[1])
                magnitude = torch.nn.functional.linear(x.abs(), held.abs(), bias.abs())
                error = (matrix.product(x, bias) - dense_product(x, held, bias)).abs()
                assert (error <= 4 * torch.finfo(torch.float32).eps * magnitude).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sixteen_bits_err_at_most_twice_as_much_as_torch(shape, dtype, library):
    for sparsity in (0.0, 0.5, 0.9, 1.0):
        weight, bias = weight_of(*shape, sparsity, dtype), torch.randn(shape[0]).to(dtype)
        matrix = RowBitmaskMatrix(weight, library)
        for tokens in TOKENS:
            x = torch.randn(tokens, shape[1]).to(dtype)
            expected = dense_product(x, weight, bias)
            theirs = (torch.nn.functional.linear(x, weight, bias) - expected).abs().max()
            result = matrix.product(x, bias)
            assert result.dtype is dtype
            ulp = torch.finfo(dtype).eps / 2 * expected.abs().max()  # where torch happens to be exact
            assert (result - expected).abs().max() <= torch.maximum(2 * theirs, ulp)


def rounded_to_int8(tensor):
    """Rows as integers and their scales, by the definition."""
    scale = tensor.float().abs().amax(-1, keepdim=True) / 127
    inverse = torch.where(scale > 0, 1 / scale, 0)
    return (tensor.float() * inverse).round(), scale


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_is_the_product_of_the_rounded_integers(shape, dtype, library):
    weight, bias = weight_of(*shape, 0.5, dtype), torch.randn(shape[0]).to(dtype)
    weight[: shape[0] // 3] = 0
    matrix = RowBitmaskMatrix(weight, library, torch.int8)
    integers, scale = rounded_to_int8(weight)
    torch.testing.assert_close(matrix.to_dense(), (integers * scale).to(dtype))
    for tokens in TOKENS:
        x = torch.randn(tokens, shape[1]).to(dtype)
        x[0] = 0
        x_integers, x_scale = rounded_to_int8(x)
        sums = x_integers.double() @ integers.double().T
        expected = (sums.float() * (x_scale * scale.T) + bias.float()).to(dtype)
        torch.testing.assert_close(matrix.product(x, bias), expected)


def test_the_same_bits_for_any_number_of_threads_and_every_time(library, monkeypatch):
    for dtype, values in [*KINDS, (torch.bfloat16, torch.int8)]:
        weight, bias = weight_of(700, 520, 0.8, dtype), torch.randn(700).to(dtype)
        weight[:300] = 0  # threads get unequal numbers of rows
        for tokens in (1, 5, 30, 150, 400):
            x = torch.randn(tokens, 520).to(dtype)
            expected = RowBitmaskMatrix(weight, library, values).product(x, bias)
            for threads in (1, 2, 3, 7):
                monkeypatch.setattr(bitmask_matrix, "threads", lambda count=threads: count)
                assert torch.equal(RowBitmaskMatrix(weight, library, values).product(x, bias), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_activations_that_are_not_finite_meet_the_zeros_too(bad, library):
    for dtype, values in KINDS:
        weight = weight_of(30, 100, 0.8, dtype)
        matrix = RowBitmaskMatrix(weight, library, values)
        for tokens in (1, 3, 70):
            x = torch.ones(tokens, 100, dtype=dtype)
            x[-1, 99] = bad
            expected = torch.nn.functional.linear(x, weight)
            result = matrix.product(x)
            assert torch.equal(result.isnan(), expected.isnan())
            assert torch.equal(result.isinf(), expected.isinf())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_int8_leaves_activations_that_are_not_finite_to_the_dense_product(bad, library):
    matrix = RowBitmaskMatrix(weight_of(30, 100, 0.8), library, torch.int8)
    for tokens in (1, 3, 70, 300):
        for position in (0, 63, 99):
            x = torch.ones(tokens, 100)
            x[-1, position] = bad
            assert matrix.product(x) is None
    assert matrix.product(torch.full((2, 100), 3e38)) is not None  # large is not infinite


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_of_a_nonzero_comes_back(dtype):
    weight = weight_of(9, 130, 0.7, dtype)
    weight[0, :6] = torch.tensor([-0.0, 0.0, float("inf"), -float("inf"), float("nan"), torch.finfo(dtype).tiny / 2])
    matrix = RowBitmaskMatrix(weight, BEST)
    weight[weight == 0] = 0.0  # -0.0 is a zero like others
    integer = torch.int32 if dtype is torch.float32 else torch.int16
    assert torch.equal(matrix.to_dense().view(integer), weight.view(integer))
    assert torch.equal(matrix.to_dense(slice(3, 7)).view(integer), weight[3:7].view(integer))
    assert matrix.to_dense().dtype is dtype


def test_strides_of_the_weight():
    """A transposed weight is Conv1D's."""
    weight = weight_of(40, 96, 0.8)
    strided = torch.zeros(40, 192)[:, ::2]
    strided.copy_(weight)
    for other in (weight.T.contiguous().T, strided):
        for values in (torch.float32, torch.int8):
            plain, again = RowBitmaskMatrix(weight, BEST, values), RowBitmaskMatrix(other, BEST, values)
            assert torch.equal(plain._mask, again._mask) and torch.equal(plain._value, again._value)


@pytest.mark.parametrize("shape", [*SHAPES, (6, 5, 3, 3), (9, 64)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_packed_weight_goes_straight_into_the_form(shape, dtype, monkeypatch):
    weight = weight_of(shape[0], torch.Size(shape[1:]).numel(), 0.6, dtype).view(shape)
    bitmask, values, sizes = encode(weight)
    straight = RowBitmaskMatrix.from_packed(bitmask, values, sizes.tolist(), BEST)
    assert torch.equal(straight.to_dense(), weight.flatten(1))
    monkeypatch.setattr(bitmask_matrix, "_SCRATCH", 1000)  # several pieces
    for held in [torch.int8] + [torch.bfloat16] * (dtype is torch.float32):
        converted = RowBitmaskMatrix.from_packed(bitmask, values, sizes.tolist(), BEST, held)
        direct = RowBitmaskMatrix(weight.flatten(1), BEST, held)
        assert torch.equal(converted._mask, direct._mask) and torch.equal(converted._value, direct._value)
        x = torch.randn(3, direct.cols).to(dtype)
        assert torch.equal(converted.product(x), direct.product(x))


def test_a_packed_weight_that_does_not_fit_is_refused():
    bitmask, values, shape = encode(weight_of(4, 10, 0.5))
    with pytest.raises(ValueError, match=r"bitmask has shape \(5,\) .* a weight of shape \(4, 20\) has \(10,\)"):
        RowBitmaskMatrix.from_packed(bitmask, values, (4, 20), BEST)
    with pytest.raises(ValueError, match=f"values has 1 elements: the bitmask marks {len(values)}"):
        RowBitmaskMatrix.from_packed(bitmask, values[:1], (4, 10), BEST)


@pytest.mark.parametrize(
    ("weight", "values"),
    [
        (torch.ones(2, 2, dtype=torch.float64), None),
        (torch.ones(2, 2, dtype=torch.bfloat16), torch.float32),
        (torch.ones(0, 2), None),
        (torch.ones(2, 0), None),
    ],
)
def test_what_cannot_be_held_is_refused(weight, values):
    with pytest.raises(ValueError, match="a weight has rows and columns and is one of torch.float32"):
        RowBitmaskMatrix(weight, BEST, values)


def test_too_many_inputs_for_int8_are_refused():
    with pytest.raises(ValueError, match="it has 65537 inputs, and sums of int8 products are exact up to 65536"):
        RowBitmaskMatrix(torch.ones(1, 65537), BEST, torch.int8)
    x = torch.ones(1, 65536)
    assert RowBitmaskMatrix(x, BEST, torch.int8).product(x).item() == pytest.approx(65536)


def test_memory():
    weight = weight_of(512, 1024, 0.8, torch.bfloat16)
    assert RowBitmaskMatrix(weight, BEST).bytes <= 0.28 * weight.nbytes
    assert RowBitmaskMatrix(weight, BEST, torch.int8).bytes <= 0.18 * weight.nbytes


def test_threads_of_the_caller_do_not_disturb_each_other():
    matrix = RowBitmaskMatrix(weight_of(512, 512, 0.8), BEST)
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
