"""Top-k accuracy: values worked by hand, two processes with uneven shares, bad input."""

import importlib
import multiprocessing
import sys

import pytest
import torch

from hf_autosparse.metrics.top_k import TopKAccuracy, ranked_classes


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The files in which metrics meet stay in the test's own folder."""
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path))


LOGITS = torch.tensor([[0.1, 0.9, 0.5], [0.9, 0.1, 0.5], [0.2, 0.3, 0.1], [0.7, 0.6, 0.8]])
LABELS = torch.tensor([1, 2, 2, 2])


def score(predictions, references, **options):
    return TopKAccuracy(keep_in_memory=True).compute(predictions=predictions, references=references, **options)


def test_golden_values():
    ranked = ranked_classes(LOGITS, 2)
    assert ranked.tolist() == [[1, 2], [0, 2], [1, 0], [2, 0]]
    assert score(ranked, LABELS, k=(1, 2)) == {"top1": 0.5, "top2": 0.75}
    assert score(ranked_classes(LOGITS, 5), LABELS) == {"top1": 0.5, "top5": 1.0}  # three classes: five hold them all


def test_equal_logits_rank_by_class():
    assert ranked_classes(torch.zeros(2, 6), 3).tolist() == [[0, 1, 2]] * 2


def share_of_a_process(rank: int, cuts: list[int], cache: str) -> list[dict | None]:
    results = []
    for number, cut in enumerate(cuts):
        metric = TopKAccuracy(num_process=2, process_id=rank, experiment_id=f"cut{number}", cache_dir=cache)
        share = slice(0, cut) if rank == 0 else slice(cut, None)
        predictions = ranked_classes(LOGITS, 2)[share]
        results.append(metric.compute(predictions=predictions, references=LABELS[share], k=(1, 2)))
    return results


def test_two_processes_with_uneven_shares_give_the_score_of_one(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hf_autosparse.metrics.top_k"])  # imported once for both
    cuts = [3, 1, 0, 4]  # the last two leave one process nothing
    with context.Pool(2) as pool:
        calls = [(rank, cuts, str(tmp_path)) for rank in (0, 1)]
        first, second = pool.starmap(share_of_a_process, calls, chunksize=1)
    assert first == [{"top1": 0.5, "top2": 0.75}] * len(cuts) and second == [None] * len(cuts)


@pytest.mark.parametrize(
    ("predictions", "references", "options", "message"),
    [
        ([[0, 1]], [0, 1], {}, r"predictions of shape \(1, 2\) and references of shape \(2,\)"),
        ([0, 1], [0, 1], {}, r"predictions of shape \(2,\)"),
        (LOGITS.numpy(), [1, 2, 2, 2], {}, "classes must be integers, got float32: give ranked_classes"),
        ([[0]], [0], {"k": (0,)}, r"k=\(0,\): each must be at least 1"),
        ([], [], {}, "No predictions to score"),
    ],
)
def test_bad_input(predictions, references, options, message):
    with pytest.raises(ValueError, match=message):
        score(predictions, references, **options)


@pytest.mark.parametrize("package", ["evaluate", "datasets"])
def test_missing_package_names_the_extra(monkeypatch, package):
    monkeypatch.delitem(sys.modules, "hf_autosparse.metrics.top_k")
    monkeypatch.setitem(sys.modules, package, None)  # what Python takes as not installed
    with pytest.raises(ImportError, match=rf"'{package}': pip install \"hf-autosparse\[vision\]\""):
        importlib.import_module("hf_autosparse.metrics.top_k")
