import pytest
import torch

from hf_autosparse.functional import annealed_soft_threshold, soft_threshold, threshold_for_sparsity, top_magnitude_mask

WEIGHT = [0.5, -0.5, 0.1, -0.2, 0.0, 0.25]
THRESHOLD = 0.25
UPSTREAM = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]


def gradients(alpha, backward_sparsity=None):
    weight = torch.tensor(WEIGHT, requires_grad=True)
    threshold = torch.tensor([THRESHOLD], requires_grad=True)
    annealed_soft_threshold(weight, threshold, alpha, backward_sparsity).backward(torch.tensor(UPSTREAM))
    return weight.grad.tolist(), threshold.grad.tolist()


def test_forward_by_hand():
    # 0.25 lies on the threshold: pruned.
    assert soft_threshold(torch.tensor(WEIGHT), torch.tensor([THRESHOLD])).tolist() == [0.25, -0.25, 0, 0, 0, 0]


def test_gradients_by_hand():
    weight_grad, threshold_grad = gradients(alpha=0.5)
    assert weight_grad == [1, 2, 2, 4, 8, 16]
    # -(1 * 1 - 2 * 1 + 2 * 1 - 4 * 1 + 8 * 0 + 16 * 1): signs +, -, +, -, 0, +
    assert threshold_grad == [-13.0]


def test_alpha_one_is_straight_through():
    weight_grad, threshold_grad = gradients(alpha=1.0)
    assert weight_grad == UPSTREAM
    assert threshold_grad == [-(1.0 - 2.0 + 4.0 - 8.0 + 32.0)]


@pytest.mark.parametrize(
    ("backward_sparsity", "expected"),
    [
        (0.5, [1, 2, 0, 0, 0, 16]),  # B: 0.5, -0.5, 0.25
        (0.9, [1, 2, 0, 0, 0, 0]),  # one weight asked for, but B contains the active set
        (0.0, [1, 2, 2, 4, 8, 16]),  # no restriction
    ],
)
def test_backward_sparsity_restricts_both_gradients_to_b(backward_sparsity, expected):
    weight_grad, threshold_grad = gradients(alpha=0.5, backward_sparsity=backward_sparsity)
    assert weight_grad == expected
    signs = [1, -1, 1, -1, 0, 1]
    assert threshold_grad == [-sum(s * g for s, g in zip(signs, expected, strict=True))]


def test_backward_sparsity_with_alpha_zero_is_the_active_set():
    assert gradients(alpha=0.0, backward_sparsity=0.0) == gradients(alpha=0.0)


def str_layer(weight, s):
    """The whole of STR (Kusupati et al. 2020), as plain autograd differentiates it."""
    return weight.sign() * torch.relu(weight.abs() - torch.sigmoid(s))


@pytest.mark.parametrize("shape", [(7,), (33, 17), (8, 3, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_alpha_zero_is_str_to_the_bit(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=generator, dtype=dtype)
    upstream = torch.randn(shape, generator=generator, dtype=dtype)
    results = []
    for layer in (str_layer, lambda w, s: annealed_soft_threshold(w, torch.sigmoid(s), 0.0)):
        weight, s = values.clone().requires_grad_(), torch.full((1,), -0.5, dtype=dtype, requires_grad=True)
        output = layer(weight, s)
        output.backward(upstream)
        results.append((output, weight.grad, s.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert 0 < (results[0][0] == 0).float().mean() < 1


def test_gradcheck_away_from_the_kink():
    weight = torch.tensor([0.9, -0.7, 0.05, -0.02, 0.4], dtype=torch.float64, requires_grad=True)
    s = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)  # T = 0.269
    assert torch.autograd.gradcheck(lambda w, s: annealed_soft_threshold(w, torch.sigmoid(s), 0.0), (weight, s))


def test_threshold_gradient_is_summed_over_what_it_is_broadcast_along():
    weight = torch.tensor([[0.5, 0.1], [-0.5, 0.3]], requires_grad=True)
    threshold = torch.tensor([[0.2], [0.4]], requires_grad=True)
    annealed_soft_threshold(weight, threshold, 0.0).backward(torch.tensor([[1.0, 2.0], [4.0, 8.0]]))
    assert weight.grad.tolist() == [[1, 0], [4, 0]]
    assert threshold.grad.tolist() == [[-1], [4]]


def test_bfloat16_weight_accumulates_the_threshold_gradient_in_float32():
    weight = torch.full((4096,), 0.5, dtype=torch.bfloat16, requires_grad=True)
    threshold = torch.tensor([0.25], requires_grad=True)
    output = annealed_soft_threshold(weight, threshold, 0.0)
    output.backward(torch.ones_like(output))
    assert output.dtype == weight.grad.dtype == torch.bfloat16
    assert threshold.grad.tolist() == [-4096.0]  # bfloat16 stops counting at 256


def test_nothing_but_weight_and_threshold_is_saved():
    saved = []
    weight, threshold = torch.randn(64, requires_grad=True), torch.tensor([0.1], requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        annealed_soft_threshold(weight, threshold, 0.5)
    assert [t.data_ptr() for t in saved] == [weight.data_ptr(), threshold.data_ptr()]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracer does
def test_compiles_without_a_graph_break():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(weight, threshold, alpha):
        return annealed_soft_threshold(weight, threshold, alpha).square().sum()

    for alpha in (0.0, 0.5, 0.25):
        grads = []
        for run in (step, lambda w, t, a: annealed_soft_threshold(w, t, a).square().sum()):
            weight = torch.linspace(-1, 1, 9).requires_grad_()
            threshold = torch.tensor([0.3], requires_grad=True)
            run(weight, threshold, alpha).backward()
            grads.append((weight.grad, threshold.grad))
        torch.testing.assert_close(*grads)


def test_top_magnitude_mask():
    magnitude = torch.tensor([[1.0, 5.0], [3.0, 2.0]])
    assert top_magnitude_mask(magnitude, 0.5).tolist() == [[False, True], [True, False]]
    assert not top_magnitude_mask(magnitude, 0.0).any()
    assert top_magnitude_mask(magnitude, 1.0).all()
    assert top_magnitude_mask(torch.tensor([1.0, 2.0, 2.0]), 1 / 3).tolist() == [False, True, True]  # a tie


@pytest.mark.parametrize(
    ("row", "sparsity", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0], 0.5, 2.5),
        ([4.0, 1.0, 3.0, 2.0], 0.0, 0.5),
        ([0.0, 0.0, 0.0, 2.0], 0.5, 1.0),  # already sparser: below the smallest non-zero weight
        ([0.0, 0.0], 0.5, 0.0),
    ],
)
def test_threshold_for_sparsity(row, sparsity, expected):
    assert threshold_for_sparsity(torch.tensor([row]), sparsity).tolist() == [expected]
