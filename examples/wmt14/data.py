"""Where sentence pairs come from, and how they are kept as tokens: from a text to memory-mapped arrays.

`load_split` gives a `Pairs` stream of (English, German) texts from WMT14, from text files or from the built-in demo
grammar. `TokenizedPairs.build` turns such a stream into four .npy files that all processes map into memory: 4.5 million
pairs take about 1.2 GB of disk and 36 MB of private memory per process.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import json
import logging
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from examples.wmt14.grammar import demo_corpus

logger = logging.getLogger(__name__)

SOURCES = ("wmt14", "files", "demo")
SPLITS = ("train", "validation", "test")
CHUNK = 2000  # pairs per call of the tokenizer
FORMAT = 1  # of the token files; a new number makes old caches be rebuilt


@dataclass
class DataConfig:
    """Where the sentence pairs come from; English is the source language and German the target.

    Args:
        source: "wmt14" (Hugging Face dataset `wmt14`, `de-en`: 4.5 M training pairs, newstest2013, newstest2014),
            "files" (parallel text, one sentence a line) or "demo" (a grammar made for this example; no download).
        train_source, ..., test_target: UTF-8 text files, plain or .gz, for source "files".
        streaming: for source "wmt14": read over the network while tokenizing instead of storing the download.
        max_train_pairs: keep only the first so many training pairs; None for all.
        max_length: most tokens on either side, `</s>` included; longer pairs are left out.
        demo_train, demo_validation, demo_test, demo_seed: sizes and seed of the demo corpus.
        cache_dir: where source "wmt14" is stored; None for the Hugging Face default.
    """

    source: str = "demo"
    train_source: str | None = None
    train_target: str | None = None
    validation_source: str | None = None
    validation_target: str | None = None
    test_source: str | None = None
    test_target: str | None = None
    streaming: bool = False
    max_train_pairs: int | None = None
    max_length: int = 256
    demo_train: int = 20_000
    demo_validation: int = 500
    demo_test: int = 500
    demo_seed: int = 0
    cache_dir: str | None = None

    def __post_init__(self):
        if self.source not in SOURCES:
            near = difflib.get_close_matches(str(self.source), SOURCES, n=1)
            raise ValueError(f"source must be one of {SOURCES}, got {self.source!r}; near: {near}")
        for name in ("max_length", "demo_train", "demo_validation", "demo_test", "max_train_pairs"):
            value = getattr(self, name)
            least = 2 if name == "max_length" else 1
            if value is None and name == "max_train_pairs":
                continue
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")
        if self.streaming and self.source != "wmt14":
            raise ValueError(f"streaming=True goes with source='wmt14' only, got source={self.source!r}; leave it out.")
        paths = [f"{split}_{side}" for split in SPLITS for side in ("source", "target")]
        given = [name for name in paths if getattr(self, name) is not None]
        if given and self.source != "files":
            raise ValueError(f"{', '.join(given)} would not be read with source={self.source!r}; use source='files'.")


@dataclass(frozen=True)
class Pairs:
    """A stream of (source, target) texts that can be read many times and never lies in memory as a whole.

    Attributes:
        name: for messages.
        fingerprint: equal for equal texts; what caches are keyed by.
        read: opens the stream at its beginning.
        count: number of pairs where it is known without reading them.
    """

    name: str
    fingerprint: str
    read: Callable[[], Iterator[tuple[str, str]]] = field(repr=False)
    count: int | None = None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return self.read()

    def columns(self) -> tuple[list[str], list[str]]:
        """All sources and all targets as two lists: for validation and test sets, which fit into memory."""
        sources, targets = zip(*self, strict=True)
        return list(sources), list(targets)

    def texts(self) -> Texts:
        """Both languages one text after the other, for a joint tokenizer."""
        return Texts(self)

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]], name: str = "pairs") -> Pairs:
        """Wrap pairs that are in memory already."""
        pairs = list(pairs)
        digest = hashlib.sha256(json.dumps(pairs).encode())
        return cls(name, digest.hexdigest(), lambda: iter(pairs), len(pairs))


@dataclass(frozen=True)
class Texts:
    """The texts of `pairs`, source and target in turn; can be read many times."""

    pairs: Pairs

    def __iter__(self) -> Iterator[str]:
        return (text for pair in self.pairs for text in pair)


def load_split(config: DataConfig, split: str) -> Pairs:
    """The sentence pairs of `split`: "train", "validation" or "test".

    Raises:
        ValueError: no such split, a split without paths, an empty file, or two files of unequal length.
        FileNotFoundError: a path that leads nowhere.
        ConnectionError: WMT14 is neither stored nor within reach.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}.")
    load = {"wmt14": _load_wmt14, "files": _load_files, "demo": _load_demo}[config.source]
    pairs = load(config, split)
    return pairs if split != "train" or config.max_train_pairs is None else _first(pairs, config.max_train_pairs)


