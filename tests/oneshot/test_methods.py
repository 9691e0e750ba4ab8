"""Each method on matrices of a few numbers, against results by hand or by least squares."""

import pytest
import torch
from torch import tensor

from hf_autosparse.oneshot.base import Pattern, smallest, smallest_of_groups
from hf_autosparse.oneshot.magnitude import Magnitude
from hf_autosparse.oneshot.sparsegpt import SparseGPT, inverse_factor
from hf_autosparse.oneshot.wanda import Wanda

TWO_OF_FOUR = Pattern(2, 4)


def gram_of(*columns: list[float]) -> torch.Tensor:
    """Of inputs that are given by column: one list of values for each input."""
    x = torch.tensor(columns)
    return (x @ x.T).unsqueeze(0)


def test_smallest_takes_the_first_of_equal_scores_and_exactly_so_many():
    score = tensor([[1.0, 1.0, 1.0, 0.0], [3.0, 1.0, 2.0, 1.0]])
    assert smallest(score, 2).tolist() == [[True, False, False, True], [False, True, False, True]]
    assert not smallest(score, 0).any() and smallest(score, 4).all()
    pairs = tensor([[4.0, 3.0, 2.0, 2.0]])
    assert smallest_of_groups(pairs, Pattern(1, 2)).tolist() == [[False, True, True, False]]


@pytest.mark.parametrize("text", ["2", "4:2", "0:4", "4:4", "a:b", "-1:4", "2:4 "])
def test_a_pattern_is_n_of_m(text):
    assert Pattern.parse("2:4") == TWO_OF_FOUR and str(TWO_OF_FOUR) == "2:4" and TWO_OF_FOUR.sparsity == 0.5
    with pytest.raises(
        ValueError, match="pattern = '.*' is not allowed: use N:M with 0 < N < M, such as '2:4', or None"
    ):
        Pattern.parse(text)


def test_magnitude_compares_the_whole_layer():
    weight = tensor([[[1.0, -8.0, 7.0, 6.0], [-2.0, 3.0, 5.0, -4.0]]])
    expected = [[0.0, -8.0, 7.0, 6.0], [0.0, 0.0, 5.0, 0.0]]
    assert Magnitude().prune(weight, None, 0.5, None).tolist() == [expected]
    expected = [[0.0, -8.0, 7.0, 0.0], [0.0, 0.0, 5.0, -4.0]]
    assert Magnitude().prune(weight, None, 0.5, TWO_OF_FOUR).tolist() == [expected]


def test_magnitude_of_equal_weights_prunes_the_first_ones():
    weight = torch.ones(1, 2, 3)
    assert Magnitude().prune(weight, None, 0.5, None).tolist() == [[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]]


def test_wanda_weighs_by_the_inputs_norm_and_compares_within_an_output():
    weight = tensor([[[4.0, -3.0, 2.0, 1.0], [0.1, 0.2, -0.3, 0.4]]])
    gram = gram_of([1.0, 0.0], [0.6, 0.8], [3.0, 4.0], [6.0, 8.0])  # norms 1, 1, 5, 10
    # scores: 4, 3, 10, 10 and 0.1, 0.2, 1.5, 4: every output loses two, however small all of its weights are
    assert torch.equal(Wanda().prune(weight, gram, 0.5, None), tensor([[[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, -0.3, 0.4]]]))
    # scores of another weight: 40, 3 | 10, 20 with 1:2
    weight = tensor([[[40.0, -3.0, 2.0, 2.0]]])
    assert Wanda().prune(weight, gram, 0.5, Pattern(1, 2)).tolist() == [[[40.0, 0.0, 0.0, 2.0]]]


def test_wanda_prunes_inputs_that_are_always_zero_first():
    weight = tensor([[[1.0, 100.0, 2.0, 50.0]]])
    gram = gram_of([1.0, 1.0], [0.0, 0.0], [1.0, -1.0], [0.0, 0.0])
    assert Wanda().prune(weight, gram, 0.5, None).tolist() == [[[1.0, 0.0, 2.0, 0.0]]]
    # all inputs zero: equal scores, the first ones go
    assert Wanda().prune(weight, torch.zeros(1, 4, 4), 0.5, None).tolist() == [[[0.0, 0.0, 2.0, 50.0]]]


def test_sparsegpt_with_independent_inputs_is_wanda_and_moves_nothing():
    """Columns of H that are orthogonal have nothing to make up for each other."""
    weight = tensor([[[4.0, -3.0, 2.0, 1.0]]])
    gram = torch.diag(tensor([1.0, 1.0, 25.0, 100.0])).unsqueeze(0)  # w^2 h: 16, 9, 100, 100
    pruned = SparseGPT(percdamp=1e-6).prune(weight, gram, 0.5, None)
    assert torch.allclose(pruned, tensor([[[0.0, 0.0, 2.0, 1.0]]]))


def test_sparsegpt_by_hand():
    """Two inputs that are equal but for noise: the second takes over what the first did."""
    weight = tensor([[[1.0, 2.0]]])
    gram = gram_of([1.0, 1.0, 0.0], [1.0, 1.0, 0.0]) + torch.eye(2) * 1e-4
    pruned = SparseGPT(percdamp=1e-6).prune(weight, gram, 0.5, None)
    assert torch.allclose(pruned, tensor([[[0.0, 3.0]]]), atol=1e-3)


