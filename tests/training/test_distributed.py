import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

import distributed_worker
from hf_autosparse.reports.flops import training_fraction
from hf_autosparse.reports.trajectory import Trajectory
from paths import HELPERS, PYTHONPATH


def launch(output: Path, batch: int, stop: int = 0, resume: str = "fresh", method: str = "autosparse"):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command += [str(HELPERS / "distributed_worker.py"), str(output), str(batch), str(stop), resume, method]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return recorded(output, processes=2)


def recorded(output: Path, processes: int):
    report = json.loads((output / "history.json").read_text())
    assert report["world"] == processes
    return torch.load(output / "state.pt"), report["log"][:-1]  # the last entry sums up the call


def test_two_processes_equal_one_and_resume_exactly(tmp_path):
    distributed_worker.record(distributed_worker.run(str(tmp_path / "one"), 8, None, False), str(tmp_path / "one"))
    one, log_one = recorded(tmp_path / "one", processes=1)
    two, log_two = launch(tmp_path / "two", batch=4)
    assert [e["step"] for e in log_two] == list(range(1, 13))
    for a, b in zip(log_one, log_two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["sparsity"] == pytest.approx(b["sparsity"], abs=2e-3)
        assert a["layers_at_guard"] == b["layers_at_guard"]
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], atol=1e-5, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")
    assert log_one[-1]["layers_at_guard"] > 0  # the guard acted, and alike

    launch(tmp_path / "killed", batch=4, stop=5)
    resumed, log_resumed = launch(tmp_path / "killed", batch=4, resume="resume")
    assert log_resumed == log_two
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in two.items())
    AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "two" / "final")
    whole = Trajectory.load(tmp_path / "two" / "final")
    assert Trajectory.load(tmp_path / "killed" / "final") == whole
    single = Trajectory.load(tmp_path / "one" / "final")
    assert whole.layers == single.layers != {}
    assert training_fraction(whole) == pytest.approx(training_fraction(single), abs=2e-3)


def test_fixed_mask_keeps_every_zero_under_ddp(tmp_path):
    """With micro-batches that have no label in one of the processes, or in both."""
    _, log = launch(tmp_path / "two", batch=1, method="fixed_mask")
    assert all(math.isfinite(entry["loss"]) for entry in log)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "two" / "final")
    weight = model.model.encoder.layers[0].fc2.weight
    assert not weight[:, ::2].any() and weight[:, 1::2].all()
    before = distributed_worker.tiny_translator().model.encoder.layers[0].fc2.weight
    assert not torch.equal(weight[:, 1::2], before[:, 1::2])
