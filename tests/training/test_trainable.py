"""What cannot learn, or cannot be saved, is refused before the first step."""

import pytest
from safetensors.torch import load_file
from transformers import Trainer

from hf_autosparse import (
    AutoSparseCallback,
    AutoSparseConfig,
    AutoSparseMixin,
    AutoSparseSeq2SeqTrainer,
    RigLConfig,
    SparseTraining,
    finalize,
    sparsify,
)
from tiny import tiny_arguments, tiny_pairs, tiny_translator

peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),
    pytest.mark.filterwarnings("ignore:.*base_model_name_or_path"),
]
LORA = peft.LoraConfig(target_modules=["q_proj"], r=2)
FROZEN = r"layers were frozen after they were made sparse .first: .*base_model.* Train without an adapter and add it"
WAY = "train the sparse model first, finalize.model., save it, and add the adapters to the model that"


@pytest.mark.parametrize("part", ["sparsifier.threshold", "weight"])
def test_a_frozen_threshold_or_weight(part):
    model = sparsify(tiny_translator(), AutoSparseConfig())
    model.model.encoder.layers[0].fc1.get_parameter(part).requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"1 layers were frozen after they were made sparse .first: model.encoder.layers.0.fc1."
    ):
        SparseTraining(model, steps=2, steps_per_epoch=2)


@pytest.mark.parametrize("config", [AutoSparseConfig(), RigLConfig(target_sparsity=0.5)])
def test_peft_around_a_sparse_model(tmp_path, config):
    sparse = sparsify(tiny_translator(), config)
    model = peft.get_peft_model(sparse, LORA)
    with pytest.raises(ValueError, match=FROZEN):
        SparseTraining(model, steps=2, steps_per_epoch=2)
    trainer = Trainer(model, tiny_arguments(tmp_path), train_dataset=tiny_pairs(4), callbacks=[AutoSparseCallback()])
    with pytest.raises(ValueError, match=FROZEN):
        trainer.train()


def test_a_trainer_that_puts_peft_around_the_model(tmp_path):
    class Wrapping(Trainer):
        def __init__(self, model, args, **kwargs):
            super().__init__(peft.get_peft_model(model, LORA), args, **kwargs)

    class Sparse(AutoSparseMixin, Wrapping):
        pass

    with pytest.raises(ValueError, match=FROZEN):
        Sparse(tiny_translator(), tiny_arguments(tmp_path), AutoSparseConfig())


def unfrozen(model):
    wrapped = peft.get_peft_model(model, LORA)
    for name, parameter in wrapped.named_parameters():
        if "lora_" not in name:
            parameter.requires_grad_(True)
    return wrapped


def test_adapters_that_would_be_saved_without_their_pruned_base(tmp_path):
    model = sparsify(unfrozen(tiny_translator()), AutoSparseConfig())
    with pytest.raises(ValueError, match=f"PeftModel saves its adapters alone.*pruned in memory .'base_model.*{WAY}"):
        AutoSparseSeq2SeqTrainer(model, tiny_arguments(tmp_path))
    pruned = finalize(sparsify(tiny_translator(), AutoSparseConfig()))
    model = sparsify(peft.get_peft_model(pruned, LORA), AutoSparseConfig(target_modules=["lora_A"]))
    with pytest.raises(ValueError, match="PeftModel saves its adapters alone.*pruned in memory, which would be lost"):
        AutoSparseSeq2SeqTrainer(model, tiny_arguments(tmp_path))
    added = tiny_translator()
    added.add_adapter(LORA)
    added.requires_grad_(True)
    with pytest.raises(ValueError, match="M2M100ForConditionalGeneration saves its adapters alone"):
        SparseTraining(sparsify(added, AutoSparseConfig()), steps=2, steps_per_epoch=2)


def test_adapters_themselves_can_be_sparse(tmp_path):
    wrapped = peft.get_peft_model(tiny_translator(), LORA)
    model = sparsify(wrapped, AutoSparseConfig(target_modules=["lora_A"], first_last="none"))
    trainer = AutoSparseSeq2SeqTrainer(model, tiny_arguments(tmp_path, max_steps=2), train_dataset=tiny_pairs(8))
    assert trainer.train().global_step == 2
    trainer.save_model(tmp_path / "adapter")
    assert not [key for key in load_file(tmp_path / "adapter" / "adapter_model.safetensors") if "sparsifier" in key]