def _first(pairs: Pairs, most: int) -> Pairs:
    """The first `most` pairs."""
    count = None if pairs.count is None else min(most, pairs.count)
    return Pairs(
        f"first {most} of {pairs.name}", f"{pairs.fingerprint}[:{most}]", lambda: islice(pairs.read(), most), count
    )


def _load_demo(config: DataConfig, split: str) -> Pairs:
    corpus = _demo_corpus(config.demo_train, config.demo_validation, config.demo_test, config.demo_seed)
    return Pairs.of(zip(*corpus[split], strict=True), name=f"demo {split}")


_demo_corpus = lru_cache(maxsize=1)(demo_corpus)  # all three splits are generated together


def _load_wmt14(config: DataConfig, split: str) -> Pairs:
    import datasets  # only this source needs it

    try:
        rows = datasets.load_dataset(
            "wmt14", "de-en", split=split, streaming=config.streaming, cache_dir=config.cache_dir
        )
    except (ConnectionError, FileNotFoundError) as error:
        raise ConnectionError(
            "source='wmt14' needs the Hugging Face Hub or its local cache, and neither has the dataset; "
            "without a network use source='files' or source='demo'."
        ) from error

    def read() -> Iterator[tuple[str, str]]:
        for batch in rows.iter(batch_size=CHUNK):
            for row in batch["translation"]:
                yield row["en"], row["de"]

    # WMT14 is a closed corpus: its name stands for its content.
    return Pairs(f"wmt14 {split}", f"wmt14/de-en/{split}", read, None if config.streaming else len(rows))


