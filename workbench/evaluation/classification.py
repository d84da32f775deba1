"""How well pictures of classes are told apart.

Legend: N rows, C classes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_MANY_CLASSES = 10


def outcomes(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return of each row of [N, C] its cross-entropy and its rank: how many other classes score at least as high.

    So 0 is right. A tie counts against the row, and NaN as well.
    """
    right = logits.gather(1, labels[:, None])
    return F.cross_entropy(logits, labels, reduction="none"), (~(logits < right)).sum(dim=1) - 1


def accuracies(ranks: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """Return `top1`, `mean_per_class`, and `top5` of more than ten classes, in [0, 1].

    `mean_per_class` is the mean over the classes that there are rows of.

    Args:
        ranks: [N], see `outcomes`.
        labels: [N].
        classes: C.
    """
    right = (ranks == 0).float()
    rows = torch.bincount(labels, minlength=classes)
    share = torch.bincount(labels, weights=right, minlength=classes) / rows
    found = {"top1": right.mean(), "mean_per_class": share[rows > 0].mean()}
    if classes > _MANY_CLASSES:
        found["top5"] = (ranks < 5).float().mean()
    return {name: float(value) for name, value in found.items()}


def chance(classes: int) -> dict[str, float]:
    """Return what guessing gives: of `loss`, `top1`, `top5` and `mean_per_class`."""
    return {
        "loss": math.log(classes),
        "top1": 1 / classes,
        "top5": min(1.0, 5 / classes),
        "mean_per_class": 1 / classes,
    }
