"""Sources, bad images, batches: where the pixels of a step come from."""

import gzip
import io
import logging
import os
import struct
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from examples.vision.corrupt_images import CorruptImageError, CorruptImages
from examples.vision.image_data import IGNORED_LABEL, DataConfig, ImageCollator, load_split
from examples.vision.image_sources import ArchiveSource, FolderSource, digits, idx, read_idx
from examples.vision.image_trainer import ShardedBatches

SMALL = {"size": 8, "resize": 8}


def jpeg(value: int = 0, size: tuple[int, int] = (12, 10), **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path) -> Path:
    """3 cats and 2 dogs for training, 2 of each for validation; the file's number is its brightness."""
    root = tmp_path / "animals"
    for split, counts in {"train": {"cat": 3, "dog": 2}, "val": {"cat": 2, "dog": 2}}.items():
        for name, count in counts.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                (root / split / name / f"{i}.JPEG").write_bytes(jpeg(10 * i))
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    return root


def archive_of(folder: Path, path: Path, mode: str = "w:xz") -> Path:
    with tarfile.open(path, mode) as archive:
        archive.add(folder, arcname="some/where")
    return path


def config(folder: Path | None, source: str = "folder", **changes) -> DataConfig:
    return DataConfig(**SMALL | {"source": source, "path": folder and str(folder), "validation": "val"} | changes)


def load(data: DataConfig, split: str = "train", corrupt: CorruptImages | None = None, **options):
    return load_split(data, split, corrupt or CorruptImages(data.max_corrupt), **options)


def brightness(images) -> list[int]:
    return [round(float(images[i]["pixel_values"].mean())) for i in range(len(images))]


def test_folder(folder):
    images = load(config(folder))
    assert images.classes == ["cat", "dog"] and images.labels.tolist() == [0, 0, 0, 1, 1]
    assert brightness(images) == [0, 10, 20, 0, 10]
    assert images[0]["pixel_values"].shape == (8, 8, 3) and images[0]["pixel_values"].dtype == np.uint8
    assert len(load(config(folder), "validation")) == 4
    assert FolderSource(folder / "train").name(4).endswith("train/dog/1.JPEG")


@pytest.mark.parametrize("mode", ["w", "w:xz", "w:gz", "w:bz2"])
def test_archive_gives_what_the_folder_gives_and_extracts_nothing(folder, tmp_path, mode):
    path = archive_of(folder, tmp_path / "animals.tar", mode)
    data = config(path, "archive", cache_dir=str(tmp_path / "cache"))
    images, expected = load(data, seed=3), load(config(folder), seed=3)
    assert images.classes == expected.classes and images.labels.tolist() == expected.labels.tolist()
    for number in range(10):
        assert np.array_equal(images[number]["pixel_values"], expected[number]["pixel_values"])
    written = [entry.suffix for entry in (tmp_path / "cache").rglob("*")] if mode != "w" else []
    assert written == ([".tar"] if mode != "w" else [])
    assert len(load(data)) == 5  # from the cache


def test_hostile_archive_members_are_not_followed(folder, tmp_path):
    path = archive_of(folder, tmp_path / "animals.tar", "w")
    with tarfile.open(path, "a") as archive:
        for name, kind, target in [
            ("x/train/cat/link.jpg", tarfile.SYMTYPE, "/etc/passwd"),
            ("x/train/cat/hard.jpg", tarfile.LNKTYPE, "some/where/train/cat/0.JPEG"),
            ("x/train/cat/fifo.jpg", tarfile.FIFOTYPE, ""),
        ]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
        outside = tarfile.TarInfo("../../train/dog/outside.jpg")
        outside.size = len(jpeg(77))
        archive.addfile(outside, io.BytesIO(jpeg(77)))
    before = {p for p in tmp_path.rglob("*")}
    images = load(config(path, "archive"))
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1] and brightness(images)[-1] == 77
    assert {p for p in tmp_path.rglob("*")} == before


