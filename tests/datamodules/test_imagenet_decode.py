"""Pictures of every mode against formulas, and damaged ones."""

import io
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from datamodules.imagenet.decode import MEAN_COLOUR, decode
from datamodules.imagenet.seeding import seeded
from tests.support.images import jpeg, picture, png16


def _saved(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    values = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    image, reason = decode(png16(values))
    assert (image.mode, reason) == ("RGB", None)
    pixels = np.asarray(image).astype(float)
    assert np.abs(pixels - (values / 65535 * 255)[..., None]).max() <= 0.5
    clipped = np.asarray(Image.open(io.BytesIO(png16(values))).convert("RGB"))
    assert (clipped == 255).mean() > 0.9, "what Pillow's own conversion makes of it"


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_in_every_container(kind: str) -> None:
    values = np.array([[0, 256], [32768, 65535]], dtype=np.uint16)
    image, reason = decode(_saved(Image.fromarray(values), kind))
    assert reason is None
    assert np.asarray(image)[..., 0].tolist() == [[0, 1], [128, 255]]


@given(st.lists(st.integers(0, 65535), min_size=4, max_size=4))
@settings(max_examples=50, deadline=None)
def test_sixteen_bits_round_to_the_nearest_of_eight(values: list[int]) -> None:
    image, _ = decode(png16(np.array(values, dtype=np.uint16).reshape(2, 2)))
    assert np.asarray(image)[..., 1].ravel().tolist() == [round(v / 257) for v in values]


def test_cmyk_is_converted_by_its_formula() -> None:
    rng = np.random.default_rng(0)
    ink = rng.integers(0, 256, (8, 8, 4), dtype=np.uint8)
    image, reason = decode(_saved(Image.fromarray(ink, mode="CMYK"), "TIFF"))
    assert reason is None
    c, k = ink[..., :3].astype(float), ink[..., 3:].astype(float)
    assert np.abs(np.asarray(image) - (255 - c) * (255 - k) / 255).max() <= 1


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    """Adobe stores it inverted: taken literally, red would come out as cyan."""
    ink = np.zeros((32, 32, 4), dtype=np.uint8)
    ink[..., 1:3] = 255  # magenta and yellow make red
    image, reason = decode(_saved(Image.fromarray(ink, mode="CMYK"), "JPEG"))
    assert reason is None
    assert np.abs(np.asarray(image).astype(int) - (255, 0, 0)).max() <= 4


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA"])
def test_other_modes_become_three_channels(mode: str) -> None:
    image, reason = decode(_saved(picture(0).convert(mode), "PNG"))
    assert (image.mode, image.size, reason) == ("RGB", (40, 30), None)
    if mode in ("1", "L", "LA"):
        channels = np.asarray(image)
        grey = np.asarray(picture(0).convert(mode[0]).convert("L"))
        assert all((channels[..., c] == grey).all() for c in range(3))


def test_pixels_without_a_known_white_are_damage() -> None:
    _, reason = decode(_saved(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF"))
    assert reason == "its grey values are floats of no known white"
    _, reason = decode(_saved(Image.fromarray(np.array([[0, 70_000]], dtype=np.int32)), "TIFF"))
    assert reason == "grey values from 0 to 70000 are not those of 16 bits"


def test_a_truncated_jpeg_keeps_what_came() -> None:
    content = jpeg(1, 256, 256)
    whole, _ = decode(content)
    image, reason = decode(content[: len(content) * 2 // 3])
    assert reason is not None
    assert "truncated" in reason
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "the tolerance ends with the file"
    upper = slice(0, 64)
    np.testing.assert_array_equal(np.asarray(image)[upper], np.asarray(whole)[upper])


@pytest.mark.parametrize("content", [b"", b"<html></html>", jpeg(1)[:20], png16(np.ones((9, 9), np.uint16))[:40]])
def test_what_is_no_picture_has_the_mean_colour(content: bytes) -> None:
    image, reason = decode(content)
    assert reason
    assert image.getcolors() == [(32 * 32, MEAN_COLOUR)]


def test_a_seed_is_local() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[union-attr]
    with seeded(5):
        first = draw()
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # type: ignore[union-attr]
    with pytest.raises(ZeroDivisionError), seeded(5):
        draw()[0] / 0
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # type: ignore[union-attr]
    with seeded(5):
        assert draw() == first
    with seeded(6):
        assert all(a != b for a, b in zip(draw(), first, strict=True))
