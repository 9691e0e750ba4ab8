"""The bitmask format by hand and there and back; its Triton product against the dense one."""

import pytest
import torch

from hf_autosparse.kernels.triton.bitmask_matrix import BitmaskMatrix

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy, which the interpreter uses


def pruned(rows, cols, sparsity, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows * cols)
    weight = torch.randn(rows, cols, generator=generator)
    return (weight * (torch.rand(rows, cols, generator=generator) >= sparsity)).to(dtype)


SHAPES = [(1, 1), (16, 256), (17, 257), (33, 70), (5, 600), (40, 31)]


def test_the_format_by_hand():
    weight = torch.zeros(17, 257)
    weight[0, 0], weight[0, 33], weight[1, 2], weight[0, 256], weight[16, 31] = 1, 2, 3, 4, 5
    matrix = BitmaskMatrix(weight)
    assert matrix.bits.shape == (2, 2, 16, 8) and matrix.bits.count_nonzero() == 5
    assert matrix.bits[0, 0, 0].tolist() == [1, 2, 0, 0, 0, 0, 0, 0]  # columns 0 and 32 + 1
    assert matrix.bits[0, 0, 1, 0] == 4 and matrix.bits[0, 1, 0, 0] == 1
    assert matrix.bits[1, 0, 0, 0] == -(2**31)  # column 31 is the sign bit
    assert matrix.value.tolist() == [1, 2, 3, 4, 5] and matrix.offset.tolist() == [[0, 3], [4, 5]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sparsity", [0.0, 0.8, 1.0])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_there_and_back(rows, cols, sparsity, dtype):
    weight = pruned(rows, cols, sparsity, dtype)
    assert torch.equal(BitmaskMatrix(weight).to_dense(), weight)
    assert torch.equal(BitmaskMatrix(weight.T).to_dense(), weight.T)  # not contiguous


@pytest.mark.parametrize(("sparsity", "ratio"), [(0.8, 0.2625), (0.9, 0.1625)])
def test_it_reads_one_bit_a_weight_and_16_a_non_zero(sparsity, ratio):
    weight = torch.ones(512, 1024, dtype=torch.bfloat16)
    weight.view(-1)[: round(sparsity * weight.numel())] = 0
    assert BitmaskMatrix(weight).bytes / weight.nbytes == pytest.approx(ratio, abs=0.002)  # and 8 bytes a tile


@pytest.mark.parametrize("weight", [torch.ones(4), torch.ones(2, 2, dtype=torch.float64)])
def test_a_weight_that_it_cannot_take(weight):
    with pytest.raises(ValueError, match=r"weight has shape .* and dtype .*: it must have two dimensions"):
        BitmaskMatrix(weight)


# ---- The product ----


def check(weight, tokens, device, bias=False, splits=None):
    from hf_autosparse.kernels.triton import matvec as triton_matvec

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, weight.shape[1], generator=generator).to(weight.dtype)
    b = torch.randn(weight.shape[0], generator=generator).to(weight.dtype) if bias else None
    on_device = (None if t is None else t.to(device) for t in (weight, x, b))
    weight_there, x_there, b_there = on_device
    matrix = BitmaskMatrix(weight_there)
    result = triton_matvec.product(matrix.bits, matrix.offset, matrix.value, matrix.rows, x_there, b_there, splits)
    assert result.dtype == weight.dtype
    exact = x.double() @ weight.double().T + (0 if b is None else b.double())
    # float32 sums: each of the cols + 1 terms may be off by an ulp of the sum of magnitudes; then one rounding
    size = x.double().abs() @ weight.double().abs().T + (0 if b is None else b.double().abs())
    eps = torch.finfo(torch.float32).eps
    bound = eps * size * 8 + torch.finfo(weight.dtype).eps * exact.abs()
    assert ((result.cpu().double() - exact).abs() <= bound).all()


@pytest.fixture
def one_program_a_row_block(monkeypatch, triton_device):
    if triton_device == "cpu":
        from hf_autosparse.kernels.triton import matvec as triton_matvec

        monkeypatch.setattr(triton_matvec, "_multiprocessors", lambda device: 0)
    return triton_device


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (17, 257), (33, 70)])
def test_product(rows, cols, tokens, one_program_a_row_block):
    check(pruned(rows, cols, 0.8), tokens, one_program_a_row_block, bias=tokens == 3)


@pytest.mark.parametrize("tokens", [1, 3, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, tokens, one_program_a_row_block):
    check(pruned(33, 300, 0.7, dtype), tokens, one_program_a_row_block, bias=True)


@pytest.mark.parametrize("tokens", [1, 3])
def test_empty_and_full_rows(tokens, one_program_a_row_block):
    weight = pruned(20, 300, 0.6)
    weight[3], weight[7:9], weight[19] = 0, 1.5, 0
    check(weight, tokens, one_program_a_row_block, bias=True)
    check(torch.zeros(20, 300), tokens, one_program_a_row_block, bias=True)
    check(torch.ones(20, 300), tokens, one_program_a_row_block)


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("splits", [2, 9])
def test_split_columns(splits, tokens, triton_device):
    for dtype in (torch.float32, torch.bfloat16):
        check(pruned(20, 900, 0.7, dtype), tokens, triton_device, bias=splits != 2, splits=splits)


def test_infinite_and_nan_activations_come_out_as_of_the_dense_product(one_program_a_row_block):
    weight = pruned(20, 40, 0.8).to(one_program_a_row_block)
    matrix = BitmaskMatrix(weight)
    for bad in (float("inf"), float("nan")):
        for tokens in (1, 3):
            x = torch.ones(tokens, 40, device=one_program_a_row_block)
            x[-1, 5] = bad
            assert torch.equal(matrix.product(x).isnan(), (x @ weight.T).isnan())


def test_shapes_of_the_product(one_program_a_row_block):
    matrix = BitmaskMatrix(pruned(20, 40, 0.8).to(one_program_a_row_block))
    ones = torch.ones(2, 3, 40, device=one_program_a_row_block)
    assert matrix.product(ones).shape == (2, 3, 20) and matrix.product(ones[0, 0]).shape == (20,)
    assert matrix.product(ones.repeat(3, 1, 1)) is None
