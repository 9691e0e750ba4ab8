"""The joint BPE tokenizer: lossless, deterministic, and the same after saving."""

import hashlib
import os
import subprocess
import sys
import unicodedata

import pytest
from transformers import AutoTokenizer

from examples.wmt14.grammar import generate_pairs
from examples.wmt14.tokenizer import BYTES, SPECIAL_TOKENS, train_tokenizer
from paths import PYTHONPATH

TEXTS = [text for pair in generate_pairs(1500) for text in pair] + ['"Well-known", he said: it\'s 1,234.5 %!'] * 20
VOCABULARY = 1200


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, VOCABULARY)


def digest(tokenizer) -> str:
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


@pytest.mark.parametrize(
    "text",
    [
        "The dog sees the man.",
        "Die Äpfel, größer als Übungen: süß!",
        "Hello , world .",
        "He said: \"Don't go!\" - 'no'",
        "„Guten Tag“, sagte er – und ging …",
        "well-known  double   spaces ",
        "1,234.56 € (50%) in 2014; 3/4",
        "<s>strike</s> <pad> <unk> <0x41>",
        "雪 🙂 Жук naïve",
        "a\tb\u0085c\u2028d\u00a0e\nf",
        "",
    ],
)
def test_round_trip(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert ids[-1] == tokenizer.eos_token_id
    assert not set(ids[:-1]) & set(tokenizer.all_special_ids)  # nothing unknown, no tag taken for a special token


def test_what_is_not_kept(tokenizer):
    def round_trip(text):
        return tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)

    assert round_trip("u\u0308ber") == "\u00fcber"  # NFC
    assert round_trip(" leading space") == "leading space"


def test_special_tokens_come_first_and_only_eos_is_added(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id) == (0, 1)
    assert (tokenizer.eos_token_id, tokenizer.unk_token_id) == (2, 3)
    batch = tokenizer(["The dog sees the man.", "No."], padding=True)
    assert list(batch) == ["input_ids", "attention_mask"]
    short, mask = batch["input_ids"][1], batch["attention_mask"][1]
    assert short[-1] == 0 and mask[0] == 1 and mask[-1] == 0  # padded on the right
    assert tokenizer("The dog.")["input_ids"] == tokenizer.encode("The dog.", add_special_tokens=False) + [2]


def test_unseen_characters_become_bytes(tokenizer):
    # U+96EA is E9 9B AA in UTF-8; bytes have the ids from 4 on.
    assert tokenizer.encode("雪", add_special_tokens=False)[1:] == [4 + 0xE9, 4 + 0x9B, 4 + 0xAA]
    assert tokenizer.convert_tokens_to_ids(list(BYTES)) == list(range(4, 260))


def test_punctuation_stands_alone(tokenizer):
    tokens = tokenizer.tokenize('The dog, "well-known".')
    assert all(len(token) == 1 for token in tokens if set(token) & set('.,"-'))


def test_vocabulary(tokenizer):
    assert len(tokenizer) == VOCABULARY
    assert sorted(tokenizer.get_vocab().values()) == list(range(VOCABULARY))
    assert tokenizer.tokenize("The dog.") == ["\u2581The", "\u2581dog", "."]  # frequent words are whole


def test_small_corpus_gives_a_smaller_vocabulary():
    assert len(train_tokenizer(["ab ab", "ab"], 1000)) == 4 + 256 + 3 + 2  # a, b, space; "ab", " ab"


def test_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert digest(loaded) == digest(tokenizer)
    text = 'Der Hund sieht "den" Mann, <s> – 雪.'
    assert loaded(text) == tokenizer(text)
    assert loaded.decode(loaded(text)["input_ids"], skip_special_tokens=True) == text
    assert (loaded.model_max_length, loaded.padding_side, loaded.eos_token) == (1024, "right", "</s>")
    assert loaded.model_input_names == ["input_ids", "attention_mask"]


def test_deterministic_in_other_processes_and_for_iterators(tokenizer):
    script = (
        "import hashlib; from examples.wmt14.grammar import generate_pairs;"
        "from examples.wmt14.tokenizer import train_tokenizer;"
        "texts = [t for p in generate_pairs(1500) for t in p] + ['\"Well-known\", he said: it\\'s 1,234.5 %!'] * 20;"
        f"t = train_tokenizer(iter(texts), {VOCABULARY});"
        "print(hashlib.sha256(t.backend_tokenizer.to_str().encode()).hexdigest())"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": PYTHONPATH}
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == digest(tokenizer)


def test_rare_characters_share_the_bytes():
    texts = ["abc " * 50] * 2000 + ["\u96ea"]  # 1 of 300,001 characters without spaces: beyond the coverage
    tokenizer = train_tokenizer(texts, 300)
    assert "\u96ea" not in tokenizer.get_vocab()
    assert train_tokenizer([*texts, "\u96ea" * 10], 300).get_vocab().keys() >= {"\u96ea"}


def test_errors():
    with pytest.raises(ValueError, match=r"vocab_size must be at least 263 .* 3 characters\), got 262"):
        train_tokenizer(["ab"], 262)
    with pytest.raises(ValueError, match="texts hold no character"):
        train_tokenizer(["", "  "], 1000)


def test_real_text_survives(shared_data):
    def lines(name):
        return (shared_data / "wmt14" / name).read_text(encoding="utf-8").split("\n")[:600]

    tokenizer = train_tokenizer(lines("newstest2013.en") + lines("newstest2013.de"), 2000)
    for text in lines("newstest2014.en") + lines("newstest2014.de"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == unicodedata.normalize("NFC", text)
        assert tokenizer.unk_token_id not in ids
