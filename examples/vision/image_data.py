"""The data of a recipe: `load_split` gives a data set of pixels and labels for training or validation.

A training set is asked for `epoch * len(data) + index` and not for `index`: the epoch so reaches every worker with each
image, and the same number always gives the same pixels (see transforms.py). `ShardedBatches` makes such numbers.
"""

from __future__ import annotations

import dataclasses
import difflib
import glob
import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from examples.vision.corrupt_images import CorruptImages
from examples.vision.image_sources import (
    ArchiveSource,
    FolderSource,
    Source,
    TableSource,
    class_names,
    digits,
    encoded_images,
    idx,
    image_bytes,
)
from examples.vision.transforms import UNREADABLE, EvalTransform, TrainTransform, open_image

SOURCES = ("digits", "idx", "folder", "archive", "hub", "parquet")
SPLITS = ("train", "validation")
CROPS = ("random_resized", "padded")
IGNORED_LABEL = -100  # the label that torch's cross entropy skips
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class DataConfig:
    """Where the images come from and what is made of them.

    Args:
        source: "digits" (scikit-learn's, no download), "idx" (MNIST's format), "folder" (one folder a class), "archive"
            (the same in a .tar, or compressed .xz, .gz, .bz2), "hub" (a data set of the Hugging Face Hub, or a local
            script or folder that `datasets` loads) or "parquet" (files with an image and a label column).
        path: the folder of "folder" and "idx", the file of "archive", the name of "hub" ("ILSVRC/imagenet-1k").
        train, validation: for "folder" and "archive" the folders of the two splits, for "idx" the beginnings of the
            files' names, for "hub" names of splits, for "parquet" paths, which may hold wildcards.
        subset: for "hub": the data set's configuration.
        streaming: for "hub" and "parquet": read while training instead of storing first. See `StreamedImages`.
        shuffle_buffer: images among which a stream is shuffled, besides the order of its files.
        image_column, label_column: for "hub" and "parquet".
        classes: for "idx", whose files have numbers only: names.
        cache_dir: where a compressed archive is unpacked, and where `datasets` keeps its files; None for
            ~/.cache/hf_autosparse and the Hugging Face default.
        max_train_images: train on so many images only, drawn once and for all; None for all of them.
        size, crop, scale, ratio, padding, flip, fast_decode: see `transforms.TrainTransform`.
        resize: shorter side before the central crop of a validation image; None for `size`.
        mean, std: of the three colours, on a scale from 0 to 1; subtracted and divided by.
        max_corrupt: unreadable images that a run puts up with. Each is named in `corrupt_images.txt` in the run's
            folder, and counts in neither loss nor accuracy.
    """

    source: str = "digits"
    path: str | None = None
    train: str = "train"
    validation: str = "validation"
    subset: str | None = None
    streaming: bool = False
    shuffle_buffer: int = 10_000
    image_column: str = "image"
    label_column: str = "label"
    classes: list[str] | None = None
    cache_dir: str | None = None
    max_train_images: int | None = None
    size: int = 224
    resize: int | None = 256
    crop: str = "random_resized"
    scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    padding: int = 4
    flip: bool = True
    fast_decode: bool = True
    mean: list[float] = field(default_factory=lambda: list(IMAGENET_MEAN))
    std: list[float] = field(default_factory=lambda: list(IMAGENET_STD))
    max_corrupt: int = 0

    def __post_init__(self) -> None:
        self._choice("source", SOURCES)
        self._choice("crop", CROPS)
        for name, least in {"size": 1, "shuffle_buffer": 1, "padding": 0, "max_corrupt": 0}.items():
            self._integer(name, least)
        if self.resize is not None:
            self._integer("resize", self.size)
        if self.max_train_images is not None:
            self._integer("max_train_images", 1)
        for name, high in {"scale": 1.0, "ratio": float("inf")}.items():
            value = getattr(self, name)
            if len(value) != 2 or not 0 < value[0] <= value[1] <= high:
                raise ValueError(f"data.{name} = {value!r}: give [least, largest] with 0 < least <= largest <= {high}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"data.mean = {self.mean!r}, data.std = {self.std!r}: give three each, std above 0")
        if (self.path is None) != (self.source in ("digits", "parquet")):
            raise ValueError(f"data.path = {self.path!r} does not go with data.source = {self.source!r}")
        if self.streaming and self.source not in ("hub", "parquet"):
            raise ValueError(f"data.streaming = true goes with source hub or parquet, not {self.source!r}")
        if self.streaming and self.max_train_images is not None:
            raise ValueError("data.max_train_images draws from the whole set, which a stream cannot: leave one out")
        if self.classes is not None and self.source != "idx":
            raise ValueError(f"data.classes would not be read with data.source = {self.source!r}, only with 'idx'")

    def _choice(self, name: str, allowed: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in allowed:
            near = difflib.get_close_matches(str(value), allowed, n=1)
            raise ValueError(f"data.{name} = {value!r} is not one of {allowed}; near: {near}")

    def _integer(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"data.{name} = {value!r} is not allowed: give an integer of at least {least}")

    def train_transform(self) -> TrainTransform:
        names = {f.name for f in dataclasses.fields(TrainTransform)}
        values = {name: value for name, value in vars(self).items() if name in names}
        return TrainTransform(**values | {"scale": tuple(self.scale), "ratio": tuple(self.ratio)})

    def eval_transform(self) -> EvalTransform:
        return EvalTransform(self.size, self.resize or self.size)


class Images(Dataset):
    """Map-style: `data[number]` is `{"pixel_values": uint8 (size, size, 3) or None where unreadable, "labels": int}`.

    Args:
        transform: `TrainTransform` or `EvalTransform`.
        seed: of the augmentation; None for none, as in validation.
        chosen: indices into `source`, for a part of it.
    """

    def __init__(
        self,
        source: Source,
        transform: TrainTransform | EvalTransform,
        corrupt: CorruptImages,
        seed: int | None = None,
        chosen: np.ndarray | None = None,
    ):
        self.source, self.transform, self.corrupt, self.seed = source, transform, corrupt, seed
        self.classes = source.classes
        self._chosen = np.arange(len(source)) if chosen is None else chosen
        self.labels = source.labels[self._chosen]

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, number: int) -> dict[str, Any]:
        epoch, position = divmod(int(number), len(self))
        index = int(self._chosen[position])
        random = None if self.seed is None else np.random.default_rng((self.seed, epoch, index))
        try:
            image = self.source.open(index)
            pixels = self.transform(image) if random is None else self.transform(image, random)
        except UNREADABLE as error:
            self.corrupt.report(self.source.name(index), error)
            return {"pixel_values": None, "labels": IGNORED_LABEL}
        return {"pixel_values": pixels, "labels": int(self.labels[position])}


class StreamedImages(IterableDataset):
    """One process's share of a `datasets` stream, each epoch in another order (`set_epoch`).

    An epoch has the same number of whole batches in every process, and loses less than one global batch of images. The
    files of the stream are dealt out to processes and workers; where they are of unequal size, a worker whose files
    hold too little begins them anew. The order of the images so depends on the number of workers; the augmentation does
    not: it draws from (seed, epoch, checksum of the image).

    Args:
        stream: `datasets.IterableDataset` with undecoded images.
        count: images in the whole stream.
        seed: of order and augmentation; None keeps the stream's order and does not augment, as in validation.
        batch_size: of one process; None for validation: every image once, in one process.
    """

    def __init__(
        self,
        stream: Any,
        count: int,
        config: DataConfig,
        name: str,
        corrupt: CorruptImages,
        *,
        seed: int | None = None,
        batch_size: int | None = None,
        num_processes: int = 1,
        process_index: int = 0,
    ):
        self.classes = class_names(stream, config.label_column)
        if self.classes is None:
            raise ValueError(f"{name}: column {config.label_column!r} names no classes, which a stream needs")
        self._stream = encoded_images(stream, config.image_column, config.label_column, name)
        self._config, self._name, self._corrupt, self._seed = config, name, corrupt, seed
        self._batch_size, self._epoch = batch_size, 0
        self._batches = None if batch_size is None else count // (batch_size * num_processes)
        if self._batches == 0:
            raise ValueError(f"{name}: {count} images are less than one global batch of {batch_size * num_processes}")
        self._length = count if batch_size is None else self._batches * batch_size
        if seed is not None:
            from datasets.distributed import split_dataset_by_node

            self._stream = self._stream.shuffle(seed=seed, buffer_size=config.shuffle_buffer)
            self._stream = split_dataset_by_node(self._stream, rank=process_index, world_size=num_processes)
        self._transform = config.eval_transform() if seed is None else config.train_transform()

    def __len__(self) -> int:
        return self._length

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self._stream.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self._batch_size is None:
            yield from map(self._example, self._stream)
            return
        worker = get_worker_info()
        workers, rank = (1, 0) if worker is None else (worker.num_workers, worker.id)
        if workers > self._stream.num_shards:
            raise ValueError(
                f"{self._name}: {workers} workers for {self._stream.num_shards} file(s) of the stream in this process:"
                " lower training.dataloader_num_workers"
            )
        batches = self._batches // workers + (rank < self._batches % workers)
        anew = itertools.chain.from_iterable(itertools.repeat(self._stream))
        yield from map(self._example, itertools.islice(anew, batches * self._batch_size))

    def _example(self, row: dict[str, Any]) -> dict[str, Any]:
        data = image_bytes(row[self._config.image_column])
        key = zlib.crc32(data)
        try:
            if self._seed is None:
                pixels = self._transform(open_image(data))
            else:
                pixels = self._transform(open_image(data), np.random.default_rng((self._seed, self._epoch, key)))
        except UNREADABLE as error:
            self._corrupt.report(f"{self._name}, checksum {key:08x}", error)
            return {"pixel_values": None, "labels": IGNORED_LABEL}
        return {"pixel_values": pixels, "labels": int(row[self._config.label_column])}


class ImageCollator:
    """A batch: `pixel_values` float32 (B, 3, size, size), normalised; `labels` int64 (B,).

    An unreadable image keeps its place, so that batches have the same shape in all processes, with the label that the
    loss skips and the pixels of a readable neighbour, so that BatchNorm sees no strange ones.

    Args:
        channels_last: the memory format of `pixel_values`; its shape stays.
    """

    def __init__(self, mean: list[float], std: list[float], channels_last: bool = False):
        self._scale = 1 / (255 * torch.tensor(std).view(3, 1, 1))
        self._shift = torch.tensor(mean).view(3, 1, 1) / torch.tensor(std).view(3, 1, 1)
        self._channels_last = channels_last

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        readable = [example["pixel_values"] for example in examples if example["pixel_values"] is not None]
        if not readable:
            raise ValueError(f"not one of the {len(examples)} image(s) of a batch can be read: see the log for names")
        pixels = [readable[0] if example["pixel_values"] is None else example["pixel_values"] for example in examples]
        batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        layout = torch.channels_last if self._channels_last else torch.contiguous_format
        values = batch.to(torch.float32, memory_format=layout).mul_(self._scale).sub_(self._shift)
        return {"pixel_values": values, "labels": torch.tensor([example["labels"] for example in examples])}


def load_split(
    config: DataConfig,
    split: str,
    corrupt: CorruptImages,
    *,
    seed: int = 0,
    batch_size: int = 1,
    num_processes: int = 1,
    process_index: int = 0,
) -> Images | StreamedImages:
    """The images of `split`: "train" (augmented) or "validation".

    Args:
        seed: of the augmentation, and of the order of a stream.
        batch_size, num_processes, process_index: needed for a training stream only.

    Raises:
        ValueError: no such split, or what the sources in image_sources.py raise.
        FileNotFoundError: a path that leads nowhere.
        ConnectionError: the data set is neither stored nor within reach.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    training = split == "train"
    if config.source in ("hub", "parquet"):
        table, count, name = _load_table(config, split)
        if config.streaming:
            shares = {"batch_size": batch_size, "num_processes": num_processes, "process_index": process_index}
            options = {"seed": seed, **shares} if training else {}
            return StreamedImages(table, count, config, name, corrupt, **options)
        source: Source = TableSource(table, config.image_column, config.label_column, name)
    else:
        source = _load_source(config, split)
    if not training:
        return Images(source, config.eval_transform(), corrupt)
    chosen = None
    if config.max_train_images is not None and config.max_train_images < len(source):
        chosen = np.sort(np.random.default_rng(0).permutation(len(source))[: config.max_train_images])
    return Images(source, config.train_transform(), corrupt, seed, chosen)


def _load_source(config: DataConfig, split: str) -> Source:
    where = getattr(config, split)
    if config.source == "digits":
        return digits(split)
    if config.source == "idx":
        return idx(config.path, where, config.classes)
    if config.source == "folder":
        return FolderSource(Path(config.path) / where)
    cache = config.cache_dir or Path.home() / ".cache" / "hf_autosparse"
    return ArchiveSource(config.path, where, cache)


def _load_table(config: DataConfig, split: str) -> tuple[Any, int | None, str]:
    """A `datasets` table or stream, how many images a stream has, and its name."""
    import datasets  # only these sources need it

    where = getattr(config, split)
    options = {"split": where, "streaming": config.streaming, "cache_dir": config.cache_dir}
    if config.source == "parquet":
        files = sorted(glob.glob(where))
        if not files:
            raise FileNotFoundError(f"data.{split} = {where!r}: there is no such file")
        table = datasets.load_dataset("parquet", data_files={split: files}, **options | {"split": split})
        return table, _rows(files) if config.streaming else None, where
    try:
        table = datasets.load_dataset(config.path, config.subset, **options)
    except (ConnectionError, FileNotFoundError) as error:
        raise ConnectionError(
            f"data.path = {config.path!r} is neither on this machine nor within reach on the Hugging Face Hub; a gated"
            " data set, as ImageNet is, also needs `hf auth login`"
        ) from error
    name = f"{config.path}, {where}"
    if not config.streaming:
        return table, None, name
    if not table.info.splits or where not in table.info.splits:
        raise ValueError(f"{name} does not say how many images it has, which streaming needs: data.streaming = false")
    return table, table.info.splits[where].num_examples, name


def _rows(files: list[str]) -> int:
    import pyarrow.parquet

    return sum(pyarrow.parquet.read_metadata(file).num_rows for file in files)
