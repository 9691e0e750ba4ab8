"""From an encoded image to the pixels that a model sees: Pillow and NumPy only, no torchvision.

Augmentation draws from a generator made of (seed, epoch, index) alone: whatever worker, process or resumed run loads an
image, its pixels are the same. EXIF orientation is ignored, as torchvision's ImageFolder ignores it.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

TRIES = 10  # of RandomResizedCrop to find a box that fits

# What Pillow raises for bytes that are no image, or a damaged one.
UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, IndexError, OverflowError, EOFError)
UNREADABLE += (struct.error, zlib.error, Image.DecompressionBombError)

Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels


def open_image(data: bytes) -> Image.Image:
    """Reads the header only. Raises what `UNREADABLE` lists."""
    return Image.open(io.BytesIO(data))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: grey is repeated, CMYK and palettes are converted, transparency is dropped (not blended).

    16-bit grey keeps its upper 8 bits: Pillow's own conversion would clip all but the darkest 256 values to white.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # "I;16" and its byte orders; "I" is what Pillow makes of some 16-bit files
        values = np.asarray(image)
        return Image.fromarray((np.clip(values, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # what Pillow asks for
    return image.convert("RGB")


@dataclass(frozen=True)
class TrainTransform:
    """Random crop, horizontal flip.

    Args:
        size: side of the square result, in pixels.
        crop: "random_resized" (a random part of random aspect ratio, resized: Szegedy et al. 2015) or "padded" (resized
            so that the shorter side is `size`, padded with black by `padding` on each side, a random square of it).
        scale: least and largest area of a random part, as fractions of the image's.
        ratio: least and largest aspect ratio of a random part.
        padding: pixels.
        flip: whether half of the images are mirrored.
        fast_decode: let the JPEG decoder shrink an image by 2, 4 or 8 where the part still has at least `size` pixels.
            Changes pixels by a little: those of the decoder's filter are averages.
    """

    size: int
    crop: str = "random_resized"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    padding: int = 4
    flip: bool = True
    fast_decode: bool = True

    def __call__(self, image: Image.Image, random: np.random.Generator) -> np.ndarray:
        """`image` as `open_image` gives it. Returns uint8 pixels of shape (size, size, 3)."""
        if self.crop == "padded":
            pixels = self._padded_crop(image, random)
        else:
            box = random_box(image.size, self.scale, self.ratio, random)
            if self.fast_decode:
                image, box = shrink_on_decode(image, box, self.size)
            pixels = np.asarray(to_rgb(image).resize((self.size, self.size), Image.Resampling.BILINEAR, box=box))
        return pixels[:, ::-1] if self.flip and random.random() < 0.5 else pixels

    def _padded_crop(self, image: Image.Image, random: np.random.Generator) -> np.ndarray:
        pixels = np.asarray(resize_shorter_side(to_rgb(image), self.size))
        padding = self.padding
        padded = np.pad(pixels, ((padding, padding), (padding, padding), (0, 0)))
        top = int(random.integers(padded.shape[0] - self.size + 1))
        left = int(random.integers(padded.shape[1] - self.size + 1))
        return padded[top : top + self.size, left : left + self.size]


@dataclass(frozen=True)
class EvalTransform:
    """The shorter side to `resize` pixels, then the central square of `size` pixels. Nothing is random."""

    size: int
    resize: int

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Returns uint8 pixels of shape (size, size, 3)."""
        pixels = np.asarray(resize_shorter_side(to_rgb(image), self.resize))
        top, left = (round((side - self.size) / 2) for side in pixels.shape[:2])
        return pixels[top : top + self.size, left : left + self.size]


def random_box(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], random: np.random.Generator
) -> Box:
    """The part of an image of `size` (width, height) that RandomResizedCrop takes, distributed as torchvision's.

    Area uniform in `scale`, aspect ratio log-uniform in `ratio`, position uniform. After ten boxes that do not fit, the
    largest central one whose ratio is allowed.
    """
    width, height = size
    for _ in range(TRIES):
        area = width * height * random.uniform(*scale)
        aspect = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(random.integers(width - w + 1)), int(random.integers(height - h + 1))
            return left, upper, left + w, upper + h
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def shrink_on_decode(image: Image.Image, box: Box, size: int) -> tuple[Image.Image, Box]:
    """Have a JPEG decoded at 1/2, 1/4 or 1/8 of its size where `box` then still has `size` pixels a side.

    Returns the image and the box in its new pixels. Other formats come back as they are.
    """
    width, height = image.size
    least = math.ceil(width * size / (box[2] - box[0])), math.ceil(height * size / (box[3] - box[1]))
    if image.format == "JPEG" and image.draft(image.mode, least) is not None:
        across, down = image.width / width, image.height / height
        box = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
    return image, box


def resize_shorter_side(image: Image.Image, length: int) -> Image.Image:
    """Bilinear, with the aspect ratio kept; the longer side is rounded down, as torchvision does."""
    width, height = image.size
    if min(width, height) == length:
        return image
    new = (length, length * height // width) if width <= height else (length * width // height, length)
    return image.resize(new, Image.Resampling.BILINEAR)
