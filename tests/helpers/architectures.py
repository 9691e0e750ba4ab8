"""Tiny instances of the architectures that the promises are tested on: model factory and training examples each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers as tf
from torch import nn

VOCABULARY, LENGTH = 40, 6


@dataclass(frozen=True)
class Architecture:
    name: str
    build: Callable[[], nn.Module]
    kind: str  # "seq2seq" | "causal" | "masked" | "text-class" | "image"
    auto: type
    batch_norm: bool = False  # whose statistics depend on how a batch is split

    def examples(self, count: int) -> list[dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(1)

        def integers(high, *shape):
            return torch.randint(3, high, shape, generator=generator)

        examples = []
        for i in range(count):
            if self.kind == "image":
                pixels = torch.randn(3, 32, 32, generator=generator)
                examples.append({"pixel_values": pixels, "labels": integers(5, 1)[0] - 3})
                continue
            ids = integers(VOCABULARY, LENGTH)
            labels = integers(VOCABULARY, LENGTH)
            if self.kind == "text-class":
                examples.append({"input_ids": ids, "labels": labels[0] % 2})
                continue
            if self.kind == "causal":
                labels = ids.clone()
            labels[2 + i % 4 :] = -100  # unequal numbers of tokens
            examples.append({"input_ids": ids, "labels": labels})
        return examples

    def model(self) -> nn.Module:
        """A fresh model with fixed weights and no dropout (whose masks differ between processes)."""
        tf.set_seed(0)
        model = self.build()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for attribute in ("dropout", "activation_dropout", "attention_dropout", "dropout_prob", "hidden_dropout"):
                if isinstance(getattr(module, attribute, None), float):
                    setattr(module, attribute, 0.0)
        return model


TEXT = {"vocab_size": VOCABULARY, "max_position_embeddings": 16}
SEQ2SEQ = TEXT | {
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
STACK = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LABELS = {"num_labels": 2}


def image(**extra):
    return {"image_size": 32, "num_labels": 2} | extra


ARCHITECTURES = [
    Architecture("marian", lambda: tf.MarianMTModel(tf.MarianConfig(**SEQ2SEQ)), "seq2seq", tf.AutoModelForSeq2SeqLM),
    Architecture(
        "bart",
        lambda: tf.BartForConditionalGeneration(tf.BartConfig(**SEQ2SEQ)),
        "seq2seq",
        tf.AutoModelForSeq2SeqLM,
    ),
    Architecture(
        "m2m100",
        lambda: tf.M2M100ForConditionalGeneration(
            tf.M2M100Config(**SEQ2SEQ, encoder_layerdrop=0.0, decoder_layerdrop=0.0)
        ),
        "seq2seq",
        tf.AutoModelForSeq2SeqLM,
    ),
    Architecture(
        "t5",
        lambda: tf.T5ForConditionalGeneration(
            tf.T5Config(
                vocab_size=VOCABULARY,
                d_model=8,
                d_kv=4,
                d_ff=12,
                num_layers=1,
                num_heads=2,
                dropout_rate=0.0,
                decoder_start_token_id=0,
            )
        ),
        "seq2seq",
        tf.AutoModelForSeq2SeqLM,
    ),
    Architecture(
        "t5-gated",
        lambda: tf.T5ForConditionalGeneration(
            tf.T5Config(
                vocab_size=VOCABULARY,
                d_model=8,
                d_kv=4,
                d_ff=12,
                num_layers=1,
                num_heads=2,
                dropout_rate=0.0,
                feed_forward_proj="gated-gelu",
                decoder_start_token_id=0,
            )
        ),
        "seq2seq",
        tf.AutoModelForSeq2SeqLM,
    ),
    Architecture(
        "gpt2-conv1d",
        lambda: tf.GPT2LMHeadModel(
            tf.GPT2Config(
                vocab_size=VOCABULARY, n_positions=16, n_embd=8, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2
            )
        ),
        "causal",
        tf.AutoModelForCausalLM,
    ),
    Architecture(
        "llama-untied",
        lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**TEXT, **STACK, **SPECIAL, num_key_value_heads=1)),
        "causal",
        tf.AutoModelForCausalLM,
    ),
    Architecture(
        "qwen2-tied",
        lambda: tf.Qwen2ForCausalLM(
            tf.Qwen2Config(**TEXT, **STACK, **SPECIAL, num_key_value_heads=1, tie_word_embeddings=True)
        ),
        "causal",
        tf.AutoModelForCausalLM,
    ),
    Architecture(
        "mixtral-moe",
        lambda: tf.MixtralForCausalLM(
            tf.MixtralConfig(**TEXT, **STACK, **SPECIAL, num_key_value_heads=1, num_local_experts=3)
        ),
        "causal",
        tf.AutoModelForCausalLM,
    ),
    Architecture(
        "bert-masked", lambda: tf.BertForMaskedLM(tf.BertConfig(**TEXT, **STACK)), "masked", tf.AutoModelForMaskedLM
    ),
    Architecture(
        "roberta-class",
        lambda: tf.RobertaForSequenceClassification(tf.RobertaConfig(**TEXT, **STACK, **LABELS, pad_token_id=0)),
        "text-class",
        tf.AutoModelForSequenceClassification,
    ),
    Architecture(
        "vit",
        lambda: tf.ViTForImageClassification(tf.ViTConfig(**STACK, **image(patch_size=8))),
        "image",
        tf.AutoModelForImageClassification,
    ),
    Architecture(
        "convnext",
        lambda: tf.ConvNextForImageClassification(
            tf.ConvNextConfig(hidden_sizes=[4, 8, 8, 8], depths=[1, 1, 1, 1], **image())
        ),
        "image",
        tf.AutoModelForImageClassification,
    ),
    Architecture(
        "resnet",
        lambda: tf.ResNetForImageClassification(
            tf.ResNetConfig(embedding_size=4, hidden_sizes=[8, 8], depths=[1, 1], num_labels=2)
        ),
        "image",
        tf.AutoModelForImageClassification,
        batch_norm=True,
    ),
    Architecture(
        "mobilenet-v1",
        lambda: tf.MobileNetV1ForImageClassification(
            tf.MobileNetV1Config(depth_multiplier=0.25, classifier_dropout_prob=0.0, **image())
        ),
        "image",
        tf.AutoModelForImageClassification,
        batch_norm=True,
    ),
]
