"""Image files to RGB: every mode converted correctly, and damaged files as far as they can be read."""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageFile

from msssm.errors import InputError

MEAN_COLOUR = (124, 116, 104)  # of ImageNet
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any picture to 8-bit RGB.

    Grey values of 16 bits are scaled, 65535 to 255; `Image.convert` would clip them at 255. CMYK, grey, palette and
    transparency are converted as Pillow does; alpha is dropped.

    Raises:
        ValueError: the value of white is unknown: floats, or integers beyond 16 bits.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise InputError(f"grey values from {values.min()} to {values.max()} are not those of 16 bits")
        return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise InputError("its grey values are floats of no known white")
    return image.convert("RGB")


def decode(content: bytes) -> tuple[Image.Image, str | None]:
    """Decodes a file; returns the picture and None, or of a damaged file what can be read and the reason.

    The missing part of a truncated JPEG is grey; a file that is no picture gives ImageNet's mean colour.
    """
    try:
        return to_rgb(Image.open(io.BytesIO(content))), None
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
    try:
        with _tolerating_truncation():
            return to_rgb(Image.open(io.BytesIO(content))), reason
    except _DAMAGE:
        return Image.new("RGB", (32, 32), MEAN_COLOUR), reason


@contextmanager
def _tolerating_truncation() -> Iterator[None]:
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
