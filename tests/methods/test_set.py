"""SET's update rule."""

import torch
from torch import nn

from hf_autosparse import SETConfig, sparsify
from update_rules import update


def test_set_drops_the_smallest_and_grows_at_random():
    torch.manual_seed(0)
    layer = sparsify(nn.Linear(20, 10, bias=False), SETConfig(first_last="none", target_sparsity=0.5, every=1))
    before = layer.sparsifier.kept.clone()
    grown = update(layer, 25, of=100)
    count = round(0.3 * 0.75 * 100)  # cosine_decay(1/3) = 0.75
    after = layer.sparsifier.kept
    assert before.sum() == after.sum() == 100
    survivors = layer.weight.abs().where(before, -1).flatten().topk(100 - count).indices
    assert after.flatten()[survivors].all()
    assert torch.equal(grown, after & ~before) and 0 < grown.sum() <= count
    assert not layer.weight[grown].any()
