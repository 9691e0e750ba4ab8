"""The mixin before trainers of other libraries: nothing that they do happens twice, and their losses stay theirs."""

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from hf_autosparse import AutoSparseConfig, AutoSparseMixin, sparse_layers

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

WORDS = [f"w{i}" for i in range(40)]
DENSE = AutoSparseConfig(threshold_init=-40.0, threshold_lr=0.0, threshold_weight_decay=0.0, alpha_schedule="fixed")


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = ["<pad>", "<eos>", "<unk>"]
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(special + WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def model() -> LlamaForCausalLM:
    set_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=43, pad_token_id=0, eos_token_id=1, **size))


class SparseSFTTrainer(AutoSparseMixin, trl.SFTTrainer):
    pass


def run(trainer_class, output_dir, **kwargs):
    """Losses and gradient norms of 4 steps of 2 batches, and how often the model's forward ran."""
    trained, forwards = model(), []
    trained.register_forward_pre_hook(lambda *args: forwards.append(1))
    texts = [" ".join(WORDS[(i * 7 + j * (1 + i % 3)) % 40] for j in range(4 + i % 5)) for i in range(16)]
    args = trl.SFTConfig(
        output_dir=str(output_dir),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=4,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        activation_checkpointing=False,
    )
    trainer = trainer_class(
        model=trained,
        args=args,
        train_dataset=datasets.Dataset.from_dict({"text": texts}),
        processing_class=tokenizer(),
        **kwargs,
    )
    trainer.train()
    figures = [(e["loss"], e["grad_norm"]) for e in trainer.state.log_history if "loss" in e]
    return trainer, figures, len(forwards)


def test_sft_runs_each_forward_once_and_computes_the_same(tmp_path):
    _, expected, forwards = run(trl.SFTTrainer, tmp_path)
    trainer, found, forwards_sparse = run(SparseSFTTrainer, tmp_path, sparse_config=DENSE)
    assert sparse_layers(trainer.model)
    assert forwards == forwards_sparse == 8
    assert found == [pytest.approx(pair, rel=1e-5) for pair in expected]
    assert len(found) == 4
