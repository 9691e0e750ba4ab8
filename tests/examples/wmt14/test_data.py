"""Sources of sentence pairs and their token files."""

import gzip
import pickle
from itertools import islice

import datasets
import numpy as np
import pytest
from torch.utils.data import DataLoader

from examples.wmt14 import data
from examples.wmt14.data import DataConfig, Pairs, TokenizedPairs, load_split
from examples.wmt14.grammar import generate_pairs
from examples.wmt14.tokenizer import train_tokenizer

PAIRS = generate_pairs(300, seed=3)
LINES = ["A dog.", "", "next\u0085line\u2028here", "\x0bvertical\x0ctabs\x1c", " space ", "last\r"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([text for pair in PAIRS for text in pair], 600)


def write(path, lines, opener=open, end="\n"):
    with opener(path, "wb") as stream:
        stream.write(("\n".join(lines) + end).encode())
    return str(path)


def file_config(tmp_path, source, target, **more) -> DataConfig:
    paths = write(tmp_path / "a.en", source), write(tmp_path / "a.de", target)
    return DataConfig(source="files", train_source=paths[0], train_target=paths[1], **more)


# ---- configuration


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "file"}, r"source must be one of .*'files'.*, got 'file'; near: \['files'\]"),
        ({"max_length": 1}, "max_length must be an integer of at least 2, got 1"),
        ({"max_train_pairs": 0}, "max_train_pairs must be an integer of at least 1, got 0"),
        ({"demo_test": "10"}, "demo_test must be an integer of at least 1, got '10'"),
        ({"source": "demo", "streaming": True}, "streaming=True goes with source='wmt14' only, got source='demo'"),
        ({"source": "wmt14", "test_source": "x"}, "test_source would not be read with source='wmt14'"),
    ],
)
def test_config_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**settings)


def test_unknown_split():
    with pytest.raises(ValueError, match=r"split must be one of .*, got 'dev'"):
        load_split(DataConfig(), "dev")


# ---- sources


def test_demo():
    config = DataConfig(demo_train=200, demo_validation=10, demo_test=5, max_train_pairs=150)
    train, test = load_split(config, "train"), load_split(config, "test")
    assert (train.count, test.count) == (150, 5)
    assert len(list(train)) == 150 and list(train) == list(train)
    sources, targets = test.columns()
    assert list(zip(sources, targets, strict=True)) == list(test)
    assert train.fingerprint != load_split(DataConfig(demo_train=200, demo_seed=1), "train").fingerprint


@pytest.mark.parametrize("end", ["\n", ""])
@pytest.mark.parametrize("opener", [open, gzip.open])
def test_files_are_cut_at_newlines_only(tmp_path, opener, end):
    suffix = ".gz" if opener is gzip.open else ""
    source = write(tmp_path / f"a.en{suffix}", LINES, opener, end)
    target = write(tmp_path / f"a.de{suffix}", LINES[::-1], opener, end)
    pairs = load_split(DataConfig(source="files", test_source=source, test_target=target), "test")
    assert pairs.columns() == (LINES, LINES[::-1])
    assert pairs.count == len(LINES)
    assert list(pairs.texts()) == [text for pair in zip(LINES, LINES[::-1], strict=True) for text in pair]


def test_fingerprint_follows_the_content(tmp_path):
    first = load_split(file_config(tmp_path, ["a", "b"], ["c", "d"]), "train").fingerprint
    assert load_split(file_config(tmp_path, ["a", "b"], ["c", "d"]), "train").fingerprint == first
    assert load_split(file_config(tmp_path, ["a", "b"], ["c", "e"]), "train").fingerprint != first
    assert load_split(file_config(tmp_path, ["a", "b"], ["c", "d"], max_train_pairs=1), "train").fingerprint != first


def test_file_errors(tmp_path):
    with pytest.raises(ValueError, match=r"a\.en has 3 lines and .*a\.de has 2"):
        load_split(file_config(tmp_path, ["a", "b", "c"], ["d", "e"]), "train")
    with pytest.raises(ValueError, match="validation_source is not set: source='files' needs its path"):
        load_split(file_config(tmp_path, ["a"], ["b"]), "validation")
    with pytest.raises(FileNotFoundError, match="train_target: there is no file .*missing.de"):
        config = file_config(tmp_path, ["a"], ["b"])
        config.train_target = str(tmp_path / "missing.de")
        load_split(config, "train")
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="are empty; test needs at least one pair"):
        empty = str(tmp_path / "empty")
        load_split(DataConfig(source="files", test_source=empty, test_target=empty), "test")
    (tmp_path / "latin1").write_bytes("gut\nsüß\n".encode("latin-1"))
    with pytest.raises(ValueError, match="latin1, line 2: not UTF-8"):
        latin1 = str(tmp_path / "latin1")
        list(load_split(DataConfig(source="files", test_source=latin1, test_target=latin1), "test"))


@pytest.mark.parametrize("streaming", [False, True])
def test_wmt14(monkeypatch, streaming):
    rows = datasets.Dataset.from_list([{"translation": {"de": de, "en": en}} for en, de in PAIRS])
    asked = {}

    def load_dataset(*names, **options):
        asked.update(options, names=names)
        return rows.to_iterable_dataset() if streaming else rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(data, "CHUNK", 7)
    config = DataConfig(source="wmt14", streaming=streaming, max_train_pairs=20, cache_dir="somewhere")
    train, test = load_split(config, "train"), load_split(config, "test")
    assert asked == {"names": ("wmt14", "de-en"), "split": "test", "streaming": streaming, "cache_dir": "somewhere"}
    assert list(train) == list(train) == PAIRS[:20]
    assert list(test) == PAIRS
    assert test.count == (None if streaming else 300)


