"""From a picture file to pixels: whole and upright, or only as many pixels as a crop needs.

`load_picture` reads everything and is what evaluation uses. `read_crop` is for training, where the crop is random
anyway: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size as long as the crop keeps 1.5 pixels a side for each that is
wanted, and RGB is resized by torch's vector kernels rather than Pillow's. Nothing else changes: not the crop, to a few
hundredths of a wanted pixel, nor the filter, nor which files are refused, since Pillow decodes them in both.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from workbench.errors import UserError

# PostScript is a language; Pillow has Ghostscript run it. WMF goes to Windows.
_PROGRAMS = ("EPS", "WMF")

# Left, top, right, bottom, in pixels from the upper left corner; fractions allowed.
Box = tuple[float, float, float, float]

# EXIF 2.32, section 4.6.4 A, tag 274: how to turn the stored picture upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The same as three steps, in this order: rows for columns, then mirrored from left to right, then upside down.
_SWAPPED, _MIRRORED, _UPSIDE_DOWN = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)

# What torch resizes with antialiasing, and what Pillow calls it.
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# Decoded pixels a side for each wanted, at least. It leaves photographs 40 dB from the whole picture's pixels; 39 with
# 4:2:2 chroma, and 34 with 4:1:1, which is rare. 1 would leave 32; 2 would leave 44, for four times as many pixels of a
# good part of all pictures.
_MARGIN = 1.5
# Share of a wanted pixel by which an edge of the crop may be off, where torch resizes.
_TOLERANCE = 0.03
# Wanted pixels that are tried to get there, each of which is made in vain; and how many at most, in sizes of the crop,
# to start with the picture. With more, Pillow is as fast.
_SURPLUS, _FARTHEST = 32, 2
# Of the filters, in pixels of the coarser of the two grids.
_REACH = 2


def load_picture(source: str | Path | bytes | Image.Image, max_pixels: int | None = None) -> Image.Image:
    """Read a picture file, its bytes, or a picture that is already open, as `readable`.

    Args:
        source: of these.
        max_pixels: of the stored picture, width x height; None leaves it to Pillow's limit against decompression bombs
            (twice `PIL.Image.MAX_IMAGE_PIXELS`, 179 million), which holds in any case.

    Raises:
        UserError: it cannot be read: missing, empty, cut short, no picture, or of more pixels than a limit allows,
            which is told from its header.
    """
    with _opened(source, max_pixels) as picture:
        picture.load()
        return readable(picture)


def read_crop(
    content: bytes,
    draw: Callable[[int, int], Box],
    size: int,
    interpolation: str,
    beyond: bool,
    max_pixels: int | None = None,
) -> Tensor:
    """Return a crop of an encoded picture as uint8 [3, size, size].

    Args:
        content: the file's bytes.
        draw: (width, height) of the upright picture -> the crop.
        size: pixels a side, S.
        interpolation: a key of `RESAMPLING`.
        beyond: whether the filter may look beyond the crop's edges, as it does where a picture is resized first and
            cropped then.
        max_pixels: as `load_picture`, however small a part of them is decoded.

    Raises:
        UserError: as `load_picture`.
    """
    with _opened(content, max_pixels) as picture:
        # Of other formats, some know only after decoding how to be turned, and none can be decoded at a fraction.
        scalable = picture.format in ("JPEG", "MPO")
        if not scalable:
            picture.load()
        turn = _orientation(picture)
        width, height = reversed(picture.size) if turn in _SWAPPED else picture.size
        box = _as_stored(draw(width, height), turn, width, height)
        if scalable:
            box = _reduce(picture, box, size)
            picture.load()
        flat = _flat(picture)
    return torch.from_numpy(_turned(_resized(flat, box, size, interpolation, beyond), turn).copy())


def readable(picture: Image.Image) -> Image.Image:
    """Return a picture upright and without transparency, palette or deep channels: mode RGB, L or CMYK."""
    turn = _TURNS.get(_orientation(picture))
    if turn is not None:
        turned = picture.transpose(turn)
        # Without the metadata, so that nobody turns it again.
        turned.info = {key: value for key, value in picture.info.items() if key == "transparency"}
        picture = turned
    return _flat(picture)


@functools.cache
def _formats() -> list[str]:
    """Return the formats that are decoded: all of Pillow's but those that it hands to another program."""
    Image.init()
    return [name for name in Image.ID if name not in _PROGRAMS]


@contextmanager
def open_picture(source: str | Path | BytesIO | Image.Image, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """Open a picture, of which nothing is decoded yet; one that is open already stays open.

    Raises:
        Image.DecompressionBombError: it has more pixels than `max_pixels`, or than Pillow's limit.
        Exception: Pillow raises nearly anything on a damaged file.
    """
    with nullcontext(source) if isinstance(source, Image.Image) else Image.open(source, formats=_formats()) as picture:
        if max_pixels is not None and picture.width * picture.height > max_pixels:
            raise Image.DecompressionBombError(
                f"{picture.width:,} x {picture.height:,} pixels are more than the {max_pixels:,} that "
                "--data.max_pixels allows."
            )
        yield picture


@contextmanager
def _opened(source: str | Path | bytes | Image.Image, max_pixels: int | None) -> Iterator[Image.Image]:
    if isinstance(source, bytes):
        name, source = f"of {len(source):,} bytes", BytesIO(source)
    elif isinstance(source, Image.Image):
        name = str(getattr(source, "filename", "") or "in memory")
    else:
        name = str(source)
    try:
        with open_picture(source, max_pixels) as picture:
            yield picture
    except FileNotFoundError as error:
        raise UserError(f"Picture {name} does not exist.") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"Picture {name} is refused: {error}") from error
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        why = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):  # whose message names the buffer by its address
            why = "no picture, or damaged at its start"
        raise UserError(f"Picture {name} cannot be read ({why}); replace it or take its row out.") from error


