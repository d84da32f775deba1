"""From a picture file to a tower's input (Radford et al. 2021, section 2.5; openai/CLIP @ d05afc4, clip/clip.py).

Resize the shorter side bicubically, crop the centre, RGB, scale to [0, 1], normalise. Pixels are those of OpenAI's and
OpenCLIP's evaluation transform for RGB, grey, CMYK and opaque RGBA files. They differ, on purpose, where that transform
shows the model something that nobody sees:

- EXIF orientation: theirs ignores it; here the picture is upright.
- Transparency (RGBA, LA, palette or RGB with a transparent colour): theirs shows the hidden colour under it, often
  black; here the picture lies on white.
- Palette and 1-bit: theirs resizes the indices with nearest neighbours; here the colours, bicubically.
- 16 bits a channel: theirs clips everything above 255 to white; here the range is scaled.
- Sides of more than 64 to 1: theirs first makes a strip of S x 64 S pixels and more, up to all memory; here the ends
  that the centre crop leaves out are cut first, so pixels can differ by a fraction of a source pixel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torchvision.transforms import (
    CenterCrop,
    InterpolationMode,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
)
from torchvision.transforms.functional import center_crop

from workbench.errors import UserError

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
_LONGEST_SIDES = 64


@dataclass(frozen=True)
class Preprocessing:
    """How a model's pictures are prepared; travels with its weights."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"

    @classmethod
    def of(cls, architecture: Any) -> "Preprocessing":
        """Return an `Architecture`'s."""
        return cls(architecture.image_size, architecture.mean, architecture.std, architecture.interpolation)


class EvaluationTransform:
    """PIL picture -> uint8 [3, S, S]: shorter side to S, centre crop.

    Args:
        image_size: S.
        interpolation: a name of torchvision's `InterpolationMode`.
    """

    def __init__(self, image_size: int, interpolation: str = "bicubic"):
        self.steps = (_without_far_ends, Resize(image_size, _mode(interpolation)), CenterCrop(image_size))

    def __call__(self, picture: Image.Image) -> Tensor:
        """Transform one picture."""
        picture = readable(picture)
        for step in self.steps:
            picture = step(picture)
        return to_uint8(picture)


class TrainingTransform:
    """PIL picture -> uint8 [3, S, S]: a random crop, drawn from torch's global random state.

    The crop is OpenCLIP's, or the paper's (section 2.4): a random square of the picture resized to its shorter side.
    Flipping is off, since captions speak of left and right.

    Args:
        image_size: S.
        scale: bounds of the crop's share of the picture's area; None takes the paper's crop, which moves only along
            the longer side.
        ratio: bounds of the crop's aspect ratio, where `scale` is given.
        horizontal_flip: probability of mirroring.
        interpolation: a name of torchvision's `InterpolationMode`.
    """

    def __init__(
        self,
        image_size: int,
        scale: tuple[float, float] | None = (0.9, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        horizontal_flip: float = 0.0,
        interpolation: str = "bicubic",
    ):
        if scale is None:
            self.steps = (_without_far_ends, Resize(image_size, _mode(interpolation)), RandomCrop(image_size))
        else:
            self.steps = (RandomResizedCrop(image_size, scale, ratio, _mode(interpolation)),)
        if horizontal_flip:
            self.steps += (RandomHorizontalFlip(horizontal_flip),)

    def __call__(self, picture: Image.Image) -> Tensor:
        """Transform one picture."""
        picture = readable(picture)
        for step in self.steps:
            picture = step(picture)
        return to_uint8(picture)


def preprocess(settings: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """Return the transform PIL picture -> normalised fp32 [3, S, S] that OpenAI's `clip.load` returns."""
    # A partial can be pickled, for the workers of a DataLoader; a closure cannot.
    return partial(_preprocessed, EvaluationTransform(settings.image_size, settings.interpolation), settings)


def _preprocessed(transform: EvaluationTransform, settings: Preprocessing, picture: Image.Image) -> Tensor:
    return normalize(transform(picture), settings.mean, settings.std)


def normalize(images: Tensor, mean: tuple[float, ...] | Tensor, std: tuple[float, ...] | Tensor) -> Tensor:
    """Turn uint8 pixels [..., 3, H, W] into (pixel / 255 - mean) / std in fp32, on their device.

    Operations and order are torchvision's ToTensor and Normalize, so the result is equal to the last bit.
    """
    mean, std = (torch.as_tensor(v, dtype=torch.float32, device=images.device).view(3, 1, 1) for v in (mean, std))
    return images.float().div_(255).sub_(mean).div_(std)


def to_uint8(picture: Image.Image) -> Tensor:
    """Return a picture as uint8 [3, H, W]."""
    # NumPy moves the channels, because torch does it on several threads: 20 times slower where cores are busy.
    return torch.from_numpy(np.asarray(picture.convert("RGB")).transpose(2, 0, 1).copy())


def readable(picture: Image.Image) -> Image.Image:
    """Return a picture upright and without transparency, palette or deep channels: mode RGB, L or CMYK."""
    picture = _upright(picture)
    if picture.mode.startswith(("I", "F")):
        return _scaled_to_bytes(picture)
    if picture.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    if picture.mode in ("RGB", "L", "CMYK"):
        return picture
    return picture.convert("RGB")


def _upright(picture: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # Pillow raises nearly anything on damaged metadata, and the pixels may be sound
        turn = None
    if turn is None:
        return picture
    turned = picture.transpose(turn)
    # Without the metadata, so that nobody turns it again.
    turned.info = {key: value for key, value in picture.info.items() if key == "transparency"}
    return turned


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


def _without_far_ends(picture: Image.Image) -> Image.Image:
    longest = _LONGEST_SIDES * min(picture.size)
    if max(picture.size) <= longest:
        return picture
    return center_crop(picture, [min(picture.height, longest), min(picture.width, longest)])


def _mode(interpolation: str) -> InterpolationMode:
    try:
        return InterpolationMode(interpolation)
    except ValueError as error:
        known = ", ".join(mode.value for mode in InterpolationMode)
        raise UserError(f"Interpolation {interpolation!r} is unknown; there are {known}.") from error


def load_picture(source: str | Path | bytes) -> Image.Image:
    """Read a picture file, or its bytes, as `readable`.

    Raises:
        UserError: it cannot be read: missing, empty, cut short, no picture, or more pixels than Pillow's limit
            against decompression bombs (`PIL.Image.MAX_IMAGE_PIXELS`, twice which is refused).
    """
    name = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as picture:
            picture.load()
            return readable(picture)
    except FileNotFoundError as error:
        raise UserError(f"Picture {name} does not exist.") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"Picture {name} is refused: {error}") from error
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        why = str(error) or type(error).__name__
        raise UserError(f"Picture {name} cannot be read ({why}); replace it or take its row out.") from error
