"""Pixels worked by hand, image modes, and augmentation that depends on (seed, epoch, index) alone."""

import io

import numpy as np
import pytest
from PIL import Image

from examples.vision.transforms import (
    EvalTransform,
    TrainTransform,
    open_image,
    random_box,
    resize_shorter_side,
    to_rgb,
)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> Image.Image:
    """`image` as a file would give it."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return open_image(buffer.getvalue())


def grey(values) -> Image.Image:
    return Image.fromarray(np.array(values, np.uint8))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_resizing_is_antialiased_bilinear():
    # 4 to 2 pixels: a triangle 4 wide. Weights 3/7, 3/7, 1/7 of the first three: (0*3 + 70*3 + 140*1) / 7 = 50.
    image = Image.fromarray(np.tile(np.array([0, 70, 140, 210], np.uint8), (4, 1)))
    assert np.asarray(resize_shorter_side(image, 2)).tolist() == [[50, 160]] * 2


def test_validation_resizes_the_shorter_side_and_takes_the_centre():
    image = encoded(Image.fromarray(np.arange(4 * 6, dtype=np.uint8).reshape(4, 6)))
    pixels = EvalTransform(size=2, resize=4)(image)
    assert pixels.shape == (2, 2, 3)
    assert pixels[..., 0].tolist() == [[8, 9], [14, 15]]  # rows 1-2, columns 2-3
    assert EvalTransform(size=4, resize=8)(encoded(Image.new("RGB", (20, 10)))).shape == (4, 4, 3)


def test_a_part_of_full_area_and_ratio_is_the_image():
    image = encoded(grey([[0, 50], [100, 150]]))
    transform = TrainTransform(size=2, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=False)
    assert transform(image, rng())[..., 0].tolist() == [[0, 50], [100, 150]]


def test_flip_mirrors_half_of_the_images():
    transform = TrainTransform(size=2, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    rows = [tuple(transform(encoded(grey([[0, 50], [0, 50]])), rng(seed))[0, :, 0].tolist()) for seed in range(200)]
    assert set(rows) == {(0, 50), (50, 0)} and 70 < rows.count((50, 0)) < 130


def test_random_box_stays_inside_and_within_its_limits():
    areas, ratios = [], []
    for seed in range(500):
        left, upper, right, lower = random_box((500, 375), (0.08, 1.0), (3 / 4, 4 / 3), rng(seed))
        assert 0 <= left < right <= 500 and 0 <= upper < lower <= 375
        areas.append((right - left) * (lower - upper) / (500 * 375))
        ratios.append((right - left) / (lower - upper))
    assert min(areas) > 0.075 and max(areas) > 0.9 and np.mean(areas) == pytest.approx(0.49, abs=0.04)
    assert min(ratios) > 0.74 and max(ratios) < 1.35


@pytest.mark.parametrize(("size", "box"), [((100, 10), (43, 0, 56, 10)), ((10, 100), (0, 43, 10, 56))])
def test_an_image_too_narrow_for_any_box_gives_its_middle(size, box):
    assert random_box(size, (1.0, 1.0), (3 / 4, 4 / 3), rng()) == box


def test_padded_crop_moves_the_image_by_up_to_the_padding():
    transform = TrainTransform(size=2, crop="padded", padding=1, flip=False)
    crops = {tuple(transform(encoded(grey([[1, 2], [3, 4]])), rng(s))[..., 0].flatten().tolist()) for s in range(100)}
    assert len(crops) == 9  # 3 x 3 places
    assert {(1, 2, 3, 4), (0, 0, 0, 1), (4, 0, 0, 0)} <= crops


def test_fast_decoding_shrinks_only_what_stays_large_enough_and_looks_alike():
    smooth = np.add.outer(np.arange(512) / 4, np.arange(512) / 4).astype(np.uint8)
    pixels = {}
    for fast in (False, True):
        image = encoded(Image.fromarray(np.stack([smooth] * 3, -1)), "JPEG", quality=95)
        pixels[fast] = TrainTransform(size=128, scale=(0.9, 1.0), flip=False, fast_decode=fast)(image, rng(3))
        assert image.size == ((256, 256) if fast else (512, 512))  # by 2: by 4 the part would have 120 pixels
    assert np.abs(pixels[True].astype(int) - pixels[False]).max() <= 2
    small = encoded(Image.fromarray(np.stack([smooth[:200, :200]] * 3, -1)), "JPEG")
    TrainTransform(size=128)(small, rng())
    assert small.size == (200, 200)


MODES = {
    "L": (Image.new("L", (4, 4), 100), [100, 100, 100]),
    "1": (Image.new("1", (4, 4), 1), [255, 255, 255]),
    "LA": (Image.new("LA", (4, 4), (100, 0)), [100, 100, 100]),
    "RGBA, transparent": (Image.new("RGBA", (4, 4), (10, 20, 30, 0)), [10, 20, 30]),
    "palette": (Image.new("RGB", (4, 4), (10, 20, 30)).quantize(4), [10, 20, 30]),
    "16-bit grey": (Image.fromarray(np.full((4, 4), 0x64FF, np.uint16)), [100, 100, 100]),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode):
    image, colour = MODES[mode]
    result = to_rgb(encoded(image))
    assert result.mode == "RGB" and result.getpixel((1, 1)) == tuple(colour)


def test_palette_with_transparency_gives_no_warning():
    image = Image.new("RGB", (4, 4), (10, 20, 30)).quantize(4)
    assert to_rgb(encoded(image, transparency=b"\x00\xff")).getpixel((0, 0)) == (10, 20, 30)


def test_cmyk_jpeg():
    image = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")
    assert image.mode == "CMYK"
    red, green, blue = TrainTransform(size=8)(image, rng())[4, 4].tolist()
    assert red > 240 and green < 15 and blue < 15


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    image = encoded(Image.new("RGB", (16, 8)), "JPEG", exif=exif)
    assert image.getexif()[0x0112] == 6 and to_rgb(image).size == (16, 8)
