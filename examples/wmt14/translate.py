"""Translate sentences with a trained model.

    python -m examples.wmt14.translate --model runs/en-de "A man reads a book." "Two dogs play."
    python -m examples.wmt14.translate --model runs/en-de < sentences.en > sentences.de

Prints one translation a line.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


def translate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    *,
    num_beams: int = 4,
    length_penalty: float = 0.6,
    max_tokens_per_batch: int = 4096,
    batch_size: int | None = None,
    max_new_tokens: int | None = None,
    progress: bool = True,
) -> list[str]:
    """Translate by beam search, on the model's device and in its dtype; the model's training mode is kept.

    Transformers divides the score of a hypothesis by `length ** length_penalty`, GNMT (and so the Transformer paper,
    whose alpha is 0.6) by `((5 + length) / 6) ** alpha`. Of two lengths 20 and 25 the shorter has 0.875 times the
    divisor of the longer here and 0.896 times there: the same penalty favours long output slightly more here.

    Args:
        sentences: of any length and order; the translations come in the same order.
        max_tokens_per_batch: most source tokens in a batch, padding included; beams come on top. A sentence longer
            than that is a batch of its own.
        batch_size: most sentences in a batch; None for no such limit.
        max_new_tokens: where output is cut off; None for twice the longest source of the batch plus 10 tokens.
        progress: show a progress bar on stderr.

    Raises:
        ValueError: for a number that is not at least 1.
    """
    numbers = {
        "num_beams": num_beams,
        "max_tokens_per_batch": max_tokens_per_batch,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
    }
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}.")
    if not sentences:
        return []
    lengths = [len(ids) for ids in tokenizer(list(sentences))["input_ids"]]
    translations = [""] * len(sentences)
    was_training = model.training
    model.eval()
    try:
        with tqdm(total=len(sentences), desc="translating", unit=" sentences", disable=not progress) as bar:
            for indices in _batches(lengths, max_tokens_per_batch, batch_size or len(sentences)):
                inputs = tokenizer(
                    [sentences[index] for index in indices],
                    padding=True,
                    return_token_type_ids=False,
                    return_tensors="pt",
                ).to(model.device)
                output = model.generate(
                    **inputs,
                    num_beams=num_beams,
                    length_penalty=length_penalty,
                    max_new_tokens=max_new_tokens or 2 * lengths[indices[0]] + 10,
                    do_sample=False,
                )
                for index, text in zip(indices, tokenizer.batch_decode(output, skip_special_tokens=True), strict=True):
                    translations[index] = text
                bar.update(len(indices))
    finally:
        model.train(was_training)
    return translations


def translate_shared(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], **options
) -> list[str]:
    """`translate` by all processes together: each takes every n-th sentence, and all get all translations.

    Translations are single lines, fit for a file. `options` are those of `translate`.
    """
    state = processes()
    rank, count = state.process_index, state.num_processes
    options = {"progress": state.is_main_process} | options
    share = translate(model, tokenizer, sentences[rank::count], **options)
    translations = [""] * len(sentences)
    for index, part in enumerate(gather_object([share])):
        translations[index::count] = map(one_line, part)
    return translations


def _batches(lengths: Sequence[int], max_tokens: int, max_sentences: int) -> Iterator[list[int]]:
    """Indices of sentences, longest first: little padding, and what does not fit in memory fails at once."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        full = len(batch) == max_sentences or batch and (len(batch) + 1) * lengths[batch[0]] > max_tokens
        if full:
            yield batch
            batch = []
        batch.append(index)
    yield batch


def processes() -> PartialState:
    """This process among those that were launched. Without `cpu=True`, each on a CPU machine takes itself for alone."""
    return PartialState(cpu=not torch.accelerator.is_available())


def load(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer saved in a folder, the model on this process's device."""
    return AutoModelForSeq2SeqLM.from_pretrained(path).to(processes().device), AutoTokenizer.from_pretrained(path)


def split_lines(text: str) -> list[str]:
    """Lines end with "\\n" and nothing else: `str.splitlines` also cuts at U+0085 and U+2028, which real text holds."""
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def one_line(text: str) -> str:
    """`text` with line breaks replaced by spaces, so that a file has one line a sentence."""
    return text.replace("\r\n", " ").replace("\n", " ").replace("\r", " ")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a saved model and tokenizer")
    parser.add_argument("--num-beams", type=int, default=4)
    parser.add_argument("--length-penalty", type=float, default=0.6)
    parser.add_argument("sentences", nargs="*", help="default: one sentence a line from standard input")
    options = parser.parse_args(argv)
    sentences = options.sentences or split_lines(sys.stdin.buffer.read().decode("utf-8"))
    model, tokenizer = load(options.model)
    translations = translate(
        model, tokenizer, sentences, num_beams=options.num_beams, length_penalty=options.length_penalty, progress=False
    )
    for translation in translations:
        print(one_line(translation))


if __name__ == "__main__":
    main()
