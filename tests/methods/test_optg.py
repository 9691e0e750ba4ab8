"""OptG's scores, by hand."""

import torch

from hf_autosparse import OptGConfig, sparsify
from hf_autosparse.methods import Progress
from update_rules import F, T, linear


def test_optg_scores_collect_what_removal_would_cost():
    layer = sparsify(linear([[1.0, -2, 3, 4]]), OptGConfig(first_last="none", target_sparsity=0.5))
    sparsifier = layer.sparsifier
    sparsifier.kept.copy_(torch.tensor([[T, F, T, F]]))
    sparsifier.begin_step(Progress(50.0, 100.0, 50, 100))
    layer(torch.tensor([[1.0, 1, 2, -1]])).sum().backward()
    assert layer.weight.grad.tolist() == [[1, 0, 2, 0]]
    assert sparsifier.score.grad.tolist() == [[1, -2, 6, -4]]
    with torch.no_grad():
        sparsifier.regularise(layer.weight)
        assert sparsifier.score.grad.tolist() == [[0.5, -1, 3, -2]]  # sigmoid(50 - 100 / 2) = 1 / 2
        sparsifier.score -= sparsifier.score.grad
        sparsifier.end_step(layer.weight, Progress(50.0, 100.0, 50, 100))  # 0.5 * 1 / 2 of 4
        assert sparsifier.kept.tolist() == [[T, T, F, T]]
        sparsifier.end_step(layer.weight, Progress(100.0, 100.0, 100, 100))
        assert sparsifier.kept.tolist() == [[F, T, F, T]]
