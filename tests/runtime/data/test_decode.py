"""Images to pixels: what is shown is what the file means, and nothing a file claims can hurt."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from limbeck_runtime.data.decode import check_image, decode_image
from limbeck_runtime.data.samples import BadReason, SampleError
from limbeck_runtime.models.preprocessing import Fit, ImagePreprocessing, Interpolation


def _target(size: int, fit: Fit = Fit.STRETCH) -> ImagePreprocessing:
    return ImagePreprocessing(size=size, mean=(0, 0, 0), std=(1, 1, 1), interpolation=Interpolation.BILINEAR, fit=fit)


def _encoded(image: Image.Image, image_format: str = "PNG", **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **settings)
    return file.getvalue()


def _gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8))


def test_an_image_of_the_models_size_is_kept_pixel_by_pixel() -> None:
    image = _gradient(16, 16)
    pixels = decode_image(_encoded(image), _target(16))
    assert np.array_equal(pixels, np.asarray(image).transpose(2, 0, 1))


def test_center_crop_keeps_the_middle_and_stretch_keeps_all() -> None:
    data = _encoded(_gradient(300, 100))
    cropped = decode_image(data, _target(10, Fit.CENTER_CROP))
    stretched = decode_image(data, _target(10))
    assert cropped[0, 0, [0, -1]].tolist() == pytest.approx([255 / 3 + 4, 255 * 2 / 3 - 4], abs=2)
    assert stretched[0, 0, [0, -1]].tolist() == pytest.approx([13, 242], abs=3)


def test_shrinking_averages_instead_of_picking_pixels() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels = decode_image(_encoded(Image.fromarray(stripes)), _target(8))
    assert np.abs(pixels[:, 1:-1, 1:-1].astype(int) - 127).max() < 8


def test_transparent_parts_are_white_and_their_hidden_colour_does_not_bleed() -> None:
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[:, :16] = (255, 0, 0, 255)
    rgba[:, 16:] = (0, 0, 255, 0)
    for image in (Image.fromarray(rgba), Image.fromarray(rgba).convert("LA"), _palette_with_hole()):
        assert decode_image(_encoded(image), _target(8))[:, 4, -1].tolist() == [255, 255, 255]
    edge = decode_image(_encoded(Image.fromarray(rgba)), _target(8))
    assert (edge[1] == edge[2]).all()


def _palette_with_hole() -> Image.Image:
    image = Image.new("P", (32, 32), 1)
    image.putpalette([10, 20, 30, 0, 0, 0])
    image.info["transparency"] = 1
    return image


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG"])
def test_all_common_formats_are_read(image_format: str) -> None:
    data = _encoded(_gradient(64, 64), image_format)
    check_image(data)
    pixels = decode_image(data, _target(8))
    assert np.abs(pixels.astype(int) - np.asarray(_gradient(64, 64).resize((8, 8), 2)).transpose(2, 0, 1)).max() < 30


def test_orientation_tags_are_obeyed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    pixels = decode_image(_encoded(_gradient(64, 64), "JPEG", exif=exif, quality=95), _target(8))
    upright = decode_image(_encoded(_gradient(64, 64), "JPEG", quality=95), _target(8))
    assert np.abs(pixels.astype(int) - np.rot90(upright, -1, axes=(1, 2)).astype(int)).max() < 6


def test_sixteen_bit_grey_keeps_its_shades() -> None:
    ramp = np.linspace(0, 65535, 16).astype(np.uint16)
    pixels = decode_image(_encoded(Image.fromarray(np.tile(ramp, (16, 1)))), _target(16))
    assert np.array_equal(pixels[0, 0], ramp >> 8)


def test_a_large_jpeg_is_decoded_small_and_looks_the_same() -> None:
    image = _gradient(1600, 1200)
    pixels = decode_image(_encoded(image, "JPEG", quality=95), _target(16))
    whole = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.abs(pixels.astype(int) - whole.astype(int)).max() < 4


def test_a_large_jpeg_keeps_the_detail_that_the_model_can_see() -> None:
    stripes = np.zeros((800, 800, 3), np.uint8)
    stripes[:, np.arange(800) % 16 < 8] = 255
    pixels = decode_image(_encoded(Image.fromarray(stripes), "JPEG", quality=95), _target(200))
    # Stripes of two pixels each: at the smallest scale they would be grey.
    assert pixels[0, 100].std() > 90


def test_an_extreme_shape_within_bounds_takes_no_extreme_memory() -> None:
    pixels = decode_image(_encoded(_gradient(10_000, 2)), _target(64, Fit.CENTER_CROP))
    assert pixels.shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", BadReason.NOT_AN_IMAGE),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", BadReason.NOT_AN_IMAGE),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", BadReason.NOT_AN_IMAGE),
        (_encoded(_gradient(1, 9)), BadReason.IMAGE_TOO_SMALL),
        (_encoded(_gradient(10_001, 2)), BadReason.IMAGE_TOO_LARGE),
        (_encoded(Image.new("1", (9_000, 8_000))), BadReason.IMAGE_TOO_LARGE),
        (_encoded(Image.new("1", (9_900, 9_900))), BadReason.IMAGE_TOO_LARGE),
    ],
)
def test_what_is_no_usable_image_is_refused_with_its_reason(data: bytes, reason: BadReason) -> None:
    with pytest.raises(SampleError) as refusal:
        check_image(data)
    assert refusal.value.reason is reason


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_any_damage_gives_pixels_or_a_sample_error_and_nothing_else(image_format: str) -> None:
    whole = _encoded(_gradient(40, 30), image_format)
    random = np.random.default_rng(5)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 4):
            damaged[place] = random.integers(0, 256)
        data = bytes(damaged[: random.integers(1, len(whole) + 1)])
        outcomes = []
        for use in (check_image, lambda data: decode_image(data, _target(8))):
            try:
                use(data)
            except SampleError as error:
                outcomes.append(error.reason)
        # What the index lets pass must decode later on.
        assert len(outcomes) in (0, 2)
