"""What there is to know of one picture, in 47 bytes: of every row, so it must be small.

The look of a picture is a perceptual hash in the manner of pHash (Zauner 2010, "Implementation and Benchmarking of
Perceptual Image Hash Functions", section 3.1): signs of the lowest frequencies of its cosine transform. Against the
median, as there, every second frequency of a drawing with a plain background hangs in the balance, so that saving it as
JPEG turns a dozen bits. Against a share of the contrast it turns two: of 300 pictures that were saved as JPEG of
quality 50, 99 % are found again within `duplicates.NEAR_BITS`, photographs, clip art and emoji alike.
"""

import hashlib
import io
import re
import warnings
from collections.abc import Callable
from enum import IntEnum

import numpy as np
from PIL import ExifTags, Image

from workbench.decoding import open_picture, readable
from workbench.errors import UserError


class Status(IntEnum):
    """Whether a picture can be read, and if not, why."""

    READABLE = 0
    MISSING = 1
    OUTSIDE = 2
    EMPTY = 3
    TRUNCATED = 4
    BOMB = 5
    UNREADABLE = 6


class Mark(IntEnum):
    """Bits of `PICTURE`'s marks."""

    ANIMATED = 1
    TRANSPARENT = 2
    TURNED = 4
    ONE_COLOUR = 8
    SHAPELESS = 16


FORMATS = (
    *("", "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "AVIF", "PPM", "JPEG2000", "ICO", "TGA", "PCX", "DDS"),
    "other",
)
"""By the number in `PICTURE`; the empty one is a picture that lies in memory or that nothing could be told of."""
MODES = (
    "",
    "RGB",
    "L",
    "P",
    "RGBA",
    "LA",
    "1",
    "CMYK",
    "YCbCr",
    "I;16",
    "I;16B",
    "I",
    "F",
    "PA",
    "LAB",
    "HSV",
    "other",
)
DEEP = tuple(number for number, mode in enumerate(MODES) if mode.startswith(("I", "F")))
"""Numbers of the modes of more than 8 bits."""

PICTURE = np.dtype(
    [
        ("status", "u1"),
        ("marks", "u1"),
        ("format", "u1"),
        ("mode", "u1"),
        ("width", "<i4"),
        ("height", "<i4"),
        ("bytes", "<i8"),
        ("file", "<u8"),
        ("pixels", "<u8"),
        ("look", "<u8"),
        ("colour", "u1", (3,)),
    ]
)
"""Sizes are of the picture as stored; `file` and `pixels` are hashes of its bytes and of its upright RGB pixels, 0
where there are none; `look` is the perceptual hash, `colour` the mean."""

MOST_PIXELS_HASHED = 50_000_000
"""Pictures of more are not compared by their pixels, a second copy of which would be needed."""

_GRID = 32
_FREQUENCIES = 12
_SHARE_OF_CONTRAST, _LEAST = 0.02, 4.0
_PLAIN = 3  # levels of 255 that pixels of one colour may differ by
# Formats in which a second picture is another frame; in MPO it is a preview or the other eye.
_ANIMATED = ("GIF", "WEBP", "PNG", "TIFF", "AVIF")


def examine(read: Callable[[], bytes | Image.Image], max_pixels: int | None = None) -> tuple[np.void, str]:
    """Return a `PICTURE`, and why it cannot be read, which is empty where it can.

    Args:
        read: returns the bytes of the picture's file or a picture, or raises `UserError`.
        max_pixels: see `workbench.decoding.load_picture`.
    """
    record = np.zeros((), PICTURE)
    try:
        content = read()
    except UserError as error:
        record["status"] = _why_not_read(error)
        return record[()], str(error)
    if isinstance(content, bytes):
        record["bytes"], record["file"] = len(content), hashed(content)
        if not content:
            record["status"] = Status.EMPTY
            return record[()], "the file is empty (0 bytes)"
        content = io.BytesIO(content)
    with warnings.catch_warnings():
        # Pillow's of large pictures, which are reported here, and of metadata, which nobody reads.
        warnings.simplefilter("ignore")
        try:
            with open_picture(content, max_pixels) as picture:
                flat = _decoded(picture, record)
        except Image.DecompressionBombError as error:
            record["status"] = Status.BOMB
            return record[()], str(error)
        except Exception as error:  # Pillow raises nearly anything on a damaged file
            why = re.sub(r" <_io\.BytesIO.*?>", "", str(error)) or type(error).__name__
            record["status"] = Status.TRUNCATED if _is_cut_short(why) else Status.UNREADABLE
            return record[()], why
    _look(flat, record)
    return record[()], ""


def _why_not_read(error: UserError) -> Status:
    if "leads out of" in str(error):
        return Status.OUTSIDE
    return Status.MISSING if isinstance(error.__cause__, FileNotFoundError) else Status.UNREADABLE


def _is_cut_short(why: str) -> bool:
    why = why.lower()
    return any(sign in why for sign in ("truncated", "broken data stream", "unexpected end", "not enough image data"))


def _decoded(picture: Image.Image, record: np.ndarray) -> Image.Image:
    """Fill in what a file says of itself, and return its upright RGB pixels."""
    record["width"], record["height"] = picture.size
    record["format"], record["mode"] = _number(FORMATS, picture.format or ""), _number(MODES, picture.mode)
    marks = 0
    if picture.format in _ANIMATED and getattr(picture, "is_animated", False):
        marks |= Mark.ANIMATED
    picture.load()
    if "transparency" in picture.info or ("A" in picture.getbands() and picture.getextrema()[-1][0] < 255):
        marks |= Mark.TRANSPARENT
    if _orientation(picture) > 1:  # which PNG has behind the pixels
        marks |= Mark.TURNED
    record["marks"] = int(marks)
    return readable(picture).convert("RGB")


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation) or 1)
    except Exception:  # damaged metadata do not hinder reading
        return 1