def test_idx(tmp_path):
    images = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, 3, 2, 2) + images.tobytes())
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(struct.pack(">II", 0x801, 3) + bytes([1, 0, 2]))
    )
    source = idx(tmp_path, "train", ["a", "b", "c"])
    assert source.labels.tolist() == [1, 0, 2] and np.array_equal(np.asarray(source.open(1)), images[1])
    assert idx(tmp_path, "train").classes == ["0", "1", "2"]
    with pytest.raises(ValueError, match="a train label is 2, but data.classes names only 2"):
        idx(tmp_path, "train", ["a", "b"])
    with pytest.raises(FileNotFoundError, match=r"neither .*t10k-images-idx3-ubyte nor t10k-images-idx3-ubyte.gz"):
        idx(tmp_path, "t10k")
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">II", 0x801, 2) + bytes([1, 0])))
    with pytest.raises(ValueError, match="3 train images but 2 labels"):
        idx(tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x", struct.pack(">IIII", 0x803, 3, 2, 2) + bytes(11), r"11 values, but its header says \(3, 2, 2\)"),
        ("x", struct.pack(">IIII", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1), "0 values, but its header says"),
        ("x", struct.pack(">II", 0x801, 3) + bytes(3), "no IDX file of unsigned bytes in 3 dimension"),
        ("x.gz", gzip.compress(bytes(1000), mtime=0)[:20], "damaged: Compressed file ended"),
        ("x.gz", b"no gzip at all", "damaged: Not a gzipped file"),
    ],
)
def test_damaged_idx(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / name, 3)


def test_fashion_mnist(shared_data):
    data = DataConfig(**SMALL, source="idx", path=str(shared_data / "fashion-mnist"), validation="t10k")
    images = load(data)
    assert len(images) == 60_000 and np.bincount(images.labels).tolist() == [6_000] * 10
    assert len(load(data, "validation")) == 10_000


def test_tiny_imagenet(shared_data, tmp_path):
    path = shared_data / "tiny-imagenet-10.tar.xz"
    data = DataConfig(**SMALL, source="archive", path=str(path), validation="val", cache_dir=str(tmp_path))
    images = load(data, "validation")
    assert np.bincount(images.labels).tolist() == [50] * 10
    assert {Image.open(io.BytesIO(images.source.read(i))).mode for i in range(500)} == {"RGB", "L"}
    assert all(images[i]["pixel_values"].shape == (8, 8, 3) for i in range(0, 500, 25))


def test_digits():
    train, validation = digits("train"), digits("validation")
    assert (len(train), len(validation)) == (1437, 360) and train.classes == [str(i) for i in range(10)]
    together = {image.tobytes() for image in train.images} & {image.tobytes() for image in validation.images}
    assert not together and train.images.max() == 255