def test_wmt14_out_of_reach(monkeypatch):
    def load_dataset(*names, **options):
        raise ConnectionError("Couldn't reach 'wmt14' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ConnectionError, match="without a network use source='files' or source='demo'"):
        load_split(DataConfig(source="wmt14"), "train")


def test_real_corpus(shared_data):
    folder = shared_data / "multi30k"
    paths = {"train_source": str(folder / "train.en"), "train_target": str(folder / "train.de")}
    pairs = load_split(DataConfig(source="files", **paths), "train")
    assert pairs.count == 29_000
    assert next(iter(pairs))[1].startswith("Zwei junge weiße Männer")


# ---- token files


def test_build_holds_what_the_tokenizer_gives(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 64)
    dataset = TokenizedPairs.build(PAIRS, tokenizer, tmp_path / "deep" / "train", max_length=100)
    assert len(dataset) == 300
    for i, (english, german) in enumerate(PAIRS):
        expected = {"input_ids": tokenizer(english)["input_ids"], "labels": tokenizer(german)["input_ids"]}
        assert dataset[i] == expected
        assert dataset.source_lengths[i] == len(expected["input_ids"])
        assert dataset.target_lengths[i] == len(expected["labels"])
    assert dataset[-1] == dataset[299]
    with pytest.raises(IndexError, match="pair 300 of 300"):
        dataset[300]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["train"]


def test_token_files_are_mapped_not_read(tokenizer, tmp_path):
    dataset = TokenizedPairs.build(PAIRS, tokenizer, tmp_path / "train", 100)
    tokens = np.load(tmp_path / "train" / "source_tokens.npy", mmap_mode="r")
    assert tokens.dtype == np.int32 and len(tokens) == dataset.source_lengths.sum()
    assert dataset.source_lengths.dtype == np.int32
    assert isinstance(dataset._sources._tokens, np.memmap)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 500  # a path, not the data
    assert pickle.loads(pickled)[7] == dataset[7] == TokenizedPairs.load(tmp_path / "train")[7]
    rows = list(DataLoader(dataset, batch_size=None, num_workers=1))
    assert rows == [dataset[i] for i in range(300)]


def test_empty_and_long_pairs_are_dropped_and_counted(tokenizer, tmp_path, caplog):
    pairs = [("The dog.", "Der Hund."), ("", "Der Hund."), ("The cat.", " \u2028"), ("The dog. " * 9, "Der Hund.")]
    length = len(tokenizer("The dog.")["input_ids"])
    with caplog.at_level("INFO"):
        dataset = TokenizedPairs.build(pairs, tokenizer, tmp_path / "x", max_length=length + 2)
    assert (len(dataset), dataset.dropped_empty, dataset.dropped_long) == (1, 2, 1)
    assert "kept 1 pairs, dropped 2 with an empty side and 1 longer than" in caplog.text
    exact = TokenizedPairs.build(pairs[:1], tokenizer, tmp_path / "y", max_length=max(length, 4))
    assert len(exact) == 1  # max_length itself is allowed
    with pytest.raises(ValueError, match=r"no pair is left of 3 \(2 with an empty side, 1 longer than max_length=9"):
        TokenizedPairs.build(pairs[1:], tokenizer, tmp_path / "z", max_length=9)
    assert not (tmp_path / "z").exists()


def counting(pairs) -> tuple[Pairs, list[int]]:
    reads = []

    def read():
        reads.append(1)
        return iter(pairs)

    return Pairs("counted", "same content", read, len(pairs)), reads


def test_cache_is_used_while_data_tokenizer_and_length_are_the_same(tokenizer, tmp_path):
    pairs, reads = counting(PAIRS)
    first = TokenizedPairs.build(pairs, tokenizer, tmp_path / "train", 100)
    second = TokenizedPairs.build(pairs, tokenizer, tmp_path / "train", 100)
    assert len(reads) == 1 and len(first) == len(second) == 300
    assert first[5] == second[5]
    shorter = TokenizedPairs.build(pairs, tokenizer, tmp_path / "train", 25)
    assert len(reads) == 2 and len(shorter) < 300 and shorter.source_lengths.max() <= 25
    other_tokenizer = train_tokenizer([text for pair in PAIRS for text in pair], 400)
    other = TokenizedPairs.build(pairs, other_tokenizer, tmp_path / "train", 25)
    assert len(reads) == 3 and other[0] != shorter[0]
    other_data = TokenizedPairs.build(PAIRS[:9], other_tokenizer, tmp_path / "train", 100)
    assert len(other_data) == 9
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_broken_run_leaves_nothing_or_what_was_there(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 10)

    def breaks():
        yield from islice(PAIRS, 25)
        raise RuntimeError("killed")

    broken = Pairs("broken", "broken", breaks)
    with pytest.raises(RuntimeError, match="killed"):
        TokenizedPairs.build(broken, tokenizer, tmp_path / "train", 100)
    assert list(tmp_path.iterdir()) == []
    good = TokenizedPairs.build(PAIRS, tokenizer, tmp_path / "train", 100)
    with pytest.raises(RuntimeError, match="killed"):
        TokenizedPairs.build(broken, tokenizer, tmp_path / "train", 100)
    assert TokenizedPairs.load(tmp_path / "train")[299] == good[299]


def test_folder_errors(tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no tokenized pairs; make them with TokenizedPairs.build"):
        TokenizedPairs.load(tmp_path)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds something else than tokenized pairs"):
        TokenizedPairs.build(PAIRS, tokenizer, tmp_path, 100)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    with pytest.raises(TypeError, match="int is not backed by the tokenizers library"):
        TokenizedPairs.build(PAIRS, 3, tmp_path / "x", 100)
