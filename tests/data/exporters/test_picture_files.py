"""Pictures as files in memory: PNG keeps every point, and damage is noticed."""

import io

import numpy as np
import pytest
from PIL import Image

from data.picture_files import decoded_picture, encoded_picture


def picture(n_channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 8, n_channels), dtype=np.uint8)


@pytest.mark.parametrize("n_channels", [1, 3, 4])
@pytest.mark.parametrize("level", [0, 9])
def test_png_keeps_every_point(n_channels, level):
    values = picture(n_channels)
    encoded = encoded_picture(values, level=level)
    np.testing.assert_array_equal(decoded_picture(encoded, values.shape), values)
    # A view of larger memory, in another order, is written as it reads.
    flipped = values[::-1, ::-1]
    encoded = encoded_picture(flipped, level=level)
    np.testing.assert_array_equal(decoded_picture(memoryview(encoded), values.shape), flipped)


def test_other_programs_read_it():
    values = picture(3)
    with Image.open(io.BytesIO(encoded_picture(values, level=4))) as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), values)


def test_jpeg_is_read():
    stream = io.BytesIO()
    Image.new("RGB", (8, 5), (10, 200, 30)).save(stream, "JPEG", quality=95)
    found = decoded_picture(stream.getvalue(), (5, 8, 3))
    assert np.abs(found.astype(int) - [10, 200, 30]).max() <= 4  # What JPEG loses of one colour.


def test_every_flipped_byte_of_a_png_is_noticed():
    values = picture(3)
    encoded = encoded_picture(values, level=4)
    for place in range(len(encoded)):
        changed = encoded[:place] + bytes([encoded[place] ^ 0x40]) + encoded[place + 1 :]
        with pytest.raises(ValueError, match=r"damaged|neither PNG nor JPEG"):
            decoded_picture(changed, values.shape)
    for stop in range(len(encoded)):
        with pytest.raises(ValueError, match=r"damaged|neither PNG nor JPEG"):
            decoded_picture(encoded[:stop], values.shape)


def test_a_truncated_jpeg_is_noticed():
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
        stream, "JPEG"
    )
    with pytest.raises(ValueError, match="is damaged"):
        decoded_picture(stream.getvalue()[:-600], (64, 64, 3))


@pytest.mark.parametrize(
    ("mode", "size", "message"),
    [
        ("RGB", (5, 8), "has 8 x 5 points in mode RGB, but must have 5 x 8 in mode RGB"),
        ("L", (8, 5), "in mode L, but must"),
        ("P", (8, 5), "in mode P, but must"),
        ("I;16", (8, 5), "in mode I;16, but must"),
    ],
)
def test_another_size_or_mode_is_refused(mode, size, message):
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, "PNG")
    with pytest.raises(ValueError, match=message):
        decoded_picture(stream.getvalue(), (5, 8, 3))


def test_other_formats_are_refused():
    stream = io.BytesIO()
    Image.new("RGB", (8, 5)).save(stream, "BMP")
    for content in (stream.getvalue(), b"", b"text"):
        with pytest.raises(ValueError, match="neither PNG nor JPEG"):
            decoded_picture(content, (5, 8, 3))


def test_a_picture_that_would_fill_the_memory_is_refused_before_it_does():
    """A PNG header may claim 2**31 x 2**31 points in a few bytes."""
    import zlib

    head = b"IHDR" + (2**31 - 1).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    end = b"IEND"
    content = b"\x89PNG\r\n\x1a\n"
    for body in (head, end):
        size = (len(body) - 4).to_bytes(4, "big")
        content += size + body + zlib.crc32(body).to_bytes(4, "big")
    with pytest.raises(ValueError, match=r"damaged|but must have"):
        decoded_picture(content, (5, 8, 3))
