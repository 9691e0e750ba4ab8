"""Timing, the decision and the file, with times that are made up."""

import json
import math

import pytest
import torch

from hf_autosparse.kernels import autotune
from hf_autosparse.kernels.autotune import Measurement, Store, best_times, compare, measured_sparsity, ranges


@pytest.fixture
def timings(monkeypatch):
    """The best times (dense, sparse) that successive timings find."""
    given = []
    monkeypatch.setattr(autotune, "best_times", lambda actions, rounds, seconds: given.pop(0))
    return given


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Opens the store of this machine anew."""
    monkeypatch.setenv("HF_AUTOSPARSE_CACHE", str(tmp_path))
    return lambda **options: Store("cpu", "kernels of this test", **options)


def test_best_times_run_in_turns():
    order = []
    times = best_times((lambda: order.append("a"), lambda: order.append("b")), rounds=3, seconds=0.0)
    assert order == ["a", "b"] * 3 and all(0 <= time < 1 for time in times)


def test_two_timings_that_agree_are_enough(timings):
    timings += [[2.0, 1.0], [2.02, 1.01]]
    speedup, spread = compare(None, None, 1, 0.0)
    assert speedup == 2.0 and spread == pytest.approx(0.01)


def test_a_disturbed_timing_is_outvoted_by_later_ones(timings):
    # The first timing says that sparse is slower; the machine was busy just then.
    timings += [[2.0, 4.0], [2.6, 1.0], [2.01, 1.3], [2.0, 1.02]]
    speedup, spread = compare(None, None, 1, 0.0)
    assert speedup == 2.0 and spread == pytest.approx(0.02)


def test_where_nothing_agrees_the_spread_says_so(timings):
    timings += [[1.0 + step, 2.0] for step in (0.0, 0.5, 0.2, 0.9, 0.7, 0.4, 0.0)]
    speedup, spread = compare(None, None, 1, 0.0)
    assert (speedup, spread) == (0.5, pytest.approx(0.2)) and len(timings) == 1  # six timings at most


def test_a_measurement_has_the_widest_spread_of_its_comparisons():
    assert Measurement.of({1: (2.00049, 0.01), 16: (3.0, 0.2)}) == Measurement({1: 2.0, 16: 3.0}, 0.2)


def test_the_measured_sparsity():
    assert [measured_sparsity(sparsity) for sparsity in (0.3, 0.398, 0.89, 1.0)] == [0.3, 0.4, 0.8, 0.95]


def test_beyond_the_largest_number_of_tokens_the_last_ratio_holds():
    assert ranges({1: 0.9, 4: 1.2}) == ((4, math.inf),)


def test_what_was_measured_is_kept(store, tmp_path):
    first = store()
    assert first.speedups("a", lambda: Measurement({1: 2.0, 16: 1.5}, 0.02)) == {1: 2.0, 16: 1.5}
    first.save()
    (file,) = tmp_path.iterdir()
    content = json.loads(file.read_text())
    assert content["format_version"] == 2 and content["machine"]["kernels"] == "kernels of this test"
    assert content["measurements"] == {"a": {"speedups": {"1": 2.0, "16": 1.5}, "spread": 0.02, "attempts": 1}}
    assert store().speedups("a", lambda: 1 / 0) == {1: 2.0, 16: 1.5}
    again = store(remeasure=True)
    assert again.speedups("a", lambda: Measurement({1: 3.0}, 0.0)) == {1: 3.0}
    stamp = file.stat().st_mtime_ns
    store().save()  # nothing new
    assert file.stat().st_mtime_ns == stamp
    assert Store("cpu", "other kernels").path != first.path


def test_two_processes_that_save_keep_both(store):
    one, other = store(), store()
    one.speedups("a", lambda: Measurement({1: 1.0}, 0.0))
    other.speedups("b", lambda: Measurement({1: 2.0}, 0.0))
    one.save()
    other.save()
    known = store()
    assert known.speedups("a", lambda: 1 / 0) == {1: 1.0} and known.speedups("b", lambda: 1 / 0) == {1: 2.0}


def test_a_disturbed_measurement_is_made_again_a_bounded_number_of_times(store):
    found = [Measurement({1: 0.5}, 0.4), Measurement({1: 1.8}, 0.15), Measurement({1: 0.9}, 0.3)]
    measured = []

    def measure():
        measured.append(found.pop(0))
        return measured[-1]

    for expected, count in (({1: 0.5}, 1), ({1: 1.8}, 2), ({1: 1.8}, 3), ({1: 1.8}, 3)):
        process = store()
        for _ in range(2):  # once in each process
            assert process.speedups("a", measure) == expected
        process.save()
        assert len(measured) == count
    calm = store(remeasure=True)
    calm.speedups("b", lambda: Measurement({1: 2.0}, 0.05))
    calm.save()
    assert store().speedups("b", lambda: 1 / 0) == {1: 2.0}


def test_files_of_format_1_are_measured_again(store, caplog):
    store().path.write_text('{"format_version": 1, "speedups": {"a": {"1": 9.0}}}')
    assert store().speedups("a", lambda: Measurement({1: 2.0}, 0.0)) == {1: 2.0}
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not valid JSON"),
        ('{"format_version": 3}', "format_version 3, expected 2"),
        ('{"format_version": 2}', "KeyError: 'measurements'"),
        ('{"format_version": 2, "measurements": {"a": {"speedups": {}}}}', "missing 2 required positional arguments"),
    ],
)
def test_a_damaged_file_is_named_and_measured_again(text, reason, store, caplog):
    store().path.write_text(text)
    assert store().speedups("a", lambda: Measurement({1: 2.0}, 0.0)) == {1: 2.0}
    assert "is damaged and will be measured again" in caplog.text and reason in caplog.text


def test_a_cache_that_cannot_be_written_is_logged(store, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_AUTOSPARSE_CACHE", str(tmp_path / "file" / "below"))
    unkept = store()
    unkept.speedups("a", lambda: Measurement({1: 2.0}, 0.0))
    unkept.save()
    assert "the measurements cannot be kept for the next time" in caplog.text


def test_what_measurements_depend_on():
    facts = autotune.machine(torch.device("cpu"))
    assert facts["processor"] == autotune.processor() and facts["threads"] == torch.get_num_threads()
    assert autotune.machine(torch.device("mps")) == {"torch": torch.__version__, "device": "mps"}