def _look(flat: Image.Image, record: np.ndarray) -> None:
    """Fill in hashes, colour and what can only be told from the pixels."""
    if flat.width * flat.height <= MOST_PIXELS_HASHED:
        record["pixels"] = hashed(np.ascontiguousarray(flat).data, f"{flat.width}x{flat.height}".encode())
    grid = np.asarray(flat.resize((_GRID, _GRID), Image.Resampling.LANCZOS, reducing_gap=2), np.float64)
    record["colour"] = np.rint(grid.mean((0, 1)))
    look = perceptual_hash(grid @ (0.299, 0.587, 0.114))
    record["look"] = look
    marks = int(record["marks"])
    if all(high - low <= _PLAIN for low, high in flat.getextrema()):
        marks |= Mark.ONE_COLOUR
    if not look:
        marks |= Mark.SHAPELESS
    record["marks"] = int(marks)


def perceptual_hash(grey: np.ndarray) -> int:
    """Return 64 bits of a picture that hardly change when it is saved again, or in another size.

    Args:
        grey: [32, 32], levels from 0 to 255.

    Returns:
        Which of the lowest frequencies but the mean rise above a share of the picture's contrast; 0 where it has none.
    """
    waves = _COSINES @ grey @ _COSINES.T
    contrast = np.sqrt(((grey - grey.mean()) ** 2).sum())
    bits = waves[_LOWEST] > max(_SHARE_OF_CONTRAST * contrast, _LEAST)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _cosines(size: int, frequencies: int) -> np.ndarray:
    """Return the first rows of the orthonormal DCT-II, [frequencies, size]."""
    positions, waves = np.arange(size) + 0.5, np.arange(frequencies)[:, None]
    matrix = np.cos(np.pi * positions * waves / size) * np.sqrt(2 / size)
    matrix[0] /= np.sqrt(2)
    return matrix


def _lowest(frequencies: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of the lowest frequencies, without that of the mean."""
    rows, columns = np.indices((frequencies, frequencies)).reshape(2, -1)
    order = np.lexsort((rows, rows + columns))[1 : count + 1]
    return rows[order], columns[order]


_COSINES = _cosines(_GRID, _FREQUENCIES)
_LOWEST = _lowest(_FREQUENCIES, 64)


def hashed(content: bytes | memoryview, salt: bytes = b"") -> int:
    """Return 64 bits, never 0: among ten million contents two different ones are equal once in 400,000 times."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, key=salt).digest(), "little") or 1


def _number(names: tuple[str, ...], name: str | None) -> int:
    return names.index(name) if name in names else len(names) - 1
