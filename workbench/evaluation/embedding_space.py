"""How features lie on the sphere: whether pairs are close, points spread out, and the two modalities apart."""

import torch
import torch.nn.functional as F
from torch import Tensor


def alignment(image_features: Tensor, text_features: Tensor) -> float:
    """Return the mean squared distance of pairs, [N, D] each; 0 is best (Wang & Isola 2020, arXiv 2005.10242)."""
    image, text = F.normalize(image_features.float(), dim=-1), F.normalize(text_features.float(), dim=-1)
    return float((image - text).square().sum(dim=-1).mean())


@torch.no_grad()
def uniformity(features: Tensor, block: int = 1024) -> float:
    """Return log mean exp(-2 distance^2) over distinct rows of [N, D]; 0 is collapsed, -4 the uniform sphere.

    Wang & Isola 2020, arXiv 2005.10242, with t = 2; computed with block x N memory.
    """
    points = F.normalize(features.float(), dim=-1)
    total = points.new_zeros((), dtype=torch.float64)
    for part in points.split(block):
        total += (4 * (part @ points.T) - 4).exp().sum(dtype=torch.float64)
    pairs = len(points) * (len(points) - 1)
    # Each row with itself contributes 1.
    return float(((total - len(points)).clamp_min(1e-30) / pairs).log())


def modality_gap(image_features: Tensor, text_features: Tensor) -> float:
    """Return the distance of the two modalities' means (Liang et al. 2022, arXiv 2203.02053)."""
    image, text = F.normalize(image_features.float(), dim=-1), F.normalize(text_features.float(), dim=-1)
    return float((image.mean(dim=0) - text.mean(dim=0)).norm())
