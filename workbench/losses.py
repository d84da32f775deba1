"""Losses as pure functions of features: no state, no rank, no labels kept between calls.

Legend: B pairs on this process, N pairs over all processes (N = B when there is one), D embed_dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    *,
    all_image_features: Tensor | None = None,
    all_text_features: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """Symmetric cross-entropy over cosine similarities (Radford et al. 2021, section 2.3 and figure 3).

    Computed in fp32 (fp64 stays fp64) whatever autocast says, since a logit scale of 100 leaves bf16
    with two digits after the point.

    Given the features of all processes, it is the *local* loss: this process's B rows against all N columns,
    so that no process holds the N x N matrix. Its mean over processes is the loss of the whole batch, and with
    `distributed.gather_features` the averaged gradient is that of the whole batch too.

    Args:
        image_features: [B, D], need not be normalised.
        text_features: [B, D], row i belongs to image i.
        logit_scale: scalar, the multiplier of the cosine (not its logarithm).
        all_image_features: [N, D] of all processes in rank order, with gradient; None when B = N.
        all_text_features: [N, D], likewise.
        offset: the row of all_* that is this process's first (rank * B).

    Returns:
        Scalar, the mean over the B rows. Features that know nothing score ln N.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        image, text = _unit(image_features), _unit(text_features)
        targets = torch.arange(offset, offset + len(image), device=image.device)
        if all_image_features is None or all_text_features is None:
            logits_per_image = logit_scale * (image @ text.T)
            logits_per_text = logits_per_image.T
        else:
            logits_per_image = logit_scale * (image @ _unit(all_text_features).T)
            logits_per_text = logit_scale * (text @ _unit(all_image_features).T)
        return (F.cross_entropy(logits_per_image, targets) + F.cross_entropy(logits_per_text, targets)) / 2


@torch.no_grad()
def contrastive_in_blocks(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, block: int = 1024
) -> Tensor:
    """Compute the value of `contrastive` over N pairs with block x N memory instead of N x N; no gradient.

    Args:
        image_features: [N, D].
        text_features: [N, D].
        logit_scale: scalar multiplier.
        block: rows of the similarity matrix held at a time.
    """
    image, text = _unit(image_features), _unit(text_features)
    total = image.new_zeros(())
    for start in range(0, len(image), block):
        rows = slice(start, start + block)
        targets = torch.arange(start, min(start + block, len(image)), device=image.device)
        for queries, keys in ((image[rows], text), (text[rows], image)):
            total += F.cross_entropy(logit_scale * (queries @ keys.T), targets, reduction="sum")
    return total / (2 * len(image))


def _unit(features: Tensor) -> Tensor:
    """L2-normalise the rows of [B, D], in at least fp32."""
    return F.normalize(features if features.dtype == torch.float64 else features.float(), dim=-1)