def parquet(path: Path, values: list[int], labels: list[int]) -> None:
    features = datasets.Features({"img": datasets.Image(), "y": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"img": [{"bytes": jpeg(v), "path": None} for v in values], "y": labels}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


COLUMNS = {"image_column": "img", "label_column": "y"}


@pytest.fixture
def shards(tmp_path, monkeypatch) -> DataConfig:
    """Four parquet files of 5 images each, all of another brightness."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for shard in range(4):
        parquet(
            tmp_path / f"train-{shard}.parquet", [10 * (5 * shard + i) for i in range(5)], [i % 2 for i in range(5)]
        )
    parquet(tmp_path / "val.parquet", [0, 10, 20], [0, 1, 0])
    paths = {"train": f"{tmp_path}/train-*.parquet", "validation": f"{tmp_path}/val.parquet"}
    return DataConfig(**SMALL | COLUMNS | paths, source="parquet", cache_dir=str(tmp_path / "cache"), shuffle_buffer=8)


def test_parquet(shards):
    images = load(shards)
    assert images.classes == ["cat", "dog"] and len(images) == 20
    assert brightness(images) == list(range(0, 200, 10)) and images[3]["labels"] == 1
    assert brightness(load(shards, "validation")) == [0, 10, 20]


def streamed(shards: DataConfig, epoch: int = 0, workers: int = 0, **options) -> list[int]:
    images = load(DataConfig(**vars(shards) | {"streaming": True}), seed=5, batch_size=2, **options)
    images.set_epoch(epoch)
    loader = DataLoader(images, batch_size=2, num_workers=workers, collate_fn=lambda batch: batch)
    batches = list(loader)
    assert len(batches) == len(loader) and all(len(batch) == 2 for batch in batches)
    return [round(float(example["pixel_values"].mean())) for batch in batches for example in batch]


def test_stream(shards):
    assert sorted(streamed(shards)) == list(range(0, 200, 10))
    assert streamed(shards) == streamed(shards) != streamed(shards, epoch=1)
    assert sorted(streamed(shards, workers=2)) == list(range(0, 200, 10))
    shares = [streamed(shards, num_processes=2, process_index=rank) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) == 10 and sorted(shares[0] + shares[1]) == list(range(0, 200, 10))
    validation = load(DataConfig(**vars(shards) | {"streaming": True}), "validation")
    assert [example["labels"] for example in validation] == [0, 1, 0] and len(validation) == 3


def test_a_stream_refuses_what_it_cannot_do(shards):
    with pytest.raises(ValueError, match=r"2 workers for 1 file\(s\) of the stream in this process: lower"):
        streamed(shards, workers=2, num_processes=4)
    with pytest.raises(ValueError, match="20 images are less than one global batch of 22"):
        load(DataConfig(**vars(shards) | {"streaming": True}), batch_size=11, num_processes=2)


def test_hub_source_with_a_local_imagefolder(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data = config(folder, "hub", validation="validation", cache_dir=str(tmp_path / "cache"))
    images = load(data)
    assert images.classes == ["cat", "dog"] and sorted(brightness(images)) == [0, 0, 10, 10, 20]
    assert images.labels.tolist() == [0, 0, 0, 1, 1]


def test_data_set_that_is_out_of_reach(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConnectionError, match="'no/such' is neither on this machine nor within reach .* `hf auth login`"
    ):
        load(DataConfig(source="hub", path="no/such"))


def test_missing_column_names_those_there_are(shards):
    with pytest.raises(ValueError, match=r"no column 'image', it has \['img', 'y'\]: set data.image_column"):
        load(DataConfig(**vars(shards) | {"image_column": "image"}))


def test_unlabelled_split(tmp_path):
    parquet(tmp_path / "x.parquet", [0, 1], [-1, -1])
    data = DataConfig(**SMALL | COLUMNS, source="parquet", train=f"{tmp_path}/x.parquet", cache_dir=str(tmp_path / "c"))
    with pytest.raises(ValueError, match="holds labels from -1 to -1, but there are 2 classes"):
        load(data)
    with pytest.raises(FileNotFoundError, match="data.validation = 'validation': there is no such file"):
        load(data, "validation")


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_empty_class_folder(folder, tmp_path, kind):
    (folder / "train" / "emu").mkdir()
    (folder / "train" / "emu" / ".hidden.jpg").write_bytes(jpeg())
    path = folder if kind == "folder" else archive_of(folder, tmp_path / "animals.tar.xz")
    with pytest.raises(ValueError, match=r"train: no image in class folder\(s\) emu; remove or fill"):
        load(config(path, kind, cache_dir=str(tmp_path / "cache")))


def test_missing_places(folder, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="there is no folder .*animals/training; it should hold one folder a class"
    ):
        load(config(folder, train="training"))
    (folder / "bare").mkdir()
    with pytest.raises(ValueError, match="bare holds no class folder"):
        load(config(folder, train="bare"))
    path = archive_of(folder, tmp_path / "animals.tar", "w")
    with pytest.raises(ValueError, match=r"holds nothing like .../training/CLASS/IMAGE: is 'training' the right split"):
        load(config(path, "archive", train="training"))
    with pytest.raises(FileNotFoundError, match="there is no archive"):
        load(config(tmp_path / "none.tar", "archive"))


@pytest.mark.parametrize("data", [b"no tar", b"\xfd7zXZ\x00 and then nothing"])
def test_damaged_archive(tmp_path, data):
    (tmp_path / "x.tar.xz").write_bytes(data)
    with pytest.raises(ValueError, match="x.tar.xz is damaged or no tar archive"):
        ArchiveSource(tmp_path / "x.tar.xz", "train", tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*")) if (tmp_path / "cache").exists() else True


PNG = b"\x89PNG\r\n\x1a\n"
BAD = {
    "truncated": jpeg(7, (64, 64))[:300],
    "empty": b"",
    "text": b"<html>404</html>",
    "broken png": PNG + struct.pack(">I", 13) + b"IHDR" + bytes(20),
    "bomb": None,
}


@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", BAD)
def test_bad_image_is_counted_named_and_left_out(folder, tmp_path, caplog, monkeypatch, kind):
    data = BAD[kind]
    if data is None:
        data = jpeg(7, (64, 64))
        monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1000)
    (folder / "train" / "cat" / "1.JPEG").write_bytes(data)
    corrupt = CorruptImages(1, tmp_path / "corrupt.txt")
    images = load(config(folder, max_corrupt=1), corrupt=corrupt)
    with caplog.at_level(logging.WARNING):
        examples = [images[i] for i in range(5)] + [images[1]]
    assert [example["labels"] for example in examples] == [0, IGNORED_LABEL, 0, 1, 1, IGNORED_LABEL]
    assert [Path(name).name for name in corrupt.names()] == ["1.JPEG"]
    assert caplog.text.count("train/cat/1.JPEG cannot be read") == 1
    batch = ImageCollator([0.5] * 3, [0.5] * 3)(examples)
    assert batch["pixel_values"].shape == (6, 3, 8, 8) and torch.equal(*batch["pixel_values"][[1, 0]])


def test_too_many_bad_images_stop_the_run_with_their_names(folder, tmp_path):
    for name in ("0", "2"):
        (folder / "train" / "cat" / f"{name}.JPEG").write_bytes(b"bad")
    with pytest.raises(
        CorruptImageError, match=r"1 image\(s\) cannot be read, and data.max_corrupt allows 0: .*0.JPEG"
    ):
        load(config(folder))[0]
    # Two workers, each with one bad image, and a limit of one: the file tells them of each other.
    images = load(config(folder, max_corrupt=1), corrupt=CorruptImages(1, tmp_path / "corrupt.txt"))
    loader = DataLoader(
        images, batch_sampler=[[0, 1], [2, 3]], num_workers=2, collate_fn=ImageCollator([0] * 3, [1] * 3)
    )
    with pytest.raises(CorruptImageError, match=r"2 image\(s\) cannot be read, and data.max_corrupt allows 1"):
        list(loader)
    with pytest.raises(ValueError, match=r"not one of the 1 image\(s\) of a batch can be read"):
        ImageCollator([0] * 3, [1] * 3)([{"pixel_values": None, "labels": IGNORED_LABEL}])


def test_normalisation():
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, 1] = [255, 51, 0]
    for channels_last in (False, True):
        collate = ImageCollator([0.5, 0.2, 0.0], [0.5, 0.1, 1.0], channels_last)
        values = collate([{"pixel_values": pixels, "labels": 4}] * 2)["pixel_values"]
        assert values.shape == (2, 3, 2, 2) and values.dtype == torch.float32
        torch.testing.assert_close(values[1, :, 0], torch.tensor([[-1.0, 1.0], [-2.0, 0.0], [0.0, 0.0]]))
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert values.is_contiguous(memory_format=layout)


def test_augmentation_depends_on_seed_epoch_and_index_alone(folder):
    random = np.random.default_rng(1)
    for path in folder.glob("train/*/*.JPEG"):
        path.write_bytes(jpeg_noise(random))
    images = load(config(folder), seed=7)
    pixels = [images[number]["pixel_values"].tobytes() for number in range(15)]  # three epochs
    assert len(set(pixels)) == 15
    again = load(config(folder), seed=7)
    assert [again[number]["pixel_values"].tobytes() for number in reversed(range(15))] == pixels[::-1]
    assert load(config(folder), seed=8)[0]["pixel_values"].tobytes() != pixels[0]


def jpeg_noise(random) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(random.integers(0, 255, (20, 20, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_does_not_matter(folder, workers):
    def batches(count: int) -> list[torch.Tensor]:
        sampler = ShardedBatches(5, 2, seed=3)
        options = {"num_workers": count, "collate_fn": ImageCollator([0.5] * 3, [0.5] * 3)}
        loader = DataLoader(load(config(folder)), batch_sampler=sampler, persistent_workers=count > 0, **options)
        found = []
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            found += [batch["pixel_values"] for batch in loader]
        return found

    assert all(torch.equal(a, b) for a, b in zip(batches(0), batches(workers), strict=True))


@pytest.mark.parametrize(("length", "batch", "processes"), [(10, 2, 1), (11, 2, 2), (13, 2, 3), (7, 4, 2), (9, 2, 4)])
def test_processes_share_each_global_batch(length, batch, processes):
    shards = [ShardedBatches(length, batch, 0, processes, rank) for rank in range(processes)]
    one = ShardedBatches(length, batch * processes, 0)
    seen = []
    for shard in (*shards, one):
        shard.set_epoch(2)
        assert len(list(shard)) == len(shard)
    assert len({len(shard) for shard in shards}) == 1
    for together, *parts in zip(one, *shards, strict=False):
        assert together == [number for part in parts for number in part]
        seen += [number - 2 * length for number in together]
    left_out = set(range(length)) - set(seen)
    assert len(seen) == len(set(seen)) and len(left_out) == (length % (batch * processes)) * (
        length % (batch * processes) < processes
    )
    shards[0].set_epoch(3)
    assert [number % length for part in shards[0] for number in part] != seen[: len(seen) // processes]


def test_fewer_images_than_processes():
    with pytest.raises(ValueError, match=r"2 image\(s\) cannot be dealt out to 3 processes"):
        ShardedBatches(2, 1, 0, 3)


def test_a_part_of_the_training_set_is_drawn_once_and_for_all(folder):
    part = load(config(folder, max_train_images=3))
    assert len(part) == 3 and part.labels.tolist() == load(config(folder, max_train_images=3)).labels.tolist()
    assert len(load(config(folder, max_train_images=3), "validation")) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "fodler"}, r"data.source = 'fodler' is not one of .* near: \['folder'\]"),
        ({"crop": "random"}, "data.crop = 'random' is not one of"),
        ({"size": 0}, "data.size = 0 is not allowed: give an integer of at least 1"),
        ({"resize": 200}, "data.resize = 200 is not allowed: give an integer of at least 224"),
        ({"max_corrupt": -1}, "data.max_corrupt = -1 is not allowed"),
        ({"scale": [0.5, 0.1]}, r"data.scale = \[0.5, 0.1\]: give \[least, largest\]"),
        ({"std": [1, 1, 0]}, "give three each, std above 0"),
        ({"source": "folder"}, "data.path = None does not go with data.source = 'folder'"),
        ({"path": "x"}, "data.path = 'x' does not go with data.source = 'digits'"),
        ({"streaming": True}, "data.streaming = true goes with source hub or parquet"),
        ({"source": "parquet", "streaming": True, "max_train_images": 5}, "a stream cannot"),
        ({"classes": ["a"]}, "data.classes would not be read with data.source = 'digits'"),
    ],
)
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**changes)


def test_unknown_split():
    with pytest.raises(ValueError, match=r"split must be one of \('train', 'validation'\), got 'test'"):
        load(DataConfig(), "test")


def test_files_are_read_as_bytes_by_forked_workers(folder, tmp_path):
    """One open archive for all workers: no position in the file is shared."""
    source = ArchiveSource(archive_of(folder, tmp_path / "a.tar", "w"), "train", tmp_path)
    whole = [source.read(i) for i in range(5)]
    child = os.fork()
    if child == 0:
        os._exit(0 if [source.read(i) for i in reversed(range(5))] == whole[::-1] else 1)
    assert [source.read(i) for i in range(5)] == whole and os.waitpid(child, 0)[1] == 0
