"""From a picture file to a tower's input (Radford et al. 2021, section 2.5; openai/CLIP @ d05afc4, clip/clip.py).

Resize the shorter side bicubically, crop the centre, RGB, scale to [0, 1], normalise. Pixels are those of OpenAI's and
OpenCLIP's evaluation transform for RGB, grey, CMYK and opaque RGBA files. They differ, on purpose, where that transform
shows the model something that nobody sees:

- EXIF orientation: theirs ignores it; here the picture is upright.
- Transparency (RGBA, LA, palette or RGB with a transparent colour): theirs shows the hidden colour under it, often
  black; here the picture lies on white.
- Palette and 1-bit: theirs resizes the indices with nearest neighbours; here the colours, bicubically.
- 16 bits a channel: theirs clips everything above 255 to white; here the range is scaled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import CenterCrop, InterpolationMode, RandomHorizontalFlip, RandomResizedCrop, Resize

from workbench.errors import UserError


@dataclass(frozen=True)
class Preprocessing:
    """How a model's pictures are prepared; travels with its weights."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"


class EvaluationTransform:
    """PIL picture -> uint8 [3, S, S]: shorter side to S, centre crop.

    Args:
        image_size: S.
        interpolation: a name of torchvision's `InterpolationMode`.
    """

    def __init__(self, image_size: int, interpolation: str = "bicubic"):
        self.steps = (Resize(image_size, InterpolationMode(interpolation)), CenterCrop(image_size))

    def __call__(self, picture: Image.Image) -> Tensor:
        """Transform one picture."""
        picture = readable(picture)
        for step in self.steps:
            picture = step(picture)
        return to_uint8(picture)


class TrainingTransform:
    """PIL picture -> uint8 [3, S, S]: a random crop, drawn from torch's global random state.

    The paper's only augmentation is a random square crop; flipping is off, since captions speak of left and right.

    Args:
        image_size: S.
        scale: bounds of the crop's share of the picture's area.
        ratio: bounds of its aspect ratio.
        horizontal_flip: probability of mirroring.
        interpolation: a name of torchvision's `InterpolationMode`.
    """

    def __init__(
        self,
        image_size: int,
        scale: tuple[float, float] = (0.9, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        horizontal_flip: float = 0.0,
        interpolation: str = "bicubic",
    ):
        crop = RandomResizedCrop(image_size, scale, ratio, InterpolationMode(interpolation))
        self.steps = (crop, RandomHorizontalFlip(horizontal_flip)) if horizontal_flip else (crop,)

    def __call__(self, picture: Image.Image) -> Tensor:
        """Transform one picture."""
        picture = readable(picture)
        for step in self.steps:
            picture = step(picture)
        return to_uint8(picture)


def preprocess(settings: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """Return the transform PIL picture -> normalised fp32 [3, S, S] that OpenAI's `clip.load` returns."""
    evaluate = EvaluationTransform(settings.image_size, settings.interpolation)
    return lambda picture: normalize(evaluate(picture), settings.mean, settings.std)


def normalize(images: Tensor, mean: tuple[float, ...] | Tensor, std: tuple[float, ...] | Tensor) -> Tensor:
    """Turn uint8 pixels [..., 3, H, W] into (pixel / 255 - mean) / std in fp32, on their device.

    Operations and order are torchvision's ToTensor and Normalize, so the result is equal to the last bit.
    """
    mean, std = (torch.as_tensor(v, dtype=torch.float32, device=images.device).view(3, 1, 1) for v in (mean, std))
    return images.float().div_(255).sub_(mean).div_(std)


def to_uint8(picture: Image.Image) -> Tensor:
    """Return a picture as uint8 [3, H, W]."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()


def readable(picture: Image.Image) -> Image.Image:
    """Return a picture upright and without transparency, palette or deep channels: mode RGB, L or CMYK."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    if picture.mode in ("RGB", "L", "CMYK"):
        return picture
    if picture.mode.startswith(("I", "F")):
        return _scaled_to_bytes(picture)
    return picture.convert("RGB")


def _scaled_to_bytes(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture, dtype=np.float64)
    # Integers above a byte are 16 bits; floats up to 1 are shares of white.
    factor = 255 / 65535 if values.max(initial=0) > 255 else 255 if values.max(initial=0) <= 1 else 1
    if picture.mode.startswith("I;16"):
        factor = 255 / 65535
    return Image.fromarray(np.clip(np.rint(values * factor), 0, 255).astype(np.uint8))


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
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"Picture {name} cannot be read ({error}); replace it or take its row out.") from error
