"""One-shot pruning of a small language model that this benchmark trains itself: perplexity before and after.

    python -m benchmarks.oneshot.language --data ../shared/data --output runs/oneshot

A Llama of 6.2 M parameters learns the English sides of Multi30k and WMT14 (train_small), on one thread in some 6
minutes of CPU time, and is kept in the output folder. Then each method prunes it at 50 % and 2:4, with three draws of
calibration texts. Results go to benchmarks/results/oneshot. Timings are not measured.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
    set_seed,
)

from benchmarks.oneshot.results import write
from hf_autosparse import prune
from hf_autosparse.oneshot.magnitude import Magnitude
from hf_autosparse.oneshot.sparsegpt import SparseGPT
from hf_autosparse.oneshot.wanda import Wanda

VOCABULARY, WINDOW, BATCH, STEPS, SEED, DRAWS = 4096, 128, 8, 800, 1, 3
TRAIN = ("multi30k/train.en", "wmt14/train_small.en")
HELD_OUT = {"Multi30k": "multi30k/test_2016_flickr.en", "newstest2014": "wmt14/newstest2014.en"}


def missing(data: Path) -> list[str]:
    """The files of the data that are absent."""
    return [name for name in (*TRAIN, *HELD_OUT.values()) if not (data / name).is_file()]


def lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def learn_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def windows(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """(windows, WINDOW) token ids: the texts one after the other, each with an end of text behind it."""
    ids: list[int] = []
    for encoded in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        ids += [*encoded, tokenizer.eos_token_id]
    count = len(ids) // WINDOW
    return torch.tensor(ids[: count * WINDOW]).view(count, WINDOW)


def train(data: Path, directory: Path) -> None:
    """Train the dense model, and save it with its tokenizer."""
    set_seed(SEED)
    texts = [line for name in TRAIN for line in lines(data / name)]
    order = torch.randperm(len(texts))
    texts = [texts[i] for i in order]
    tokenizer = learn_tokenizer(texts)
    blocks = windows(tokenizer, texts)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = get_cosine_schedule_with_warmup(optimizer, 100, STEPS)
    batches = torch.cat([torch.randperm(len(blocks)) for _ in range(STEPS * BATCH // len(blocks) + 1)]).split(BATCH)
    for step in range(STEPS):
        ids = blocks[batches[step]]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == STEPS - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, blocks: Tensor) -> float:
    """exp of the mean loss of all tokens but each window's first, in float32."""
    model.eval()
    losses = [
        model(input_ids=ids, labels=ids, use_cache=False).loss.item() * len(ids) for ids in blocks.split(4 * BATCH)
    ]
    return math.exp(sum(losses) / len(blocks))


def calibration(blocks: Tensor, draw: int) -> list[dict[str, Tensor]]:
    """128 windows of the training data, in batches of 16."""
    chosen = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(draw))[:128]
    return [{"input_ids": ids} for ids in blocks[chosen].split(16)]


def pruned_rows(directory: Path, data: Path) -> list[dict[str, Any]]:
    """Perplexity on each held-out text of the dense model and of each way to prune it, a row each."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    held_out = {name: windows(tokenizer, lines(data / file)) for name, file in HELD_OUT.items()}
    texts = windows(tokenizer, [line for name in TRAIN for line in lines(data / name)])

    def measured(model: LlamaForCausalLM) -> dict[str, float]:
        return {name: perplexity(model, blocks) for name, blocks in held_out.items()}

    rows: list[dict[str, Any]] = [
        {"method": "dense", "pattern": "", "draws": 1, **measured(LlamaForCausalLM.from_pretrained(directory))}
    ]
    methods = [Magnitude(), Wanda(), SparseGPT(), SparseGPT(block_size=32)]
    for pattern, method in itertools.product((None, "2:4"), methods):
        draws = []
        for draw in range(1 if method.name == "magnitude" else DRAWS):
            model = LlamaForCausalLM.from_pretrained(directory)
            prune(model, method=method, pattern=pattern, calibration=calibration(texts, draw), progress=False)
            draws.append(measured(model))
        row: dict[str, Any] = {"method": repr(method), "pattern": pattern or "50 %", "draws": len(draws)}
        for name in held_out:
            row[name] = statistics.mean(draw[name] for draw in draws)
            row[f"{name} deviation"] = statistics.stdev(draw[name] for draw in draws) if len(draws) > 1 else None
        print(row, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=Path("runs/oneshot"))
    arguments = parser.parse_args()
    if absent := missing(arguments.data):
        sys.exit(f"skipped: {arguments.data} lacks {', '.join(absent)}")
    torch.set_num_threads(1)
    dense = arguments.output / "dense"
    if not (dense / "model.safetensors").is_file():
        train(arguments.data, dense)
    write("language", pruned_rows(dense, arguments.data))


if __name__ == "__main__":
    main()
