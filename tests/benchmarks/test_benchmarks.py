"""The pure parts of the speed benchmarks; the benchmarks themselves are run by hand."""

import json

import pytest
import torch

from benchmarks import bitmask_matmul, learned_weights, measuring, rivals
from benchmarks.sparse_matmul import crossover
from hf_autosparse import kernels


def test_the_crossover_is_where_the_speed_up_passes_one():
    assert crossover([(0.5, 0.5), (0.7, 2.0)]) == pytest.approx(0.6)  # half-way: 1/2 and 2 are as far from 1
    assert crossover([(0.5, 0.9), (0.6, 1.0), (0.7, 3.0)]) == pytest.approx(0.6)
    assert crossover([(0.5, 1.1), (0.7, 2.0)]) is None
    assert crossover([(0.5, 0.1), (0.7, 0.2)]) is None


def test_unevenness_of_rows_by_hand():
    weight = torch.tensor([[1.0, 2.0, 3.0, 0.0], [4.0, 0.0, 0.0, 0.0]])  # 3 and 1 non-zeros
    assert learned_weights.unevenness(weight) == pytest.approx(2**0.5 / 2)
    shuffled = learned_weights.at_random(weight)
    assert sorted(shuffled.flatten().tolist()) == sorted(weight.flatten().tolist())


def test_a_run_goes_on_only_where_it_was_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    where = {"threads": 1, "processor": "A", "kernels": "sse2", "date": "today"}
    assert measuring.earlier("x", where, {"rounds": 3}) == []
    measuring.write("x", where, {"rounds": 3}, [{"time": 1.23456, "of": [1, 2]}, {"time": 2.0}])
    assert json.loads((tmp_path / "x_sse2_1_threads.json").read_text())["device"] == where
    assert measuring.earlier("x", where | {"date": "later"}, {"rounds": 3}) == [
        {"time": 1.235, "of": [1, 2]},
        {"time": 2.0},
    ]
    with pytest.raises(SystemExit, match="measured with other processor, rounds: remove it"):
        measuring.earlier("x", where | {"processor": "B"}, {"rounds": 4})


@pytest.mark.skipif(kernels.library() is None, reason=f"needs the C kernels: {kernels.status()}")
def test_rivals_compute_the_same_and_those_that_are_missing_are_named():
    torch.manual_seed(0)
    weights = [torch.randn(24, 16) * (torch.rand(24, 16) > 0.7) for _ in range(2)]

    def absent(weights, x):
        import a_package_that_nobody_has  # noqa: F401

    def wrong(weights, x):
        return lambda: [torch.zeros(3, 24) for _ in weights]

    contestants = {"dense": rivals.dense, "hf_autosparse": rivals.own, "torch CSR": rivals.torch_csr, "absent": absent}
    calls, missing = rivals.prepared(contestants, weights, torch.randn(3, 16))
    assert list(calls) == ["dense", "hf_autosparse", "torch CSR"]
    assert missing == {"absent": "not installed: a_package_that_nobody_has"}
    with pytest.raises(AssertionError, match="wrong is wrong by 1.00e\\+00"):
        rivals.prepared({"wrong": wrong}, weights, torch.randn(3, 16))


def test_a_processor_names_its_file():
    assert bitmask_matmul.slug("Intel(R) Xeon(R) CPU @ 2.00GHz") == "intel_r_xeon_r_cpu_2_00ghz"