def _orientation(picture: Image.Image) -> int:
    try:
        number = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises nearly anything on damaged metadata, and the pixels may be sound
        return 1
    return number if number in _TURNS else 1


def _flat(picture: Image.Image) -> Image.Image:
    """Return a picture without transparency, palette or deep channels."""
    if picture.mode.startswith(("I", "F")):
        return _scaled_to_bytes(picture)
    if picture.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture)
        return white
    if picture.mode in ("RGB", "L", "CMYK"):
        return picture
    return picture.convert("RGB")


def _scaled_to_bytes(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture, dtype=np.float64)
    # Integers above a byte are 16 bits; floats up to 1 are shares of white.
    factor = 255 / 65535 if values.max(initial=0) > 255 else 255 if values.max(initial=0) <= 1 else 1
    if picture.mode.startswith("I;16"):
        factor = 255 / 65535
    transparent = picture.info.get("transparency")
    if transparent is not None:
        values = np.where(values == transparent, 255 / factor, values)
    return Image.fromarray(np.clip(np.rint(values * factor), 0, 255).astype(np.uint8))


def _as_stored(box: Box, turn: int, width: int, height: int) -> Box:
    """Return where a box of the upright picture, of this size, lies in the stored one."""
    left, top, right, bottom = box
    if turn in _UPSIDE_DOWN:
        top, bottom = height - bottom, height - top
    if turn in _MIRRORED:
        left, right = width - right, width - left
    return (top, left, bottom, right) if turn in _SWAPPED else (left, top, right, bottom)


def _turned(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Return pixels [3, H, W] of the stored picture upright."""
    if turn in _SWAPPED:
        pixels = pixels.swapaxes(1, 2)
    if turn in _MIRRORED:
        pixels = pixels[:, :, ::-1]
    if turn in _UPSIDE_DOWN:
        pixels = pixels[:, ::-1]
    return pixels


def _reduce(picture: Image.Image, box: Box, size: int) -> Box:
    """Have an opened JPEG decoded at the smallest scale that leaves the box enough pixels; return the box in it."""
    needed = _MARGIN * size
    sides = box[2] - box[0], box[3] - box[1]
    scale = next((scale for scale in (8, 4, 2) if min(sides) >= scale * needed), 1)
    if scale == 1 or picture.draft(None, (picture.width // scale, picture.height // scale)) is None:
        return box
    return tuple(edge / scale for edge in box)


class _Span(NamedTuple):
    """One axis of a resize that starts at a whole pixel, as torch's has to.

    The row of wanted pixels is continued to the left until an edge of one meets an edge of a decoded one, if need be
    beyond the picture's; what is made there is cut off.
    """

    first: int  # decoded pixel to start at; below 0 the one at the edge is repeated
    last: int  # and the one to stop before, or the picture's end
    factor: float  # wanted pixels for each of them
    surplus: int  # those to cut off

    @classmethod
    def between(cls, start: float, stop: float, size: int, beyond: bool) -> "_Span | None":
        """Return the span that makes `size` pixels of the decoded ones from `start` to `stop`.

        None where no edges meet.
        """
        step = (stop - start) / size
        # For the filter to see what lies before the crop, start with the picture, where the edges of its rows meet.
        surpluses = np.array([round(start / step)]) if beyond else np.arange(_SURPLUS + 1)
        edges = start - surpluses * step
        meeting = np.flatnonzero(np.abs(edges - np.rint(edges)) <= _TOLERANCE * step)
        if not len(meeting) or surpluses[0] > _FARTHEST * size:
            return None
        first, surplus = round(edges[meeting[0]]), int(surpluses[meeting[0]])
        last = math.ceil(stop + (_REACH * max(step, 1) if beyond else 0))
        # torch rounds the count of the result down, so that it should not be a hair below a whole number.
        return cls(first, last, (size + surplus) / (stop - first) * (1 + 1e-9), surplus)


def _resized(picture: Image.Image, box: Box, size: int, interpolation: str, beyond: bool) -> np.ndarray:
    """Return a box of an RGB, L or CMYK picture as uint8 [3, size, size], filtered as Pillow does."""
    left, top, right, bottom = box
    columns = _Span.between(left, right, size, beyond)
    rows = _Span.between(top, bottom, size, beyond)
    if picture.mode != "RGB" or columns is None or rows is None:
        if not beyond and all(float(edge).is_integer() for edge in box):
            picture, box = picture.crop(box), None
        picture = picture.resize((size, size), RESAMPLING[interpolation], box).convert("RGB")
        return np.asarray(picture).transpose(2, 0, 1)
    # Copied because torch warns of memory that is read-only.
    window = np.asarray(picture)[max(rows.first, 0) : rows.last, max(columns.first, 0) : columns.last].copy()
    if rows.first < 0 or columns.first < 0:
        window = np.pad(window, ((max(-rows.first, 0), 0), (max(-columns.first, 0), 0), (0, 0)), "edge")
    result = torch.nn.functional.interpolate(
        torch.from_numpy(window).permute(2, 0, 1)[None],
        scale_factor=(rows.factor, columns.factor),
        mode=interpolation,
        antialias=True,
    )[0].numpy()
    return result[:, rows.surplus : rows.surplus + size, columns.surplus : columns.surplus + size]
