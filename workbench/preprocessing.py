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
from typing import Any

import numpy as np
import torch
from PIL import Image
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

from workbench.decoding import RESAMPLING, Box, load_picture, read_crop
from workbench.errors import UserError

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
    """Picture -> uint8 [3, S, S]: shorter side to S, centre crop.

    Args:
        image_size: S.
        interpolation: a name of torchvision's `InterpolationMode`.
        max_pixels: of a stored picture, see `load_picture`.
    """

    def __init__(self, image_size: int, interpolation: str = "bicubic", max_pixels: int | None = None):
        self.max_pixels = max_pixels
        self.steps = (_without_far_ends, Resize(image_size, _mode(interpolation)), CenterCrop(image_size))

    def __call__(self, picture: Image.Image | bytes) -> Tensor:
        """Transform one picture, or the bytes of its file; see `load_picture` for what is refused."""
        return _transformed(load_picture(picture, self.max_pixels), self.steps)


class TrainingTransform:
    """Picture -> uint8 [3, S, S]: a random crop, drawn from torch's global random state.

    The crop is OpenCLIP's, or the paper's (section 2.4): a random square of the picture resized to its shorter side.
    Flipping is off, since captions speak of left and right.

    Args:
        image_size: S.
        scale: bounds of the crop's share of the picture's area; None takes the paper's crop, which moves only along
            the longer side.
        ratio: bounds of the crop's aspect ratio, where `scale` is given.
        horizontal_flip: probability of mirroring.
        interpolation: a name of torchvision's `InterpolationMode`.
        decode: of a file's bytes. `exact` takes the pixels of the whole picture, as for a PIL picture. `scaled` takes
            the same crop and decodes a JPEG at the smallest scale that leaves the crop 1.5 pixels a side for each of S;
            it resizes with kernels that are faster and round differently. Photographs end up 39 dB or more from the
            exact pixels, 45 as a rule; where nothing is scaled it is one level, or a few at hard edges.
        max_pixels: of a stored picture, see `load_picture`.
    """

    def __init__(
        self,
        image_size: int,
        scale: tuple[float, float] | None = (0.9, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        horizontal_flip: float = 0.0,
        interpolation: str = "bicubic",
        decode: str = "scaled",
        max_pixels: int | None = None,
    ):
        if decode not in ("scaled", "exact"):
            raise UserError(f"decode is {decode!r}; there are scaled and exact.")
        mode = _mode(interpolation)
        self.image_size, self.scale, self.ratio = image_size, scale, ratio
        self.horizontal_flip, self.interpolation, self.decode = horizontal_flip, interpolation, decode
        self.max_pixels = max_pixels
        if scale is None:
            self.steps = (_without_far_ends, Resize(image_size, mode), RandomCrop(image_size))
        else:
            self.steps = (RandomResizedCrop(image_size, scale, ratio, mode),)
        if horizontal_flip:
            self.steps += (RandomHorizontalFlip(horizontal_flip),)

    def __call__(self, picture: Image.Image | bytes) -> Tensor:
        """Transform one picture, or the bytes of its file; see `load_picture` for what is refused."""
        if isinstance(picture, bytes) and self.decode == "scaled" and self.interpolation in RESAMPLING:
            return self._scaled(picture)
        return _transformed(load_picture(picture, self.max_pixels), self.steps)

    def _scaled(self, content: bytes) -> Tensor:
        # The paper's crop is one of a picture that was resized as a whole, so its filter looks beyond the crop.
        beyond = self.scale is None
        pixels = read_crop(content, self.crop, self.image_size, self.interpolation, beyond, self.max_pixels)
        if self.horizontal_flip and torch.rand(1) < self.horizontal_flip:
            pixels = pixels.flip(2)
        return pixels

    def crop(self, width: int, height: int) -> Box:
        """Draw the crop of an upright picture of this size, with the draws of `steps`."""
        # Tensors without memory: torchvision looks at no more than their size.
        if self.scale is not None:
            picture = torch.empty((1, height, width), device="meta")
            top, left, rows, columns = RandomResizedCrop.get_params(picture, self.scale, self.ratio)
            return left, top, left + columns, top + rows
        longest = _LONGEST_SIDES * min(width, height)
        across, down = min(width, longest), min(height, longest)
        # As torchvision's Resize rounds.
        rows, columns = (int(self.image_size * side / min(width, height)) for side in (down, across))
        picture = torch.empty((1, rows, columns), device="meta")
        top, left, _, _ = RandomCrop.get_params(picture, (self.image_size, self.image_size))
        y, x = down / rows, across / columns
        left, top = left * x + round((width - across) / 2), top * y + round((height - down) / 2)
        return left, top, left + self.image_size * x, top + self.image_size * y


def _transformed(picture: Image.Image, steps: tuple[Callable[[Any], Any], ...]) -> Tensor:
    for step in steps:
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
