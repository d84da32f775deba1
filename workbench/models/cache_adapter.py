"""A cache of labelled features beside zero-shot logits (Tip-Adapter, Zhang et al. 2022, arXiv 2207.09519, section 3.1).

Legend: N pictures, K keys, C classes, D embed_dim.

A picture's logit of a class gets alpha times the sum, over the keys of that class, of exp(-beta (1 - cosine)).
"""

import torch
from torch import Tensor, nn


def cache_logits(cosines: Tensor, labels: Tensor, classes: int, beta: float | Tensor) -> Tensor:
    """Return what the keys of each class say, [N, C]: exp(-beta (1 - cosines)) times the one-hot labels.

    The sum over the keys of a class, without the zeros of that product.

    Args:
        cosines: of features and keys, [N, K].
        labels: [K], the class of each key.
        classes: C.
        beta: sharpness: 0 counts all keys alike.
    """
    weights = (cosines.T - 1).mul_(beta).exp_()  # in place: of a large cache this is where the time goes
    return weights.new_zeros(classes, len(cosines)).index_add(0, labels, weights).T


class CacheAdapter(nn.Module):
    """Keys, their classes, and the two numbers that were chosen for them.

    Args:
        keys: K.
        embed_dim: D.
        classes: C.

    Attributes:
        keys: parameter [K, D]; normalised when it is filled, and free when it is trained, as published.
        labels: [K] int64, not in the state dict.
        alpha: weight of the cache, a scalar.
        beta: see `cache_logits`, a scalar.
    """

    def __init__(self, keys: int, embed_dim: int, classes: int):
        super().__init__()
        self.classes = classes
        self.keys = nn.Parameter(torch.zeros(keys, embed_dim))
        # A state dict is of numbers that could be parameters; who saves the keys saves these beside it.
        self.register_buffer("labels", torch.zeros(keys, dtype=torch.int64), persistent=False)
        self.register_buffer("alpha", torch.zeros(()))
        self.register_buffer("beta", torch.zeros(()))

    @torch.no_grad()
    def fill(self, features: Tensor, labels: Tensor) -> None:
        """Take normalised features [K, D] and their classes [K]."""
        self.keys.copy_(features)
        self.labels.copy_(labels)

    def forward(self, features: Tensor, alpha: float | Tensor, beta: float | Tensor) -> Tensor:
        """Return what is added to the zero-shot logits of normalised features [N, D]: [N, C]."""
        return alpha * cache_logits(features @ self.keys.T.to(features.dtype), self.labels, self.classes, beta)
