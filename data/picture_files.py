"""Pictures as PNG or JPEG files in memory, such as a table holds them."""

import io
import zlib

import numpy as np

PNG = b"\x89PNG\r\n\x1a\n"
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> Pillow's name


def decoded_picture(encoded: bytes | memoryview, shape: tuple[int, ...]) -> np.ndarray:
    """A picture, checked to be whole and as large as it must be.

    Args:
        encoded: content of a PNG or JPEG file.
        shape: height, width and channels it must have.

    Returns:
        [height, width, channels] uint8.

    Raises:
        ValueError: it is damaged, of another kind, or of another shape.
    """
    from PIL import Image, UnidentifiedImageError

    encoded = bytes(encoded)
    if encoded.startswith(PNG):
        _check_png(encoded)
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
            found = (image.height, image.width, MODES.get(shape[2]))
            if (*found[:2], image.mode) != (*shape[:2], MODES.get(shape[2])):
                raise ValueError(
                    f"has {image.height} x {image.width} points in mode {image.mode}, "
                    f"but must have {shape[0]} x {shape[1]} in mode {MODES.get(shape[2])}"
                )
            values = np.asarray(image)
    except UnidentifiedImageError as error:
        raise ValueError("is neither PNG nor JPEG") from error
    except (OSError, SyntaxError, zlib.error, Image.DecompressionBombError) as error:
        raise ValueError(f"is damaged ({error})") from error
    return values.reshape(shape)


def encoded_picture(picture: np.ndarray, *, level: int) -> bytes:
    """A picture [height, width, 1, 3 or 4] uint8 as a PNG file, without loss."""
    from PIL import Image

    stream = io.BytesIO()
    grey = picture[..., 0] if picture.shape[2] == 1 else picture
    Image.fromarray(np.ascontiguousarray(grey)).save(stream, "PNG", compress_level=level)
    return stream.getvalue()


def _check_png(encoded: bytes) -> None:
    """Raise ValueError unless every chunk has the checksum it names, up to the last one."""
    place = len(PNG)
    while place < len(encoded):
        size = int.from_bytes(encoded[place : place + 4], "big")
        body, end = encoded[place + 4 : place + 8 + size], place + 12 + size
        if end > len(encoded) or zlib.crc32(body).to_bytes(4, "big") != encoded[end - 4 : end]:
            raise ValueError("is damaged (a checksum of the PNG is wrong)")
        if body[:4] == b"IEND":
            return
        place = end
    raise ValueError("is damaged (the PNG has no end)")
