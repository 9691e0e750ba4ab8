"""Trainers of TRL and sentence-transformers, each with a tiny model, data and arguments: no network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sentence_transformers as st
import trl
from datasets import Dataset
from sentence_transformers.sentence_transformer import losses, modules
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_autosparse import AutoSparseConfig, AutoSparseMixin

WORDS = [f"w{i}" for i in range(40)]
SPECIAL = ["<pad>", "<eos>", "<unk>", "<cls>", "<mask>"]
SIZE = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 32,
}


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        cls_token="<cls>",
        sep_token="<eos>",
        mask_token="<mask>",
        model_max_length=32,
    )


def sentence(seed: int) -> str:
    return " ".join(WORDS[(seed * 7 + j * (1 + seed % 3)) % 40] for j in range(3 + seed % 4))


def table(*columns: str, count: int = 16) -> Dataset:
    """Sentences of 3 to 6 words, different in each column; "label" is 0 or 1."""
    return Dataset.from_dict(
        {
            name: [i % 2 for i in range(count)] if name == "label" else [sentence(i + 16 * c) for i in range(count)]
            for c, name in enumerate(columns)
        }
    )


def llama(seed: int) -> nn.Module:
    set_seed(seed)
    return LlamaForCausalLM(LlamaConfig(eos_token_id=1, **SIZE))


def language_model(directory: Path) -> nn.Module:
    """Stored in `directory`: TRL loads the reference model from where the trained one came from."""
    if not directory.exists():
        llama(0).save_pretrained(directory)
    return LlamaForCausalLM.from_pretrained(directory)


def reward_model(directory: Path) -> nn.Module:
    set_seed(0)
    return LlamaForSequenceClassification(LlamaConfig(eos_token_id=1, num_labels=1, **SIZE))


def stored_bert(directory: Path, architecture: type, **config: Any) -> str:
    if not directory.exists():
        set_seed(0)
        architecture(BertConfig(**SIZE, **config)).save_pretrained(directory)
        tokenizer().save_pretrained(directory)
    return str(directory)


def sentence_model(directory: Path) -> nn.Module:
    transformer = modules.Transformer(stored_bert(directory, BertModel), max_seq_length=16)
    return st.SentenceTransformer(modules=[transformer, modules.Pooling(16)], device="cpu")


def splade_model(directory: Path) -> nn.Module:
    return st.SparseEncoder(stored_bert(directory, BertForMaskedLM), device="cpu")


def cross_encoder(directory: Path) -> nn.Module:
    path = stored_bert(directory, BertForSequenceClassification, num_labels=1)
    return st.CrossEncoder(path, device="cpu", max_length=16)


def word_count(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len(set(text))) for text in completions]


@dataclass(frozen=True)
class Recipe:
    """How to build one trainer. `extra(model, directory)` gives the keyword arguments that only it takes."""

    trainer: type[Trainer]
    arguments: type[TrainingArguments]
    model: Callable[[Path], nn.Module]
    columns: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    extra: Callable[[nn.Module, Path], dict[str, Any]] = lambda model, directory: {}

    @property
    def is_trl(self) -> bool:
        return self.trainer.__module__.startswith("trl.")

    def reload(self, model: nn.Module, directory: Path) -> nn.Module:
        """What stock code makes of a directory that the trainer of `model` wrote."""
        if not self.is_trl:
            return type(model)(str(directory), device="cpu")
        reloaded = type(model).from_pretrained(directory)
        reloaded.config._name_or_path = model.config._name_or_path  # the reference model stays the same
        return reloaded

    def build(
        self,
        trainer: type[Trainer],
        directory: Path,
        *,
        model: nn.Module | None = None,
        settings: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Trainer:
        """`trainer` (this recipe's, or a subclass of it) for 4 steps of 2 accumulated batches of 2."""
        model = self.model(directory / "base") if model is None else model
        arguments = {
            "output_dir": str(directory / "run"),
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": 4,
            "logging_steps": 1,
            "learning_rate": 1e-2,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            "seed": 7,
        }
        tokens = {"processing_class": tokenizer()} if self.is_trl else {}
        data = {"train_dataset": table(*self.columns), "eval_dataset": table(*self.columns, count=4)}
        return trainer(
            model=model,
            args=self.arguments(**(arguments | self.settings | (settings or {}))),
            **(data | tokens | self.extra(model, directory / "base") | kwargs),
        )


def reference(model: nn.Module, directory: Path) -> dict[str, Any]:
    return {"ref_model": language_model(directory)}


GENERATION = {"max_completion_length": 4}
REWARDED = GENERATION | {"num_generations": 2, "beta": 0.1}
RECIPES = {
    "SFT": Recipe(trl.SFTTrainer, trl.SFTConfig, language_model, ("text",)),
    "Reward": Recipe(trl.RewardTrainer, trl.RewardConfig, reward_model, ("chosen", "rejected")),
    "DPO": Recipe(trl.DPOTrainer, trl.DPOConfig, language_model, ("prompt", "chosen", "rejected"), extra=reference),
    "KTO": Recipe(trl.KTOTrainer, trl.KTOConfig, language_model, ("prompt", "completion", "label"), extra=reference),
    "GRPO": Recipe(
        trl.GRPOTrainer,
        trl.GRPOConfig,
        language_model,
        ("prompt",),
        REWARDED,
        lambda model, directory: {"reward_funcs": word_count},
    ),
    "RLOO": Recipe(
        trl.RLOOTrainer,
        trl.RLOOConfig,
        language_model,
        ("prompt",),
        REWARDED,
        lambda model, directory: {"reward_funcs": word_count},
    ),
    "Distillation": Recipe(
        trl.DistillationTrainer,
        trl.DistillationConfig,
        language_model,
        ("prompt",),
        GENERATION,
        lambda model, directory: {"teacher_model": llama(1)},
    ),
    "SentenceTransformer": Recipe(
        st.SentenceTransformerTrainer,
        st.SentenceTransformerTrainingArguments,
        sentence_model,
        ("anchor", "positive"),
        extra=lambda model, directory: {"loss": losses.MultipleNegativesRankingLoss(model)},
    ),
    "SparseEncoder": Recipe(
        st.SparseEncoderTrainer, st.SparseEncoderTrainingArguments, splade_model, ("anchor", "positive")
    ),
    "CrossEncoder": Recipe(
        st.CrossEncoderTrainer,
        st.CrossEncoderTrainingArguments,
        cross_encoder,
        ("query", "answer", "label"),
        {"ddp_find_unused_parameters": False},  # without it the stock trainer fails in two processes
    ),
}

# T = sigmoid(-80) = 1.8e-35: each effective weight equals its weight to the bit.
DENSE = AutoSparseConfig(threshold_init=-80.0, alpha_update="step")
ADDED = {"sparsity", "alpha", "mean_threshold", "layers_at_guard"}  # by our trainers, to the logs


def sparse(recipe: Recipe) -> type[Trainer]:
    """The recipe's trainer with the mixin before it."""
    return type(f"Sparse{recipe.trainer.__name__}", (AutoSparseMixin, recipe.trainer), {"draws_plots": False})


def figures(trainer: Trainer) -> list[dict[str, Any]]:
    """The log without what our trainers add, what measures time, and FLOPs, which count thresholds as parameters."""
    ignored = ("time", "per_second", "total_flos")
    return [
        {key: value for key, value in entry.items() if key not in ADDED and not any(word in key for word in ignored)}
        for entry in trainer.state.log_history
    ]
