"""Tiny models, data and training runs for the tests."""

import torch
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    set_seed,
)

from hf_autosparse import AutoSparseConfig, AutoSparseSeq2SeqTrainer

VOCABULARY = 60


def tiny_translator() -> M2M100ForConditionalGeneration:
    set_seed(0)
    return M2M100ForConditionalGeneration(
        M2M100Config(
            vocab_size=VOCABULARY,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_layerdrop=0.0,
            decoder_layerdrop=0.0,
            dropout=0.1,
            max_position_embeddings=32,
        )
    )


def tiny_pairs(count: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Random sentences of 8 tokens; targets of 4 to 8 tokens, padded with -100, so that batches differ in tokens."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for i in range(count):
        labels = torch.randint(4, VOCABULARY, (8,), generator=generator)
        labels[4 + i % 5 :] = -100
        pairs.append({"input_ids": torch.randint(4, VOCABULARY, (8,), generator=generator), "labels": labels})
    return pairs


def tiny_arguments(output_dir, **changes) -> Seq2SeqTrainingArguments:
    settings = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 3,
        "learning_rate": 1e-2,
        "logging_steps": 3,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 7,
    }
    return Seq2SeqTrainingArguments(output_dir=str(output_dir), **(settings | changes))


SPARSE = {"threshold_init": {"sparsity": 0.3}, "alpha_schedule": "linear", "alpha_init": 0.5}


def tiny_trainer(
    output_dir, *, config=None, model=None, callbacks=(), trainer_class=AutoSparseSeq2SeqTrainer, **changes
):
    """Ten optimizer steps an epoch, by default."""
    kwargs = {} if "model_init" in changes else {"model": model or tiny_translator()}
    for key in ("model_init", "compute_metrics", "optimizers"):
        if key in changes:
            kwargs[key] = changes.pop(key)
    return trainer_class(
        args=tiny_arguments(output_dir, **changes),
        sparse_config=config or AutoSparseConfig(**SPARSE),
        train_dataset=tiny_pairs(40),
        eval_dataset=tiny_pairs(8, seed=1),
        callbacks=list(callbacks),
        **kwargs,
    )


class StopAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step >= self.step


TIMING = ("runtime", "per_second", "train_loss", "total_flos")


def history(trainer) -> list[dict]:
    """The log without what measures time or sums over one call of train."""
    return [
        {k: v for k, v in entry.items() if not any(word in k for word in TIMING)} for entry in trainer.state.log_history
    ]


def assert_same_state(a: torch.nn.Module, b: torch.nn.Module) -> None:
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, f"differ: {different}"
