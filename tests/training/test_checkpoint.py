import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from hf_autosparse import AutoSparseConfig
from hf_autosparse.serialization.files import MANIFEST, NATIVE_STATE
from hf_autosparse.training.checkpoint import (
    IncompleteCheckpointError,
    check_whole,
    last_whole_checkpoint,
    load_native_state,
    publish,
    save_native_state,
    staging_directory,
    write_manifest,
)
from paths import PYTHONPATH
from tiny import StopAt, assert_same_state, tiny_trainer

SAVING = {"save_strategy": "steps", "save_steps": 5}


@pytest.fixture
def run(tmp_path):
    """A run stopped at step 10 with whole checkpoints at 5 and 10."""
    tiny_trainer(tmp_path, callbacks=[StopAt(10)], **SAVING).train()
    assert last_whole_checkpoint(tmp_path) == (tmp_path / "checkpoint-10", [])
    return tmp_path


def truncate(path: Path):
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: (c / MANIFEST).unlink(), f"has no {MANIFEST}"),
        (lambda c: (c / MANIFEST).write_text("{"), f"{MANIFEST} is damaged: .*not valid JSON"),
        (lambda c: (c / "trainer_state.json").unlink(), "trainer_state.json is missing or cut off"),
        (lambda c: truncate(c / "trainer_state.json"), "trainer_state.json is missing or cut off"),
        (lambda c: truncate(c / "optimizer.pt"), "optimizer.pt has"),
        (lambda c: truncate(c / "model.safetensors"), "model.safetensors has"),
        (lambda c: (c / NATIVE_STATE).unlink(), f"{NATIVE_STATE} has None bytes"),
        (lambda c: (c / "rng_state.pth").unlink(), "rng_state.pth has None bytes"),
    ],
)
def test_checkpoint_that_is_not_whole_is_not_taken(run, damage, message, caplog):
    damage(run / "checkpoint-10")
    with pytest.raises(IncompleteCheckpointError, match=message):
        check_whole(run / "checkpoint-10")
    trainer = tiny_trainer(run, callbacks=[StopAt(6)], **SAVING)
    with pytest.raises(IncompleteCheckpointError, match=message):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-10"))
    trainer.train(resume_from_checkpoint=True)  # goes back to checkpoint-5
    assert trainer.state.global_step == 6
    assert "not resuming from a checkpoint that is not whole" in caplog.text


def test_no_whole_checkpoint(tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    with pytest.raises(ValueError, match="holds no whole checkpoint"):
        tiny_trainer(tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(IncompleteCheckpointError, match="does not exist"):
        tiny_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))


def test_other_sparse_config_is_refused(run):
    trainer = tiny_trainer(run, config=AutoSparseConfig(dense_modules=["fc1"]))
    with pytest.raises(ValueError, match="another sparse_config"):
        trainer.train(resume_from_checkpoint=True)


def test_resuming_with_more_processes_than_were_saved_warns(run, caplog):
    """The later processes have no file of the loss since the last log."""
    manifest = run / "checkpoint-10" / MANIFEST
    content = json.loads(manifest.read_text())
    del content["files"]["autosparse_loss_0.json"]
    manifest.write_text(json.dumps(content))
    (run / "checkpoint-10" / "autosparse_loss_0.json").unlink()
    trainer = tiny_trainer(run, callbacks=[StopAt(12)], **SAVING)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 12
    assert "the next logged loss is the mean since the resume" in caplog.text


def test_native_state_round_trip_with_tied_weights(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.b.weight = self.a.weight
            self.register_buffer("count", torch.tensor(3))

    first, second = Tied(), Tied()
    save_native_state(first, tmp_path)
    load_native_state(second, tmp_path)
    assert_same_state(first, second)
    assert second.a.weight is second.b.weight


def test_native_state_is_missing(tmp_path):
    with pytest.raises(IncompleteCheckpointError, match="holds a finished model, not a training state"):
        load_native_state(nn.Linear(2, 2), tmp_path)


def test_manifest_lists_every_file(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.bin").write_bytes(b"123")
    write_manifest(tmp_path)
    assert json.loads((tmp_path / MANIFEST).read_text())["files"] == {"sub/a.bin": 3}


def published(directory, files):
    staging = staging_directory(directory)
    for name, text in files.items():
        (staging / name).write_text(text)
    publish(staging, directory)
    return {p.name: p.read_text() for p in directory.iterdir()}


def test_publish_replaces_a_model_and_leaves_strangers_alone(tmp_path):
    one = {"model.safetensors": "1", "config.json": "1"}
    shards = {
        "model-00001-of-00002.safetensors": "2",
        "model-00002-of-00002.safetensors": "2",
        "model.safetensors.index.json": "2",
    }
    (tmp_path / "README.md").write_text("mine")
    assert published(tmp_path, one) == one | {"README.md": "mine"}
    assert published(tmp_path, shards) == shards | {"README.md": "mine", "config.json": "1"}
    assert published(tmp_path, one) == one | {"README.md": "mine"}


def train_forever(directory: str, resume: bool) -> None:
    trainer = tiny_trainer(directory, save_strategy="steps", save_steps=1, save_total_limit=2, max_steps=100_000)
    trainer.train(resume_from_checkpoint=resume or None)


def test_kill_at_any_moment_leaves_a_checkpoint_to_resume_from(tmp_path, monkeypatch):
    """A run that saves at every step is killed eight times, at moments spread over a save, and resumed each time."""
    # The fork server imports torch and transformers once; it gets its path from the environment alone.
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_checkpoint"])
    step = 0
    for attempt in range(8):
        process = context.Process(target=train_forever, args=(str(tmp_path), attempt > 0))
        process.start()
        deadline = time.monotonic() + 120
        while newest_step(tmp_path) < step + 3 and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(attempt * 0.005)
        process.kill()
        process.join()
        assert newest_step(tmp_path) >= step + 3, "the run did not get going"
        path, _ = last_whole_checkpoint(tmp_path)
        found = int(path.name.split("-")[1])
        assert found > step, "progress was lost"
        step = found
        load_native_state(tiny_trainer(tmp_path).model, path)
    trainer = tiny_trainer(tmp_path, save_strategy="steps", save_steps=1, save_total_limit=2, max_steps=step + 2)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == step + 2


def newest_step(directory) -> int:
    return max((int(name.split("-")[1]) for name in os.listdir(directory) if name.startswith("checkpoint-")), default=0)
