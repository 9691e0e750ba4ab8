"""How many images a second one core loads: decode, random crop, flip, normalise, batch. No training.

    OMP_NUM_THREADS=1 python -m examples.vision.loader_benchmark

Photographs of ImageNet's usual size are imitated: JPEGs of quality 90 made of smooth noise at several scales, about as
many bytes as a photograph. `--folder` takes real ones instead. Rows are measured in turn, `--rounds` times over, in CPU
seconds of this process; the best round counts, as others may use the machine. Libraries that are not installed are left
out by name.
"""

import argparse
import importlib.metadata
import io
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from examples.vision.image_data import IMAGENET_MEAN, IMAGENET_STD, ImageCollator
from examples.vision.image_sources import SUFFIXES
from examples.vision.transforms import TrainTransform, open_image, random_box, to_rgb

SIZE, BATCH = 224, 32
MEAN, STD = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="real images")
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    files = read(options.folder) if options.folder else photographs(options.images, options.width, options.height)
    rows, absent = candidates()
    best = dict.fromkeys(rows, float("inf"))
    for _ in range(options.rounds):
        for name, batch_of in rows.items():
            best[name] = min(best[name], seconds_per_image(batch_of, files))
    result = {
        "images": len(files),
        "kilobytes_per_image": round(sum(map(len, files)) / len(files) / 1000, 1),
        "source": options.folder or f"imitated, {options.width}x{options.height}",
        "images_per_second_per_core": {name: round(1 / seconds, 1) for name, seconds in best.items()},
        "left_out": absent,
        "cpu": cpu(),
        "versions": {name: importlib.metadata.version(name) for name in ("pillow", "numpy", "torch")},
    }
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['images']} images, {result['source']}, {result['kilobytes_per_image']} kB each; {result['cpu']}")
    for name, speed in result["images_per_second_per_core"].items():
        print(f"  {speed:8.1f} images/s  {name}")
    for reason in absent:
        print(f"  left out: {reason}")


def candidates() -> tuple[dict[str, Callable], list[str]]:
    """Name -> function from a list of encoded images to a float batch; what cannot be measured here, and why."""
    rows = {
        "Pillow, naive (crop, resize, per-image float)": naive_batch,
        "this example, fast_decode: false": own_batch(fast_decode=False),
        "this example": own_batch(fast_decode=True),
    }
    absent = []
    try:
        import albumentations  # noqa: F401

        rows["albumentations (OpenCV)"] = albumentations_batch()
    except ImportError as error:
        absent.append(f"albumentations ({error})")
    try:
        import torchvision  # noqa: F401

        rows["torchvision.transforms on Pillow"] = torchvision_batch()
    except (ImportError, RuntimeError) as error:  # beside a torch of another build its import raises RuntimeError
        absent.append(f"torchvision ({error})")
    return rows, absent


def own_batch(fast_decode: bool) -> Callable:
    transform, collate = TrainTransform(SIZE, fast_decode=fast_decode), ImageCollator(IMAGENET_MEAN, IMAGENET_STD)

    def batch_of(files: list[bytes], random: np.random.Generator) -> torch.Tensor:
        pixels = [transform(open_image(data), random) for data in files]
        return collate([{"pixel_values": image, "labels": 0} for image in pixels])["pixel_values"]

    return batch_of


def naive_batch(files: list[bytes], random: np.random.Generator) -> torch.Tensor:
    """What torchvision's transforms do, written out: each step makes a new image, each image is normalised alone."""
    tensors = []
    for data in files:
        image = to_rgb(Image.open(io.BytesIO(data)))
        image = image.crop(random_box(image.size, (0.08, 1.0), (3 / 4, 4 / 3), random))
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = np.array(image, np.float32) / 255
        tensors.append(torch.from_numpy(((pixels - MEAN) / STD).transpose(2, 0, 1).copy()))
    return torch.stack(tensors)


def albumentations_batch() -> Callable:
    import albumentations as A
    import cv2

    cv2.setNumThreads(1)
    transform = A.Compose(
        [A.RandomResizedCrop((SIZE, SIZE)), A.HorizontalFlip(), A.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    )

    def batch_of(files: list[bytes], random: np.random.Generator) -> torch.Tensor:
        arrays = []
        for data in files:
            image = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
            arrays.append(torch.from_numpy(transform(image=image)["image"].transpose(2, 0, 1).copy()))
        return torch.stack(arrays)

    return batch_of


def torchvision_batch() -> Callable:
    from torchvision import transforms as T

    steps = [
        T.RandomResizedCrop(SIZE),
        T.RandomHorizontalFlip(),
        T.ToTensor(),
        T.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    transform = T.Compose(steps)

    def batch_of(files: list[bytes], random: np.random.Generator) -> torch.Tensor:
        return torch.stack([transform(Image.open(io.BytesIO(data)).convert("RGB")) for data in files])

    return batch_of


def seconds_per_image(batch_of: Callable, files: list[bytes]) -> float:
    random = np.random.default_rng(0)
    start = time.process_time()
    for first in range(0, len(files), BATCH):
        batch_of(files[first : first + BATCH], random)
    return (time.process_time() - start) / len(files)


def photographs(count: int, width: int, height: int) -> list[bytes]:
    """JPEGs of noise whose amplitude grows with its scale, as in photographs."""
    random, files = np.random.default_rng(0), []
    for _ in range(count):
        image = np.full((height, width, 3), 128.0)
        for scale, amplitude in ((128, 40), (32, 24), (8, 12), (2, 6), (1, 3)):
            small = random.normal(0, amplitude, (height // scale + 2, width // scale + 2, 3))
            layers = [Image.fromarray(small[..., c].astype(np.float32)).resize((width, height)) for c in range(3)]
            image += np.stack([np.asarray(layer) for layer in layers], axis=-1)
        buffer = io.BytesIO()
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def read(folder: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in SUFFIXES]


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor() or platform.machine()}, {os.cpu_count()} core(s)"


if __name__ == "__main__":
    main()
