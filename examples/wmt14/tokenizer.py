"""A joint byte-pair vocabulary for both languages (Sennrich et al. 2016), trained with the `tokenizers` library."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")  # ids 0, 1, 2, 3
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
SPACE = "\u2581"  # stands for a space inside tokens
CHARACTER_COVERAGE = 0.99999  # part of all characters that get a token of their own; the rest is spelt in bytes


def train_tokenizer(texts: Iterable[str], vocab_size: int, model_max_length: int = 1024) -> PreTrainedTokenizerFast:
    """Train one BPE vocabulary over `texts`; equal texts give an equal tokenizer.

    A space belongs to the word behind it, punctuation stands alone, and characters too rare for a token of their own
    are spelt in UTF-8 bytes: `decode(encode(text), skip_special_tokens=True)` gives back the NFC form of every text
    that does not begin with a space and holds no U+2581. `</s>` is appended, nothing is prepended.

    Args:
        texts: both languages together. Read twice: a one-shot iterator is first collected in memory.
        vocab_size: most tokens in all; 4 special ones, 256 bytes and the alphabet come first. A small corpus may not
            have so many distinct pairs; then the vocabulary is smaller.
        model_max_length: tokens of a sentence beyond which the tokenizer truncates when asked to.

    Raises:
        ValueError: where `texts` holds no character or `vocab_size` is too small for the alphabet.
    """
    if iter(texts) is texts:
        texts = list(texts)
    alphabet = _alphabet(texts)
    least = len(SPECIAL_TOKENS) + len(BYTES) + len(alphabet)
    if vocab_size < least:
        raise ValueError(
            f"vocab_size must be at least {least} for these texts ({len(SPECIAL_TOKENS)} special tokens, 256 bytes, "
            f"{len(alphabet)} characters), got {vocab_size}."
        )
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always"),
            pre_tokenizers.Punctuation(behavior="isolated"),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(BYTES),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),  # exactly the initial alphabet: tokenizers breaks ties at this limit at random
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.model = _with_byte_fallback(tokenizer)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, tokenizer.token_to_id(EOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="right",
        truncation_side="right",
        model_max_length=model_max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # "<s>" in a web text is four characters, not the start of a sentence
    )


def _alphabet(texts: Iterable[str]) -> list[str]:
    """The fewest characters that make up `CHARACTER_COVERAGE` of the texts, most frequent first."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(unicodedata.normalize("NFC", text))
    counts.pop(" ", None)
    total = counts.total()
    if total == 0:
        raise ValueError("texts hold no character to learn from; check the training files.")
    alphabet, covered = [SPACE], 0
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if covered >= CHARACTER_COVERAGE * total:
            break
        covered += count
        if character != SPACE:
            alphabet.append(character)
    return alphabet


def _with_byte_fallback(tokenizer: Tokenizer) -> models.BPE:
    """The trained model with the 256 byte tokens put in behind the special ones.

    They cannot be the trainer's special tokens: decoding with `skip_special_tokens` would drop them.
    """
    trained = json.loads(tokenizer.to_str())["model"]
    first = len(SPECIAL_TOKENS)
    vocabulary = {token: index if index < first else index + len(BYTES) for token, index in trained["vocab"].items()}
    vocabulary |= {token: first + byte for byte, token in enumerate(BYTES)}
    merges = [tuple(merge) for merge in trained["merges"]]
    return models.BPE(vocab=vocabulary, merges=merges, unk_token=UNK, byte_fallback=True)
