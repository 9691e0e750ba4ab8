"""Every form of calibration data as batches."""

import pytest
import torch
import transformers
from datasets import Dataset
from torch import nn

from hf_autosparse.oneshot.calibration import read_calibration
from tiny import tiny_translator


class Tokenizer:
    """A token a letter."""

    def __call__(self, text, truncation, max_length, text_target=None):
        assert truncation
        ids = [ord(letter) - 90 for letter in text][:max_length]
        encoded = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        return encoded | ({"labels": [ord(letter) - 90 for letter in text_target]} if text_target is not None else {})


def model(positions=16):
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    return transformers.BertForMaskedLM(
        transformers.BertConfig(vocab_size=40, max_position_embeddings=positions, **size)
    )


def read(data, samples=128, max_length=512, batch_size=8, of=None, tokenizer=None):
    return read_calibration(
        data, of or model(), tokenizer or Tokenizer(), samples=samples, max_length=max_length, batch_size=batch_size
    )


def shapes(calibration):
    return [tuple(batch.kwargs["input_ids"].shape) for batch in calibration.batches]


def test_texts_of_equal_length_go_together_and_nothing_is_padded():
    calibration = read(["abc", "ab", "bcd", "cde", "xy"], batch_size=2)
    assert shapes(calibration) == [(2, 3), (1, 3), (2, 2)]
    assert calibration.batches[0].kwargs["input_ids"].tolist() == [[7, 8, 9], [8, 9, 10]]
    assert calibration.source == "5 examples of a list"


def test_texts_are_cut_off():
    assert shapes(read(["abcdef"], max_length=4)) == [(1, 4)]
    assert shapes(read(["abcdef"], of=model(positions=5))) == [(1, 5)]


def test_a_text_file_has_a_text_a_line(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("abc\n\nabcd\n  \nab\n", encoding="utf-8")
    for data in (path, str(path)):
        calibration = read(data, samples=2)
        assert shapes(calibration) == [(1, 3), (1, 4)] and calibration.source == "2 examples of texts.txt"


def test_an_encoder_decoder_takes_source_and_target():
    (batch,) = read(["abc\tde"], of=tiny_translator()).batches
    assert batch.kwargs["input_ids"].tolist() == [[7, 8, 9]] and batch.kwargs["labels"].tolist() == [[10, 11]]
    with pytest.raises(
        ValueError, match="text 'abc' has no target, which an encoder-decoder needs: write source<tab>tar"
    ):
        read(["abc"], of=tiny_translator())


def test_batches_are_taken_as_they_are():
    ids = torch.ones(3, 5, dtype=torch.long)
    calibration = read([ids, (ids, ids), {"input_ids": ids, "flag": True}])
    assert [len(batch.args) for batch in calibration.batches] == [1, 2, 0]
    assert calibration.batches[2].kwargs["input_ids"] is ids and calibration.batches[2].kwargs["flag"] is True


def test_any_iterable_is_read_no_further_than_needed():
    def endless():
        while True:
            yield torch.ones(1, 2)

    calibration = read(endless(), samples=3)
    assert len(calibration.batches) == 3 and calibration.source == "3 examples of a generator"


def test_a_data_set():
    rows = Dataset.from_dict({"input_ids": [[5, 6], [7, 8], [9, 10, 11]], "idx": [0, 1, 2]})
    calibration = read(rows)
    assert shapes(calibration) == [(2, 2), (1, 3)] and set(calibration.batches[0].kwargs) == {"input_ids"}
    assert shapes(read(rows.with_format("torch"))) == [(2, 2), (1, 3)]
    texts = Dataset.from_dict({"title": ["x", "y"], "text": ["abc", "ab"], "label": [0, 1]})
    assert shapes(read(texts)) == [(1, 3), (1, 2)]
    assert shapes(read(Dataset.from_dict({"sentence": ["abc"]}))) == [(1, 3)]


def test_rows_as_dictionaries():
    assert shapes(read([{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5, 6]}])) == [(2, 3)]


def test_the_digest_knows_every_value():
    one = read([{"input_ids": torch.tensor([[1, 2]])}]).digest()
    assert one == read([{"input_ids": torch.tensor([[1, 2]])}]).digest()
    assert one != read([{"input_ids": torch.tensor([[1, 3]])}]).digest()
    assert one != read([{"inputs": torch.tensor([[1, 2]])}]).digest()
    assert read([{"x": torch.ones(1), "y": 1}]).digest() != read([{"x": torch.ones(1), "y": 2}]).digest()


@pytest.mark.parametrize(
    "data, error, message",
    [
        (
            "nowhere.txt",
            FileNotFoundError,
            "calibration = 'nowhere.txt' is no file: use a text file, or an iterable of",
        ),
        (5, TypeError, "calibration is a int: use a text file"),
        (torch.ones(2), TypeError, "calibration is a Tensor: use a text file, or an iterable of texts, of batches"),
        ({"input_ids": [1]}, TypeError, "calibration is a dict: use"),
        ([], ValueError, "calibration = a list is empty: give a few examples at least"),
        ([5], TypeError, "calibration item 0 is a int: use"),
        ([()], TypeError, "calibration item 0 is a tuple: use"),
        ([{"a": 1, "b": [2]}], ValueError, r"have the columns \['a', 'b'\], of which BertForMaskedLM takes none"),
        ([{"a": "x", "b": "y"}], ValueError, r"have several texts, \['a', 'b'\]: rename the one to use to 'text'"),
    ],
)
def test_bad_data(data, error, message):
    with pytest.raises(error, match=message):
        read(data)


def test_texts_need_a_tokenizer():
    with pytest.raises(
        ValueError, match=r"calibration has texts, but there is no tokenizer: give prune\(tokenizer=...\)"
    ):
        read_calibration(["a"], nn.Linear(1, 1), None, samples=1, max_length=1, batch_size=1)