def _load_files(config: DataConfig, split: str) -> Pairs:
    paths = []
    for side in ("source", "target"):
        value = getattr(config, f"{split}_{side}")
        if value is None:
            raise ValueError(f"{split}_{side} is not set: source='files' needs its path to load the {split} split.")
        if not Path(value).is_file():
            raise FileNotFoundError(f"{split}_{side}: there is no file {value}")
        paths.append(Path(value))
    (source_lines, source_hash), (target_lines, target_hash) = map(_scan, paths)
    if source_lines != target_lines:
        raise ValueError(
            f"{paths[0]} has {source_lines} lines and {paths[1]} has {target_lines}: line n of one must translate "
            "line n of the other."
        )
    if source_lines == 0:
        raise ValueError(f"{paths[0]} and {paths[1]} are empty; {split} needs at least one pair.")
    return Pairs(
        f"{paths[0]}, {paths[1]}",
        f"{source_hash}:{target_hash}",
        lambda: zip(_lines(paths[0]), _lines(paths[1]), strict=True),
        source_lines,
    )


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _scan(path: Path) -> tuple[int, str]:
    """Number of lines and hash of the content, read as bytes."""
    lines, last, digest = 0, b"\n", hashlib.sha256()
    with _open(path) as stream:
        while block := stream.read(1 << 20):
            lines, last = lines + block.count(b"\n"), block[-1:]
            digest.update(block)
    return lines + (last != b"\n"), digest.hexdigest()


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file, cut at "\\n" and nowhere else: real corpora hold U+0085 and U+2028 inside sentences."""
    with _open(path) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield line.decode("utf-8").removesuffix("\n")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not UTF-8 ({error}); convert the file to UTF-8.") from error


class TokenizedPairs(torch.utils.data.Dataset):
    """Sentence pairs as token ids in memory-mapped files: `dataset[i] = {"input_ids": [...], "labels": [...]}`.

    `directory` holds, for each side, `{side}_tokens.npy` (int32, all sentences end to end) and `{side}_offsets.npy`
    (int64, shape (N + 1,)), so that sentence i is `tokens[offsets[i]:offsets[i + 1]]`; and `meta.json`. Processes share
    the pages, and a pickled copy (a DataLoader worker's) maps the files anew.

    Attributes:
        source_lengths, target_lengths: tokens of each sentence, int32 arrays of shape (N,).
        dropped_empty, dropped_long: how many pairs were left out when this was built.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        meta = _read_meta(self.directory)
        if meta is None:
            raise FileNotFoundError(f"{self.directory} holds no tokenized pairs; make them with TokenizedPairs.build.")
        self.dropped_empty, self.dropped_long = meta["dropped_empty"], meta["dropped_long"]
        self._sources = _Sentences(self.directory, "source")
        self._targets = _Sentences(self.directory, "target")
        self.source_lengths, self.target_lengths = self._sources.lengths, self._targets.lengths

    @classmethod
    def load(cls, directory: str | Path) -> TokenizedPairs:
        """Open what `build` wrote."""
        return cls(directory)

    @classmethod
    def build(
        cls,
        pairs: Pairs | Iterable[tuple[str, str]],
        tokenizer: PreTrainedTokenizerFast,
        directory: str | Path,
        max_length: int,
    ) -> TokenizedPairs:
        """Tokenize `pairs` into `directory`, or open it where it holds the same pairs from an earlier call.

        Pairs with an empty side or with more than `max_length` tokens on one side (special tokens included) are left
        out and counted in the log. Everything is written to a temporary folder beside `directory` that takes its place
        at the end, so `directory` is never half-written; a killed run leaves at most a hidden `.NAME-partial-*` folder.
        Of many processes only one should build:

            with args.main_process_first(local=False):  # local=True where nodes share no disk
                dataset = TokenizedPairs.build(load_split(config, "train"), tokenizer, folder, config.max_length)

        There the others enter when the first has left, and open its files.

        Raises:
            ValueError: no pair is left.
            FileExistsError: `directory` holds other files.
            TypeError: the tokenizer is not backed by the `tokenizers` library.
        """
        pairs = pairs if isinstance(pairs, Pairs) else Pairs.of(pairs)
        directory = Path(directory)
        fingerprint = _fingerprint(pairs, tokenizer, max_length)
        meta = _read_meta(directory)
        if meta is not None and meta["fingerprint"] == fingerprint:
            logger.info("%s: using the tokens in %s", pairs.name, directory)
            return cls(directory)
        if meta is None and directory.exists() and any(directory.iterdir()):
            raise FileExistsError(f"{directory} holds something else than tokenized pairs; give a folder of its own.")
        directory.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}-partial-", dir=directory.parent))
        try:
            meta = _tokenize(pairs, tokenizer, partial, max_length) | {"fingerprint": fingerprint}
            (partial / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
            partial.chmod(0o755)  # mkdtemp makes it private
            if directory.exists():
                shutil.rmtree(directory)
            partial.rename(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return cls(directory)

    def __len__(self) -> int:
        return len(self.source_lengths)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": self._sources[index], "labels": self._targets[index]}

    def __reduce__(self):
        return type(self), (self.directory,)


class _Sentences:
    """One side of the pairs; `sentences[i]` is a list of token ids."""

    def __init__(self, directory: Path, side: str):
        self._tokens = np.load(directory / f"{side}_tokens.npy", mmap_mode="r")
        self._offsets = np.load(directory / f"{side}_offsets.npy", mmap_mode="r")
        self.lengths = np.diff(self._offsets).astype(np.int32)

    def __getitem__(self, index: int) -> list[int]:
        if not -len(self.lengths) <= index < len(self.lengths):
            raise IndexError(f"pair {index} of {len(self.lengths)}")
        index %= len(self.lengths)
        return self._tokens[self._offsets[index] : self._offsets[index + 1]].tolist()


class _SentenceWriter:
    """Writes what `_Sentences` reads, without holding it in memory."""

    def __init__(self, directory: Path, side: str):
        self._offsets_path = directory / f"{side}_offsets.npy"
        self._stream = (directory / f"{side}_tokens.npy").open("wb")
        self._offsets = array("q", [0])
        self._data_start = self._write_header()

    def add(self, sentences: Sequence[Sequence[int]]) -> None:
        for sentence in sentences:
            self._offsets.append(self._offsets[-1] + len(sentence))
        np.fromiter((token for sentence in sentences for token in sentence), np.int32).tofile(self._stream)

    def __enter__(self) -> _SentenceWriter:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        with self._stream:
            if error is not None:
                return
            # numpy pads its header so that the first dimension can grow in place.
            self._stream.seek(0)
            if self._write_header() != self._data_start:
                raise RuntimeError(f"numpy {np.__version__} writes .npy headers of varying size; use numpy >= 1.23.")
        np.save(self._offsets_path, np.asarray(self._offsets, dtype=np.int64))

    def _write_header(self) -> int:
        header = {"descr": "<i4", "fortran_order": False, "shape": (self._offsets[-1],)}
        np.lib.format.write_array_header_1_0(self._stream, header)
        return self._stream.tell()


def _tokenize(pairs: Pairs, tokenizer: PreTrainedTokenizerFast, directory: Path, max_length: int) -> dict[str, int]:
    """Write the token files of `pairs` and return the counts for meta.json."""
    kept = empty = long = 0
    stream = iter(pairs)
    with (
        _SentenceWriter(directory, "source") as sources,
        _SentenceWriter(directory, "target") as targets,
        tqdm(total=pairs.count, desc=f"tokenizing {pairs.name}", unit=" pairs", disable=None) as bar,
    ):
        while chunk := list(islice(stream, CHUNK)):
            filled = [pair for pair in chunk if all(text.strip() for text in pair)]
            columns = [_encode(tokenizer, [pair[side] for pair in filled]) for side in (0, 1)]
            short = [pair for pair in zip(*columns, strict=True) if max(map(len, pair)) <= max_length]
            sources.add([source for source, _ in short])
            targets.add([target for _, target in short])
            kept, empty, long = kept + len(short), empty + len(chunk) - len(filled), long + len(filled) - len(short)
            bar.update(len(chunk))
    if kept == 0:
        raise ValueError(
            f"{pairs.name}: no pair is left of {empty + long} ({empty} with an empty side, {long} longer than "
            f"max_length={max_length} tokens); check the files or raise max_length."
        )
    logger.info(
        "%s: kept %d pairs, dropped %d with an empty side and %d longer than %d tokens",
        pairs.name, kept, empty, long, max_length,
    )  # fmt: skip
    return {"pairs": kept, "dropped_empty": empty, "dropped_long": long}


def _encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    return tokenizer(texts, truncation=False, return_attention_mask=False, verbose=False)["input_ids"]


def _fingerprint(pairs: Pairs, tokenizer: PreTrainedTokenizerFast, max_length: int) -> str:
    if not getattr(tokenizer, "is_fast", False):
        raise TypeError(f"{type(tokenizer).__name__} is not backed by the tokenizers library; use a fast tokenizer.")
    parts = [FORMAT, pairs.fingerprint, tokenizer.backend_tokenizer.to_str(), max_length]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read_meta(directory: Path) -> dict | None:
    path = directory / "meta.json"
    return json.loads(path.read_text()) if path.is_file() else None
