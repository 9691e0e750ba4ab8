import math
from typing import get_args

import pytest

from hf_autosparse.methods.schedules import ALPHA_SCHEDULES, AlphaSchedule, alpha_at, cosine_decay, cubic_sparsity

SIGMOID_OF_3 = 1 / (1 + math.exp(-3))


@pytest.mark.parametrize(
    ("schedule", "t", "expected"),
    [
        ("fixed", 7, 1.0),
        ("linear", 0, 1.0),
        ("linear", 2.5, 0.75),
        ("linear", 10, 0.0),
        ("cosine", 0, 1.0),
        ("cosine", 5, 0.5),
        ("cosine", 10 / 3, 0.75),  # (1 + cos 60 deg) / 2
        ("cosine", 10, 0.0),
        ("sigmoid", 5, 0.5),
        ("sigmoid", 2.5, SIGMOID_OF_3),  # 1 - sigmoid(-3)
        ("sigmoid", 7.5, 1 - SIGMOID_OF_3),
        ("sigmoid", 10, 0.0),
        ("sigmoid-cosine", 2.5, SIGMOID_OF_3),  # the sigmoid is above the cosine's 0.854
        ("sigmoid-cosine", 7.5, (1 + math.cos(0.75 * math.pi)) / 2),  # 0.146, above the sigmoid's 0.047
        ("exponential", 0, 1.0),
        ("exponential", 2, math.exp(-2)),
        ("exponential", 100, math.exp(-100)),  # no length: never cut off
    ],
)
def test_values_by_hand(schedule, t, expected):
    assert ALPHA_SCHEDULES[schedule](t, 10.0, 1.0) == pytest.approx(expected, abs=1e-12)
    assert alpha_at(schedule, t, alpha_init=0.4, length=10.0) == pytest.approx(0.4 * expected, abs=1e-12)


def test_beta():
    assert alpha_at("exponential", 3, alpha_init=1.0, length=10, beta=0.5) == pytest.approx(math.exp(-1.5))


@pytest.mark.parametrize("schedule", ALPHA_SCHEDULES)
def test_never_rises_and_stays_in_range(schedule):
    values = [alpha_at(schedule, t / 10, alpha_init=0.9, length=8.0) for t in range(120)]
    assert values[0] == pytest.approx(0.9, rel=0.003)  # the sigmoid starts at 1 - sigmoid(-6) = 0.9975
    assert all(0 <= b <= a <= 0.9 for a, b in zip(values, values[1:], strict=False))


def test_cut_and_length_are_two_readings_of_alpha_zero_at_epoch():
    cut = [alpha_at("linear", t, alpha_init=1.0, length=10, zero_epoch=4) for t in range(6)]
    ends = [alpha_at("linear", t, alpha_init=1.0, length=4) for t in range(6)]
    assert cut == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.0, 0.0])
    assert ends == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0, 0.0])


def test_schedules_of_masks():
    assert [cubic_sparsity(p, 0.8) for p in (0.0, 0.5, 1.0, 2.0)] == pytest.approx([0, 0.7, 0.8, 0.8])
    assert [cosine_decay(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1, 0.5, 0])


def test_the_names_are_those_of_the_type():
    assert get_args(AlphaSchedule) == tuple(ALPHA_SCHEDULES)