def test_sparsegpt_makes_up_exactly_as_least_squares():
    """With the mask that it chose: for each pruned weight, in order, the columns behind it solve the least squares."""
    torch.manual_seed(0)
    x = torch.randn(8, 40, dtype=torch.float64)
    x[3] += x[1]
    weight = torch.randn(1, 3, 8)
    gram = (x @ x.T).float().unsqueeze(0)
    damp = 1e-3
    pruned = SparseGPT(percdamp=damp).prune(weight, gram, 0.5, None)[0]
    assert (pruned == 0).sum() == 12
    # The dampening is that of ridge regression: some more rows of inputs, each of one column.
    ridge = (damp * gram[0].diagonal().double().mean()).sqrt() * torch.eye(8, dtype=torch.float64)
    inputs = torch.cat([x, ridge], 1).T  # rows, columns
    for row, result in zip(weight[0].double(), pruned, strict=True):
        row = row.clone()
        for j in range(8):
            if result[j] == 0:
                lost = row[j] * inputs[:, j]
                row[j] = 0
                if j < 7:
                    row[j + 1 :] += torch.linalg.lstsq(inputs[:, j + 1 :], lost.unsqueeze(1)).solution[:, 0]
        assert torch.allclose(row.float(), result, atol=1e-4)


def test_sparsegpt_pruning_one_weight_is_the_best_of_all_solutions():
    torch.manual_seed(1)
    x = torch.randn(4, 30)
    weight = tensor([[[0.01, 2.0, -3.0, 1.0]]])  # the first column is pruned: all others can make up for it
    pruned = SparseGPT(percdamp=1e-6).prune(weight, (x @ x.T).unsqueeze(0), 0.25, None)[0, 0]
    best = torch.linalg.lstsq(x[1:].T, (weight[0, 0] @ x).unsqueeze(1)).solution[:, 0]
    assert pruned[0] == 0 and torch.allclose(pruned[1:], best, atol=1e-4)


def test_sparsegpt_keeps_two_of_four_chosen_with_the_changes_made_so_far():
    torch.manual_seed(2)
    x = torch.randn(8, 50) + torch.randn(1, 50)  # inputs that correlate
    weight = torch.randn(1, 5, 8)
    gram = (x @ x.T).unsqueeze(0)
    pruned = SparseGPT().prune(weight, gram, 0.5, TWO_OF_FOUR)
    assert ((pruned != 0).unflatten(-1, (2, 4)).sum(-1) == 2).all()
    before = ((weight - Magnitude().prune(weight, None, 0.5, TWO_OF_FOUR))[0] @ x).norm()
    assert ((weight - pruned)[0] @ x).norm() < before


def test_sparsegpt_in_blocks_reaches_the_columns_behind():
    torch.manual_seed(3)
    x = torch.randn(12, 60) + torch.randn(1, 60)  # inputs that correlate
    weight = torch.randn(1, 6, 12)
    gram = (x @ x.T).unsqueeze(0)
    whole = SparseGPT(block_size=128).prune(weight, gram, 0.5, Pattern(2, 4))
    blocks = SparseGPT(block_size=4).prune(weight, gram, 0.5, Pattern(2, 4))
    assert torch.allclose(whole, blocks, atol=1e-5)  # a block's mask depends on what is before it only
    unstructured = SparseGPT(block_size=5).prune(weight, gram, 0.5, None)
    assert [(unstructured[..., a : a + 5] == 0).sum().item() for a in (0, 5, 10)] == [15, 15, 6]


def test_sparsegpt_with_inputs_that_are_always_zero():
    weight = tensor([[[1.0, 100.0, 2.0, 50.0]]])
    gram = gram_of([1.0, 1.0], [0.0, 0.0], [1.0, -1.0], [0.0, 0.0])
    assert torch.allclose(SparseGPT().prune(weight, gram, 0.5, None), tensor([[[1.0, 0.0, 2.0, 0.0]]]))
    # not beyond the number asked for
    assert (SparseGPT().prune(weight, gram, 0.25, None) == 0).sum() == 1
    assert (SparseGPT().prune(weight, torch.zeros(1, 4, 4), 0.5, None) == 0).sum() == 2


def test_the_scale_of_inputs_changes_nothing():
    torch.manual_seed(4)
    x = torch.randn(6, 30)
    weight = torch.randn(1, 4, 6)
    gram = (x @ x.T).unsqueeze(0)
    normal = SparseGPT().prune(weight, gram, 0.5, None)
    assert torch.allclose(SparseGPT().prune(weight, gram * 1e-20, 0.5, None), normal, atol=1e-4)


def test_inverse_factor():
    gram = tensor([[4.0, 2.0], [2.0, 4.0]])
    factor = inverse_factor(gram, percdamp=0.25)
    assert torch.allclose(factor.T @ factor, torch.linalg.inv(gram / 4 + 0.25 * torch.eye(2)))
    assert factor[1, 0] == 0


def test_a_hessian_that_is_not_positive_definite():
    with pytest.raises(
        ValueError, match="not positive definite with percdamp = 0.01: give more calibration data, or a la"
    ):
        SparseGPT().prune(torch.ones(1, 1, 2), tensor([[[1.0, 2.0], [2.0, 1.0]]]), 0.5, None)


def test_groups_are_pruned_apart():
    weight = torch.stack([torch.eye(2), 10 * torch.eye(2)])
    gram = torch.eye(2).expand(2, 2, 2).clone()
    for method in (Wanda(), SparseGPT()):
        assert torch.equal(method.prune(weight, gram, 0.5, None) != 0, weight != 0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"percdamp": 0}, r"SparseGPT.percdamp = 0 is not allowed: use a number in \(0, inf\)"),
        ({"block_size": 0}, "SparseGPT.block_size = 0 is not allowed: use a whole number, 1 or more"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        SparseGPT(**settings)


def test_blocks_hold_whole_groups():
    with pytest.raises(ValueError, match="block_size = 6 is not allowed with pattern '2:4': use a multiple of 4"):
        SparseGPT(block_size=6).prune(torch.ones(1, 1, 8), torch.eye(8).unsqueeze(0), 0.5, TWO_OF_FOUR)
