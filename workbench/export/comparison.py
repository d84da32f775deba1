"""Two models on the same pictures and texts: how far apart are they?"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from workbench.errors import UserError
from workbench.models import CLIP, Architecture
from workbench.preprocessing import Preprocessing, preprocess
from workbench.tokenizer import tokenize

_PICTURES = 3
_LEVELS = 2.5
_TEXTS = (
    "a photo of a cat",
    "two dogs and 17 red balloons, seen from above!",
    "",
    "ein Fahrrad unter dem Eiffelturm \N{BICYCLE}",
    "a caption of more words than the text tower has positions for " * 8,
)


@dataclass
class Encoders:
    """A model of another library, as functions.

    Attributes:
        library: its name and version.
        encode_image: normalised pictures [B, 3, S, S] -> un-normalised features [B, D].
        encode_text: tokens [B, L] -> un-normalised features [B, D].
        logits: pictures and tokens -> logits [B, B'].
    """

    library: str
    encode_image: Callable[[Tensor], Tensor]
    encode_text: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def largest_differences(model: CLIP, other: Encoders) -> dict[str, float]:
    """Return the largest differences, relative to the largest value, of image features, text features and logits.

    On random pictures and fixed texts: empty, short, of several scripts, and longer than the context. Batches differ in
    size, since an export may have fixed one.
    """
    size = model.architecture.image_size
    images = torch.randn(_PICTURES, 3, size, size, generator=torch.Generator().manual_seed(0))
    tokens = tokenize(_TEXTS, model.architecture.context_length, truncate=True).long()
    tokens = tokens.clamp(max=model.architecture.vocab_size - 1)  # an end is the largest id of any vocabulary
    model = model.eval()
    return {
        "image features": _difference(other.encode_image(images), model.encode_image(images)),
        "one image": _difference(other.encode_image(images[:1]), model.encode_image(images[:1])),
        "text features": _difference(other.encode_text(tokens), model.encode_text(tokens)),
        "logits": _difference(other.logits(images, tokens), model(images, tokens)[0]),
    }


def refuse_other_pictures(described: Architecture, transform: Callable[[Image.Image], Tensor], library: str) -> None:
    """Compare how another library prepares a picture with how it should be.

    Raises:
        UserError: by more than two of 255 levels, which resizing by torchvision is away from resizing by Pillow.
    """
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((400, 300))  # smooth, as pictures are
    levels = torch.tensor(described.std)[:, None, None] * 255
    found, expected = transform(picture), preprocess(Preprocessing.of(described))(picture)
    if found.shape != expected.shape or float(((found - expected) * levels).abs().max()) > _LEVELS:
        raise UserError(f"{library} would prepare other pictures than ours from what was exported; nothing is written.")


def _difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    difference = (found.double() - expected.double()).abs().max() / expected.double().abs().max()
    return float(difference) if bool(difference.isfinite()) else float("inf")


@contextmanager
def quietly() -> Iterator[None]:
    """Hold back what other libraries say of their own insides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def scaled_cosines(image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor | float = 0.0) -> Tensor:
    """Return logits [B, B'] of features, which may be normalised already."""
    return logit_scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T + logit_bias
