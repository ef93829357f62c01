"""Encoded images to pixels, with bounds: what a stranger's file claims costs neither memory nor the run.

H: height, W: width of the model's square input.

JPEGs are decoded at the smallest scale that still has twice the model's size on each side, then resized with
antialiasing; transparent parts become white. Orientation tags are obeyed. Left out: formats that run code
(EPS), vector formats, and animation beyond the first frame.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from limbeck_runtime.data.samples import BadReason, SampleError
from limbeck_runtime.models.preprocessing import Fit, ImagePreprocessing, Interpolation

MIN_SIDE_PIXELS = 2
MAX_SIDE_PIXELS = 10_000
# 64 million pixels take 256 MB while they are decoded, and each decoding thread may hold one such image.
MAX_PIXELS = 64_000_000

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_ORIENTATION_TAG = 0x0112
_RESAMPLING = {
    Interpolation.BILINEAR: Image.Resampling.BILINEAR,
    Interpolation.BICUBIC: Image.Resampling.BICUBIC,
}
# A JPEG's smallest scale, enough to run through all of its data.
_SMALLEST = (1, 1)


def check_image(data: bytes) -> None:
    """Decode an image to its end without keeping it.

    Raises:
        SampleError: no image, truncated, damaged, or of a size out of bounds.
    """
    with _opened(data) as image:
        image.draft("RGB", _SMALLEST)
        _load(image)
        _to_rgb(image)


def decode_image(data: bytes, target: ImagePreprocessing) -> np.ndarray:
    """Decode and resize to uint8 (3, H, W), H = W = target.size.

    Raises:
        SampleError: as `check_image`.
    """
    with _opened(data) as image:
        image.draft("RGB", (2 * target.size, 2 * target.size))
        _load(image)
        upright = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
        # Alpha is weighed in before the resize, so that hidden colours do not bleed into edges.
        resized = _resize(_to_rgb(upright), target)
        return np.asarray(resized).transpose(2, 0, 1)


def _opened(data: bytes) -> Image.Image:
    try:
        image = Image.open(BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise SampleError(BadReason.IMAGE_TOO_LARGE, str(error)) from None
    except UnidentifiedImageError:
        raise SampleError(BadReason.NOT_AN_IMAGE, _first_bytes(data)) from None
    except Exception as error:  # Pillow's readers raise a dozen unrelated types on damaged data
        raise SampleError(BadReason.BROKEN_IMAGE, f"{type(error).__name__}: {error}"[:200]) from None
    width, height = image.size
    if min(width, height) < MIN_SIDE_PIXELS:
        found = f"{width} x {height} pixels, at least {MIN_SIDE_PIXELS} a side"
        raise SampleError(BadReason.IMAGE_TOO_SMALL, found)
    if max(width, height) > MAX_SIDE_PIXELS or width * height > MAX_PIXELS:
        found = f"{width} x {height} pixels, at most {MAX_SIDE_PIXELS} a side and {MAX_PIXELS} in all"
        raise SampleError(BadReason.IMAGE_TOO_LARGE, found)
    return image


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except Exception as error:  # as above
        reason = BadReason.TRUNCATED_IMAGE if "truncated" in str(error).lower() else BadReason.BROKEN_IMAGE
        raise SampleError(reason, f"{type(error).__name__}: {error}"[:200]) from None


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a damaged tag does not make the pixels wrong
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    try:
        return _converted(image)
    except (ValueError, OSError) as error:  # a mode that Pillow reads but cannot convert
        raise SampleError(BadReason.BROKEN_IMAGE, f"mode {image.mode}: {error}") from None


def _converted(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        # 16-bit grey: Pillow's own conversion would clip at 255.
        grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if ("A" in image.mode.upper() and image.mode != "LAB") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _resize(image: Image.Image, target: ImagePreprocessing) -> Image.Image:
    width, height = image.size
    box = (0.0, 0.0, float(width), float(height))
    if target.fit is Fit.CENTER_CROP and width != height:
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    if image.size == (target.size, target.size):
        return image
    return image.resize((target.size, target.size), _RESAMPLING[target.interpolation], box=box)


def _first_bytes(data: bytes) -> str:
    if not data:
        return "there are 0 bytes"
    return f"{len(data)} bytes that start with {data[:8].hex(' ')}, no format of {', '.join(_FORMATS)}"
