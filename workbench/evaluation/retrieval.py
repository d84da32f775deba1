"""Retrieval between pictures and texts, exact and in bounded memory.

Legend: N images, M texts, D embed_dim.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def ranks(queries: Tensor, keys: Tensor, positives: Tensor, owner: Tensor, block: int = 1024) -> Tensor:
    """Return, for each query, how many wrong keys score at least as high as its best right key; [Q], 0 is best.

    A tie counts against the query, so that features which all coincide rank last instead of first.

    Args:
        queries: [Q, D], normalised.
        keys: [K, D], normalised.
        positives: [Q], the group that a query belongs to.
        owner: [K], the group that a key belongs to; keys of the query's group are right.
        block: queries compared at a time: memory grows with block x K.
    """
    found = []
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        scores = queries[rows] @ keys.T
        right = positives[rows, None] == owner[None]
        best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        found.append(((scores >= best) & ~right).sum(dim=1))
    return torch.cat(found)


def recall_at_k(
    image_features: Tensor,
    text_features: Tensor,
    ks: Sequence[int] = (1, 5, 10),
    text_to_image: Tensor | None = None,
    groups: Tensor | None = None,
    block: int = 1024,
) -> dict[str, float]:
    """Return the share of queries with a right answer among their k nearest, both ways.

    An image with several texts is found by any of them.

    Args:
        image_features: [N, D], need not be normalised.
        text_features: [M, D].
        ks: the k to report.
        text_to_image: [M], the row of the image that a text belongs to; None where M = N and pairs share a row.
        groups: [N], of such pairs: those with equal numbers, of a class, are right answers to each other.
        block: see `ranks`.

    Returns:
        `image_to_text_recall@k` and `text_to_image_recall@k`, in [0, 1].
    """
    image, text = F.normalize(image_features.float(), dim=-1), F.normalize(text_features.float(), dim=-1)
    rows = torch.arange(len(image), device=image.device) if groups is None else groups
    owner = rows if text_to_image is None else text_to_image
    found = {
        "image_to_text": ranks(image, text, rows, owner, block),
        "text_to_image": ranks(text, image, owner, rows, block),
    }
    return {
        f"{direction}_recall@{k}": float((rank < k).float().mean()) for direction, rank in found.items() for k in ks
    }


def chance_recall(k: int, groups: Tensor) -> float:
    """Return recall@k of a random order, in which those of a query's group are right answers.

    Args:
        k: answers that are looked at.
        groups: [N], equal where pairs belong together.
    """
    _, number, sizes = groups.unique(return_inverse=True, return_counts=True)
    right, candidates = sizes[number].double(), len(groups)
    looked_at = torch.arange(min(k, candidates), dtype=torch.float64, device=groups.device)
    wrong = ((candidates - right[:, None] - looked_at).clamp(min=0) / (candidates - looked_at)).prod(dim=1)
    return float((1 - wrong).mean())
