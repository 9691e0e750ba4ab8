"""Where images come from: a folder, an archive, IDX files, scikit-learn's digits, or `datasets` (Hub, parquet).

A source knows its classes and the label of every image, and opens any of them: `source.labels[i]`, `source.name(i)`,
`source.open(i)`. Nothing is decoded before it is asked for, and nothing of an archive is extracted.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import logging
import lzma
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from examples.vision.transforms import open_image

logger = logging.getLogger(__name__)

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
COMPRESSIONS = {b"\xfd7zXZ\x00": lzma.open, b"\x1f\x8b": gzip.open, b"BZh": bz2.open}


class Source:
    """One split of a data set.

    Attributes:
        classes: names, in the order of the labels.
        labels: int64 array of shape (N,).
    """

    classes: list[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """For messages."""
        raise NotImplementedError

    def open(self, index: int) -> Image.Image:
        """Raises what `transforms.UNREADABLE` lists where the image is damaged."""
        raise NotImplementedError


class ArraySource(Source):
    """Grey images in memory: uint8 of shape (N, height, width)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: Sequence[str], name: str):
        self.images, self.labels = images, labels.astype(np.int64)
        self.classes, self._name = list(classes), name

    def name(self, index: int) -> str:
        return f"{self._name}[{index}]"

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])


class EncodedSource(Source):
    """Images as encoded bytes."""

    def read(self, index: int) -> bytes:
        raise NotImplementedError

    def open(self, index: int) -> Image.Image:
        return open_image(self.read(index))


def digits(split: str) -> ArraySource:
    """scikit-learn's digits: 1,797 real 8x8 images of handwritten digits (UCI, CC BY 4.0) that come with the library.

    A fixed permutation deals them out: 1,437 for "train", 360 for "validation".
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('source: digits needs scikit-learn: pip install "hf-autosparse[vision]"') from error
    data = load_digits()
    images = (data.images * (255 / 16)).round().astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    chosen = np.split(order, [len(images) * 4 // 5])[0 if split == "train" else 1]
    return ArraySource(images[chosen], data.target[chosen], [str(name) for name in data.target_names], "digits")


def idx(folder: str | Path, prefix: str, classes: Sequence[str] | None = None) -> ArraySource:
    """`{prefix}-images-idx3-ubyte` and `{prefix}-labels-idx1-ubyte` of a folder, plain or .gz: MNIST's format.

    Raises:
        FileNotFoundError: one of them is not there.
        ValueError: one of them is damaged, they differ in length, or there are more labels than `classes`.
    """
    images, labels = (
        read_idx(_plain_or_gz(Path(folder) / f"{prefix}-{part}-ubyte"), dimensions)
        for part, dimensions in (("images-idx3", 3), ("labels-idx1", 1))
    )
    if len(images) != len(labels):
        raise ValueError(f"{folder}: {len(images)} {prefix} images but {len(labels)} labels")
    count = int(labels.max()) + 1
    classes = [str(number) for number in range(count)] if classes is None else list(classes)
    if count > len(classes):
        raise ValueError(f"{folder}: a {prefix} label is {count - 1}, but data.classes names only {len(classes)}")
    return ArraySource(images, labels, classes, f"{prefix}-images")


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An IDX file of unsigned bytes: magic number 0x0000080n, n sizes of 4 bytes, big-endian, then the values.

    Raises:
        ValueError: other magic number, other number of dimensions, or fewer or more bytes than the sizes say.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read()
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    header = 4 + 4 * dimensions
    if len(data) < header or data[:4] != bytes([0, 0, 8, dimensions]):
        raise ValueError(
            f"{path} is no IDX file of unsigned bytes in {dimensions} dimension(s): it begins {data[:4]!r}"
        )
    shape = tuple(np.frombuffer(data, ">u4", dimensions, offset=4).tolist())
    if len(data) - header != np.prod(shape, dtype=object):
        raise ValueError(f"{path} is damaged: {len(data) - header} values, but its header says {shape}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _plain_or_gz(path: Path) -> Path:
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"there is neither {path} nor {path.name}.gz")


class FolderSource(EncodedSource):
    """`root/class/**/image`: a folder a class, as torchvision's ImageFolder reads it. Other files are ignored.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no class in it, or a class without an image.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"there is no folder {self.root}; it should hold one folder a class")
        folders = {entry.name for entry in os.scandir(self.root) if entry.is_dir() and not entry.name.startswith(".")}
        files = [
            Path(folder, name).relative_to(self.root).as_posix()
            for entry in sorted(folders)
            for folder, _, names in os.walk(self.root / entry, followlinks=True)
            for name in names
            if _is_image(name)
        ]
        self.classes, self.labels, self._names = _by_class(str(self.root), folders, sorted(files))

    def name(self, index: int) -> str:
        return f"{self.root}/{self._names[index].decode()}"

    def read(self, index: int) -> bytes:
        return Path(self.name(index)).read_bytes()


