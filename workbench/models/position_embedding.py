"""Position embeddings of one image size or context length made to fit another."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE_POSITIONS = ("visual.positional_embedding", "visual.attnpool.positional_embedding")
TEXT_POSITIONS = "positional_embedding"
_KEPT = 20  # text positions that training has seen most of (Zhang et al. 2024, "Long-CLIP", section 3.1)


def interpolate(embedding: Tensor, grid: int) -> Tensor:
    """Resample an image tower's position embedding bicubically, with antialiasing; the first row stays as it is.

    Args:
        embedding: [1 + g * g, W]: one row for the class token (or the mean), then a square grid in raster order.
        grid: positions along each side that are wanted.

    Returns:
        [1 + grid * grid, W], in the type of `embedding`.
    """
    first, rest = embedding[:1], embedding[1:]
    side = math.isqrt(len(rest))
    if side * side != len(rest):
        raise ValueError(f"{len(rest)} position embeddings are no square grid.")
    if side == grid:
        return embedding
    square = rest.float().T.reshape(1, -1, side, side)
    resampled = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([first, resampled.flatten(2)[0].T.to(embedding.dtype)])


def interpolate_text(embedding: Tensor, length: int) -> Tensor:
    """Make a text tower's position embedding longer or shorter.

    Shorter is a cut, which is exact for texts that fit. Longer keeps the first 20 rows and stretches the rest linearly
    (Zhang et al. 2024, "Long-CLIP", arXiv 2403.15378, section 3.1).

    Args:
        embedding: [L, W].
        length: rows that are wanted.

    Returns:
        [length, W], in the type of `embedding`.
    """
    if length <= len(embedding):
        return embedding[:length]
    kept = min(_KEPT, len(embedding) - 1)
    rest = embedding[kept:].float().T[None]
    stretched = F.interpolate(rest, size=length - kept, mode="linear", align_corners=True)[0].T
    return torch.cat([embedding[:kept], stretched.to(embedding.dtype)])


def different(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the position embeddings of a state dict whose number of rows is not the model's: key -> (its, model's)."""
    wanted = dict(model.named_parameters())
    return {
        key: (len(state_dict[key]), len(wanted[key]))
        for key in (*IMAGE_POSITIONS, TEXT_POSITIONS)
        if key in state_dict and key in wanted and _resizable(key, state_dict[key], wanted[key])
    }


def _resizable(key: str, given: Tensor, wanted: Tensor) -> bool:
    """Tell whether only the number of rows differs, and is one that can be resampled."""
    if given.dim() != 2 or given.shape[1:] != wanted.shape[1:] or len(given) == len(wanted) or len(given) < 2:
        return False
    return key == TEXT_POSITIONS or math.isqrt(len(given) - 1) ** 2 == len(given) - 1


def fit(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, tuple[int, int]]:
    """Resample, in place, the position embeddings of a state dict that are not the model's.

    Returns:
        What was changed: key -> (before, after), the sides of an image's grid or the lengths of a text; empty where
        everything fitted.
    """
    changed = {}
    for key, (before, after) in different(state_dict, model).items():
        if key == TEXT_POSITIONS:
            state_dict[key] = interpolate_text(state_dict[key], after)
            changed[key] = (before, after)
        else:
            sides = math.isqrt(before - 1), math.isqrt(after - 1)
            state_dict[key] = interpolate(state_dict[key], sides[1])
            changed[key] = sides
    return changed
