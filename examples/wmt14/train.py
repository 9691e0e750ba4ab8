"""Train a Transformer on English-German, sparse or dense, and translate the test set.

    python -m examples.wmt14.train --config examples/wmt14/configs/multi30k.yaml
    accelerate launch -m examples.wmt14.train --config examples/wmt14/configs/paper_big.yaml

A killed run goes on exactly where its last checkpoint stands with --resume. Any value of the recipe can be changed:
--set training.max_steps=100 --set data.max_train_pairs=10000
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import sacrebleu
from transformers import (
    AutoTokenizer,
    M2M100Config,
    M2M100ForConditionalGeneration,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)

from examples.common.runs import check_output, environment, parse_options
from examples.wmt14.batching import Seq2SeqCollator, TokenBatchMixin
from examples.wmt14.data import DataConfig, TokenizedPairs, load_split
from examples.wmt14.recipe import load_recipe
from examples.wmt14.tokenizer import train_tokenizer
from examples.wmt14.translate import processes, translate_shared
from hf_autosparse import AutoSparseMixin, SparseConfig, finalize, sparsity_report


class DenseTrainer(TokenBatchMixin, Seq2SeqTrainer):
    """Seq2SeqTrainer with batches of at most `max_tokens` tokens."""


class SparseTrainer(AutoSparseMixin, DenseTrainer):
    """The same, sparse: the mixin is all it takes."""


def main(argv: list[str] | None = None) -> None:
    options = parse_options(__doc__, argv)
    recipe = load_recipe(options.config, options.set)
    result = train(recipe, resume=options.resume)
    if processes().is_main_process:
        print(json.dumps({"recipe": options.config, "set": options.set} | result, indent=2))


def train(recipe: dict[str, Any], *, resume: bool = False) -> dict[str, Any]:
    """Train by a recipe, save the model and its translation of the test set, and return the figures.

    Raises:
        FileExistsError: `output_dir` holds an earlier run, and `resume` is False.
    """
    output = Path(recipe["output_dir"])
    check_output(output, resume=resume)
    arguments = Seq2SeqTrainingArguments(output_dir=str(output), seed=recipe["seed"], **recipe["training"])

    # Data: the main process prepares tokenizer and token files, the others then read the same ones.
    data = DataConfig(**recipe["data"])
    with arguments.main_process_first(local=False, desc="preparing the data"):
        if not resume and arguments.process_index == 0:
            start = recipe.get("start_from")
            tokenizer = (
                AutoTokenizer.from_pretrained(start)
                if start is not None
                else train_tokenizer(load_split(data, "train").texts(), **recipe["tokenizer"])
            )
            tokenizer.save_pretrained(output)
        tokenizer = AutoTokenizer.from_pretrained(output)
        splits = {
            split: TokenizedPairs.build(load_split(data, split), tokenizer, output / "_tokens" / split, data.max_length)
            for split in ("train", "validation")
        }

    set_seed(recipe["seed"])
    model = build_model(recipe, tokenizer)

    # Training. Tokens are those of both sides, without padding; the time includes evaluation and saving.
    sparse = recipe.get("sparse")
    shared = {
        "max_tokens": recipe["max_tokens"],
        "train_dataset": splits["train"],
        "eval_dataset": splits["validation"],
        "data_collator": Seq2SeqCollator(tokenizer.pad_token_id, model.config.decoder_start_token_id),
        "processing_class": tokenizer,
    }
    if sparse is None:
        trainer = DenseTrainer(model, arguments, **shared)
    else:
        trainer = SparseTrainer(model, arguments, SparseConfig.from_dict(sparse), **shared)
    speed = trainer.train(resume_from_checkpoint=resume or None).metrics
    trainer.save_model()

    # Result: the model that was saved, on the test set.
    model = trainer.accelerator.unwrap_model(trainer.model)
    result: dict[str, Any] = {"seed": recipe["seed"], "sparse": sparse}
    if sparse is not None:
        report = sparsity_report(model)
        result |= {"sparsity": report.sparsity, "sparse_weights": report.weights}
        finalize(model)
    tokens_per_epoch = int(splits["train"].source_lengths.sum() + splits["train"].target_lengths.sum())
    tokens_per_step = tokens_per_epoch * trainer.state.epoch / trainer.state.global_step
    result |= {
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_tokens_per_second": tokens_per_step * speed["train_steps_per_second"],
        "train_seconds": speed["train_runtime"],
        "epochs": trainer.state.epoch,
        "steps": trainer.state.global_step,
    }
    sources, references = load_split(data, "test").columns()
    start = time.perf_counter()
    hypotheses = translate_shared(model, tokenizer, sources, **recipe["evaluation"])
    metric = sacrebleu.BLEU()
    result |= {
        "bleu": metric.corpus_score(hypotheses, [references]).score,
        "bleu_signature": str(metric.get_signature()),
        "translate_seconds": time.perf_counter() - start,
        "environment": environment(),
    }
    if trainer.is_world_process_zero():
        (output / "hypotheses.txt").write_text("".join(f"{line}\n" for line in hypotheses))
        (output / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def build_model(recipe: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> M2M100ForConditionalGeneration:
    """The pre-norm Transformer with sinusoidal positions and one embedding for source, target and output, from scratch;
    or the saved model that `start_from` names, plain or packed."""
    if recipe.get("start_from") is not None:
        return M2M100ForConditionalGeneration.from_pretrained(recipe["start_from"])
    return M2M100ForConditionalGeneration(
        M2M100Config(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.eos_token_id,
            **recipe["model"],
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
