"""Position embeddings of one grid made to fit another."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE_POSITIONS = ("visual.positional_embedding", "visual.attnpool.positional_embedding")


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


def fit(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, tuple[int, int]]:
    """Interpolate, in place, the image positions of a state dict whose grid is not the model's.

    Returns:
        What was changed: key -> (side before, side after); empty where everything fitted.
    """
    changed = {}
    wanted = dict(model.named_parameters())
    for key in IMAGE_POSITIONS:
        if key in state_dict and key in wanted and state_dict[key].shape[0] != wanted[key].shape[0]:
            before, after = (math.isqrt(len(rows) - 1) for rows in (state_dict[key], wanted[key]))
            state_dict[key] = interpolate(state_dict[key], after)
            changed[key] = (before, after)
    return changed