class ArchiveSource(EncodedSource):
    """`.../split/class/**/image` in a .tar, or a .tar.xz, .gz or .bz2, without extracting a file.

    A plain .tar is read where it lies, at any place. A compressed one is decompressed once into `cache`, to a .tar
    whose name depends on the archive's path, size and time. Members that are no regular files are never followed.

    Raises:
        FileNotFoundError: no such archive.
        ValueError: it is damaged, has no such split, no class in it, or a class without an image.
    """

    def __init__(self, archive: str | Path, split: str, cache: str | Path):
        archive = Path(archive)
        if not archive.is_file():
            raise FileNotFoundError(f"there is no archive {archive}")
        try:
            self.path = _decompressed(archive, Path(cache))
            folders, names, places = _members(self.path, split)
        except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
            raise ValueError(f"{archive} is damaged or no tar archive: {type(error).__name__}: {error}") from error
        if not folders:
            raise ValueError(f"{archive} holds nothing like .../{split}/CLASS/IMAGE: is {split!r} the right split?")
        order = sorted(range(len(names)), key=names.__getitem__)
        self._places = np.array([places[i] for i in order], dtype=np.int64).reshape(-1, 2)
        self.classes, self.labels, self._names = _by_class(f"{archive}, {split}", folders, [names[i] for i in order])
        self._prefix = f"{archive.name}:{split}"
        self._file: int | None = None

    def name(self, index: int) -> str:
        return f"{self._prefix}/{self._names[index].decode()}"

    def read(self, index: int) -> bytes:
        if self._file is None:
            self._file = os.open(self.path, os.O_RDONLY)
        offset, size = self._places[index].tolist()
        return os.pread(self._file, size, offset)  # keeps no position, so that forked workers can share the file

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}


def _decompressed(archive: Path, cache: Path) -> Path:
    with archive.open("rb") as file:
        start = file.read(6)
    opener = next((opener for magic, opener in COMPRESSIONS.items() if start.startswith(magic)), None)
    if opener is None:
        return archive
    status = archive.stat()
    key = hashlib.sha256(f"{archive.resolve()}|{status.st_size}|{status.st_mtime_ns}".encode()).hexdigest()[:16]
    path = cache / f"{archive.name.partition('.')[0]}-{key}.tar"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        logger.info("decompressing %s to %s", archive, path)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=cache) as folder:
            draft = Path(folder, path.name)
            with opener(archive) as source, draft.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            os.replace(draft, path)
    return path


def _members(path: Path, split: str) -> tuple[set[str], list[str], list[tuple[int, int]]]:
    """Class folders, names below the split ("class/image.jpg") and (offset, size) of the images in a plain tar."""
    folders, names, places = set(), [], []
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            parts = Path(member.name).parts
            if split not in parts:
                continue
            inner = parts[parts.index(split) + 1 :]
            if member.isdir() and inner:
                folders.add(inner[0])
            elif member.isreg() and not member.issparse() and len(inner) > 1 and _is_image(inner[-1]):
                folders.add(inner[0])
                names.append("/".join(inner))
                places.append((member.offset_data, member.size))
    return folders, names, places


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")


def _by_class(where: str, folders: Iterable[str], names: list[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Classes, labels, and names as bytes: of an ImageNet they take 40 MB, as strings 150."""
    classes = sorted(folders)
    if not classes:
        raise ValueError(f"{where} holds no class folder")
    number = {name: label for label, name in enumerate(classes)}
    labels = np.array([number[name.partition("/")[0]] for name in names], dtype=np.int64)
    empty = [classes[label] for label in np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)]
    if empty:
        raise ValueError(f"{where}: no image in class folder(s) {', '.join(empty)}; remove or fill them")
    return classes, labels, np.array([name.encode() for name in names])


class TableSource(EncodedSource):
    """A `datasets.Dataset` with an image and a label column: what the Hub, parquet files or "imagefolder" give.

    Raises:
        ValueError: a column is not there, or a label is no class.
    """

    def __init__(self, table: Any, image_column: str, label_column: str, name: str):
        self._table = encoded_images(table, image_column, label_column, name)
        self._image, self._name = image_column, name
        self.labels = np.asarray(self._table[label_column], dtype=np.int64)
        self.classes = class_names(self._table, label_column) or [str(i) for i in range(int(self.labels.max()) + 1)]
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise ValueError(
                f"{name}: column {label_column!r} holds labels from {self.labels.min()} to {self.labels.max()}, but"
                f" there are {len(self.classes)} classes; a test split without labels cannot be used"
            )

    def name(self, index: int) -> str:
        return f"{self._name}[{index}]"

    def read(self, index: int) -> bytes:
        return image_bytes(self._table[index][self._image])


def encoded_images(table: Any, image_column: str, label_column: str, name: str) -> Any:
    """The two columns of a `datasets` table or stream, images as bytes or paths: decoding them is our own business."""
    import datasets

    columns = list(table.features or [])
    for column in (image_column, label_column):
        if column not in columns:
            raise ValueError(f"{name} has no column {column!r}, it has {columns}: set data.image_column / label_column")
    return table.select_columns([image_column, label_column]).cast_column(image_column, datasets.Image(decode=False))


def class_names(table: Any, label_column: str) -> list[str] | None:
    return getattr(table.features[label_column], "names", None)


def image_bytes(value: dict[str, Any]) -> bytes:
    """Of an undecoded image of `datasets`."""
    return Path(value["path"]).read_bytes() if value["bytes"] is None else value["bytes"]
