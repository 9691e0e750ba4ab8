import math

import pytest

from hf_autosparse.oneshot.allocation import ERK, OWL, Uniform

SHAPES = {"a.q": (4, 4), "a.f": (8, 4), "b.q": (4, 4), "b.f": (8, 4)}
BLOCKS = {name: name[0] for name in SHAPES}


def together(sparsities, shapes=SHAPES):
    zeros = sum(sparsities[name] * math.prod(shape) for name, shape in shapes.items())
    return zeros / sum(map(math.prod, shapes.values()))


def test_uniform():
    assert Uniform().spread(SHAPES, 0.6, BLOCKS, {}) == dict.fromkeys(SHAPES, 0.6)


def test_erk_keeps_small_layers_denser():
    spread = ERK().spread(SHAPES, 0.6, BLOCKS, {})
    assert spread["a.q"] < 0.6 < spread["a.f"] and together(spread) == pytest.approx(0.6)


def test_owl_by_hand():
    """The block with more outliers is denser by the whole range, 2 x 0.08."""
    spread = OWL().spread(SHAPES, 0.5, BLOCKS, {"a": 0.03, "b": 0.01})
    assert spread == pytest.approx({"a.q": 0.42, "a.f": 0.42, "b.q": 0.58, "b.f": 0.58})


def test_owl_weighs_blocks_by_their_size():
    shapes = SHAPES | {"c.q": (100, 10)}
    blocks = BLOCKS | {"c.q": "c"}
    spread = OWL().spread(shapes, 0.7, blocks, {"a": 0.0, "b": 0.5, "c": 1.0})
    assert together(spread, shapes) == pytest.approx(0.7)
    assert spread["a.q"] - spread["b.q"] == pytest.approx(0.08) == pytest.approx(spread["b.q"] - spread["c.q"])


def test_owl_with_equal_outliers_is_uniform():
    assert OWL().spread(SHAPES, 0.5, BLOCKS, {"a": 0.2, "b": 0.2}) == dict.fromkeys(SHAPES, 0.5)


def test_owl_stays_within_0_and_1():
    spread = OWL(deviation=0.5).spread(SHAPES, 0.9, BLOCKS, {"a": 0.3, "b": 0.1})
    assert spread == pytest.approx({"a.q": 0.8, "a.f": 0.8, "b.q": 1.0, "b.f": 1.0})


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"outlier_ratio": 1}, r"OWL.outlier_ratio = 1 is not allowed: use a number in \(1, inf\)"),
        ({"deviation": 0.6}, r"OWL.deviation = 0.6 is not allowed: use a number in \[0, 0.5\]"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        OWL(**settings)
