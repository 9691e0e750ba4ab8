"""What the package wrote when it was one flat folder still loads, resumes and unpacks."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import M2M100ForConditionalGeneration

from hf_autosparse import MESTConfig, SparseConfig, unpack
from tiny import tiny_trainer

FIXTURE = Path(__file__).parent / "fixtures" / "flat_layout"


@pytest.mark.parametrize("method", ["autosparse", "rigl"])
def test_a_checkpoint_resumes(method, tmp_path, monkeypatch):
    """To the bit on the machine that wrote it; elsewhere matrix products round otherwise."""
    monkeypatch.setattr("hf_autosparse.training.grown.SHARE", 0.0)  # Adam's squares started at 0 then
    checkpoint = FIXTURE / method / "checkpoint-15"
    config = SparseConfig.from_pretrained(checkpoint)
    trainer = tiny_trainer(tmp_path, config=config, save_strategy="steps", save_steps=15, logging_steps=4)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    expected, found = load_file(FIXTURE / method / "final_state.safetensors"), trainer.model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    assert [moment.step for moment in trainer.trajectory.moments] == list(range(31))


def test_a_packed_model_loads_and_unpacks(tmp_path):
    plain = load_file(FIXTURE / "plain" / "model.safetensors")
    unpack(FIXTURE / "packed", tmp_path / "unpacked")
    unpacked = load_file(tmp_path / "unpacked" / "model.safetensors")
    assert unpacked.keys() == plain.keys()
    assert all(torch.equal(unpacked[name], tensor) for name, tensor in plain.items())
    loaded = M2M100ForConditionalGeneration.from_pretrained(FIXTURE / "packed").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in plain.items())


def test_a_recipe_loads():
    import yaml

    config = SparseConfig.from_dict(yaml.safe_load((FIXTURE / "recipe.yaml").read_text())["sparse"])
    assert config.method == "mest" and config.target_sparsity == 0.8
    assert isinstance(config, MESTConfig) and config.every == 6255 and config.mutation_fraction == 0.2
