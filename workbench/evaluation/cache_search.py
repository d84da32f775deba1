"""Choose the two numbers of a cache adapter by accuracy, in bounded memory.

Legend: N pictures, K keys, C classes, D embed_dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.models.cache_adapter import cache_logits

_COSINES_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 26}
"""What fits a processor's cache, and what keeps a GPU busy."""


def spaced(lowest: float, end: float, count: int) -> list[float]:
    """Return evenly spaced numbers from `lowest` on, `end` left out, as Tip-Adapter's search has them."""
    return [lowest + number * (end - lowest) / count for number in range(count)]


@torch.no_grad()
def search(
    features: Tensor,
    zero_shot: Tensor,
    labels: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    alphas: Sequence[float],
    betas: Sequence[float],
    block: int | None = None,
) -> tuple[float, float]:
    """Return the alpha and the beta with which most pictures are classified right.

    Of equal ones the smallest beta wins, then the smallest alpha, where both are given in rising order. A tie between
    classes counts against a picture.

    Args:
        features: [N, D], normalised.
        zero_shot: [N, C] logits.
        labels: [N].
        keys: [K, D].
        key_labels: [K].
        alphas: to try, each with each beta.
        betas: to try.
        block: pictures at a time, which bounds memory; None takes what suits the device.
    """
    right = torch.zeros(len(betas), len(alphas), dtype=torch.int64, device=features.device)
    block = block or max(1, _COSINES_AT_ONCE.get(features.device.type, 1 << 20) // max(1, len(keys)))
    for start in range(0, len(features), block):
        rows = slice(start, start + block)
        cosines, base, target = features[rows] @ keys.T, zero_shot[rows], labels[rows, None]
        logits = torch.empty_like(base)
        for i, beta in enumerate(betas):
            cached = cache_logits(cosines, key_labels, zero_shot.shape[1], beta)
            for j, alpha in enumerate(alphas):
                torch.add(base, cached, alpha=alpha, out=logits)
                theirs = logits.gather(1, target)
                others = logits.scatter_(1, target, -torch.inf).amax(dim=1, keepdim=True)
                right[i, j] += (others < theirs).sum()
    counts = right.flatten().tolist()
    i, j = divmod(counts.index(max(counts)), len(alphas))
    return alphas[j], betas[i]
