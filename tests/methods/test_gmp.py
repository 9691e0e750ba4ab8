"""GMP's update rule, by hand."""

from hf_autosparse import GMPConfig, sparsify, sparsity
from update_rules import linear, update


def test_gmp_follows_the_cubic_schedule():
    layer = sparsify(
        linear([[1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10]]), GMPConfig(first_last="none", target_sparsity=0.8, every=2)
    )
    sparsifier = layer.sparsifier
    for number, pruned in ((2, 1), (3, 1), (38, 7), (75, 8), (100, 8)):  # 0.8 (1 - (1 - 2/75)^3) = 0.06, ...
        update(layer, number)
        assert (~sparsifier.kept).sum() == pruned, number
    assert layer.sparse_weight().tolist() == [[0] * 8 + [9, 10]]


def test_gmp_reaches_its_target_in_a_short_run():
    layer = sparsify(linear([[1.0, 2, 3, 4]]), GMPConfig(first_last="none", target_sparsity=0.5, every=1000))
    for number in range(1, 5):
        update(layer, number, of=4)
    assert sparsity(layer) == 0.5
