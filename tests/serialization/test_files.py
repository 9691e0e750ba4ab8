"""One table says which files are private, and everything that publishes or copies files obeys it."""

import fnmatch

import pytest
import torch
from safetensors.torch import save_file

from hf_autosparse import pack
from hf_autosparse.hub.upload import public_files
from hf_autosparse.serialization import files
from hf_autosparse.serialization.locate import _NOT_DOWNLOADED

# Everything that a run of AutoSparseTrainer, DeepSpeed or FSDP leaves, and a user of the model has no use for.
PRIVATE = [
    "autosparse_state.safetensors",
    "autosparse_state.safetensors.index.json",
    "autosparse_manifest.json",
    "autosparse_loss_0.json",
    "trainer_state.json",
    "training_args.bin",
    "optimizer.bin",
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
    "rng_state.pth",
    "rng_state_0.pth",
    "weights.pkl",
    "__0_0.distcp",
    "zero_to_fp32.py",
    "latest",
    ".autosparse_config.json.12-34.tmp",
    "config.json.tmp",
    ".saving",
]
PUBLIC = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "README.md",
    "autosparse_config.json",
    "autosparse_trajectory.json",
    "modeling_own.py",
]


@pytest.mark.parametrize("name", PRIVATE)
def test_private(name):
    assert files.is_private(name)


@pytest.mark.parametrize("name", [*PUBLIC, files.WEIGHTS, files.INDEX, files.TRAJECTORY, files.CARD, files.PLOTS])
def test_public(name):
    assert not files.is_private(name)


@pytest.fixture
def run(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    save_file({"a.weight": torch.eye(16)}, directory / files.WEIGHTS)
    for name in PRIVATE + PUBLIC[1:]:
        (directory / name).write_text("{}")
    return directory


def test_the_hub_gets_the_public_files(run):
    (run / files.MODEL_CONFIG).write_text("{}")
    assert public_files(run).keys() == {*PUBLIC, files.WEIGHTS}


def test_a_packed_copy_has_the_public_files(run, tmp_path):
    pack(run, tmp_path / "packed")
    assert {path.name for path in (tmp_path / "packed").iterdir()} == {*PUBLIC[1:], files.WEIGHTS}


def test_private_files_are_not_downloaded():
    for name in PRIVATE:
        assert any(fnmatch.fnmatchcase(name, pattern) for pattern in _NOT_DOWNLOADED), name
    for name in [*PUBLIC, files.WEIGHTS, files.INDEX]:
        assert not any(fnmatch.fnmatchcase(name, pattern) for pattern in _NOT_DOWNLOADED), name


@pytest.mark.parametrize(
    ("name", "step"),
    [("run/checkpoint-10", 10), ("checkpoint-x", None), ("checkpoint-1-old", None), ("final", None)],
)
def test_a_checkpoint_is_known_by_its_name(name, step):
    assert files.checkpoint_step(name) == step


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00002.safetensors", files.INDEX])
def test_weight_files(name):
    assert files.is_weight_file(name) and not files.is_weight_file(f"adapter_{name}")
