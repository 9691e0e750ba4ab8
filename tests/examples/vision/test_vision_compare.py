"""The comparison: what is finished is not run again, a failed run is named and the others go on, mean and deviation."""

import json

import pytest

from examples.vision import compare, loader_benchmark
from tiny_vision import CONFIGS, TINY

RESULTS = {
    "dense": {1: {"top1": 0.8, "top5": 0.99}, 2: {"top1": 0.9, "top5": 0.99}},
    "sparse": {1: {"top1": 0.75, "top5": 0.98, "sparsity": 0.801}, 2: {"error": "ValueError: no"}},
    "open": {},
}


def test_table():
    assert compare.table(RESULTS).splitlines() == [
        "| recipe | seeds | top-1, % | top-5, % | sparsity, % |",
        "|---|---|---|---|---|",
        "| dense | 2 | 85.00 ± 7.07 | 99.00 ± 0.00 | - |",
        "| sparse | 1 (1 failed) | 75.00 | 98.00 | 80.10 |",
        "| open | 0 | - | - | - |",
    ]


def test_comparison_goes_on_where_it_was_and_names_what_failed(tmp_path, capsys):
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    for name, change in {"good": "", "bad": "sparse: {alpha_init: 2.0}\n"}.items():
        (recipes / f"{name}.yaml").write_text(f"extends: {CONFIGS / 'digits.yaml'}\n{change}")
    changes = [part for change in TINY for part in ("--set", change)]
    arguments = ["--output", str(tmp_path / "out"), "--recipes", str(recipes), "--seeds", "1", "--processes", "1"]
    assert compare.main([*arguments, *changes]) == 1
    assert "bad, seed 1: ValueError: AutoSparseConfig.alpha_init = 2.0 is not allowed" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["good"]["1"]["steps"] == 8 and results["bad"]["1"].keys() == {"error"}
    assert 0 < results["good"]["1"]["test_flops"] < 1 and 0 < results["good"]["1"]["train_flops"] < 1
    log = (tmp_path / "out" / "good" / "seed-1" / "log.txt").read_text()

    # Only what failed is tried again.
    assert compare.main([*arguments, *changes, "--set", "sparse.alpha_init=0.5"]) == 0
    assert "2 runs, 1 finished; 1 at a time" in capsys.readouterr().out
    assert (tmp_path / "out" / "good" / "seed-1" / "log.txt").read_text() == log
    assert (tmp_path / "out" / "results.md").read_text().count("| 1 |") == 2
    assert not (tmp_path / "out" / "bad" / "seed-1" / "error.txt").exists()


def test_no_such_recipe(tmp_path):
    with pytest.raises(SystemExit, match=r"no recipe .*/nothing\*.yaml"):
        compare.main(["--output", str(tmp_path), "--only", "nothing"])


def test_loader_benchmark(monkeypatch, capsys):
    options = ["--images", "2", "--rounds", "1", "--width", "60", "--height", "50", "--json"]
    monkeypatch.setattr("sys.argv", ["loader_benchmark.py", *options])
    loader_benchmark.main()
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 2 and result["images_per_second_per_core"]["this example"] > 0
    assert {"pillow", "numpy", "torch"} <= result["versions"].keys()
