"""The comparison of the methods, as far as it needs no hours."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.methods.target import interpolated
from paths import ROOT


def run(script: str, output: Path, *options: str) -> str:
    command = [
        sys.executable,
        "-m",
        f"benchmarks.methods.{script}",
        "--data",
        "digits",
        "--output",
        str(output),
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_comparison_goes_on_where_it_stopped(tmp_path):
    options = ["--images", "64", "--epochs", "1", "--only", "rigl at 0.8"]
    run("compare", tmp_path, *options, "--seeds", "1")
    first = (tmp_path / "rigl_at_0.8-0.json").read_text()
    assert json.loads(first)["sparsity"] == pytest.approx(0.8, abs=1e-3)
    printed = run("compare", tmp_path, *options, "--seeds", "2")
    assert printed.count('"name": "rigl at 0.8"') == 1  # the second seed alone
    assert (tmp_path / "rigl_at_0.8-0.json").read_text() == first
    assert "| rigl at 0.8 | 2 |" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "accuracy.png").read_bytes()[1:4] == b"PNG"


def test_other_settings_need_another_folder(tmp_path):
    (tmp_path / "recipe.json").write_text('{"epochs": 3}')
    command = [sys.executable, "-m", "benchmarks.methods.compare", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 2 and "holds runs of another recipe" in done.stderr


def test_the_cost_of_a_target_is_read_between_two_ends():
    ends = {"none, decay 0.01": (0.7, 0.9), "none, decay 0.02": (0.9, 0.8)}
    results = [{"name": name, "sparsity": end, "accuracy": accuracy} for name, (end, accuracy) in ends.items()]
    assert interpolated(results, 0.75) == pytest.approx(0.875)
    assert interpolated(results, 0.95) is None
