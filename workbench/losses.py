"""Losses as pure functions of features: no state, no rank, no labels kept between calls.

Legend: B pairs on this process, N pairs over all processes (N = B when there is one), D embed_dim.

Given the features of all processes, each is the *local* loss: this process's B rows against all N columns, so that no
process holds the N x N matrix. Its mean over processes is the loss of the whole batch, and with
`distributed.gather_features` the averaged gradient is that of the whole batch too. All compute in fp32 (fp64 stays
fp64) whatever autocast says, since a logit scale of 100 leaves bf16 with two digits after the point.
"""

import math

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
        logits_per_image, logits_per_text = _logits(image, text, logit_scale, all_image_features, all_text_features)
        return (F.cross_entropy(logits_per_image, targets) + F.cross_entropy(logits_per_text, targets)) / 2


def multi_positive(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    groups: Tensor,
    *,
    all_image_features: Tensor | None = None,
    all_text_features: Tensor | None = None,
    all_groups: Tensor | None = None,
) -> Tensor:
    """Return `contrastive` with every pair of a row's group as its positive, each with the same share of the target.

    The form of UniCL (Yang et al. 2022, arXiv 2204.03610, equations 2 to 4), and of SupCon with the mean outside of the
    logarithm (Khosla et al. 2020, arXiv 2004.11362, equation 2), between pictures and texts. With as many groups as
    rows it is `contrastive`.

    Args:
        image_features: [B, D], need not be normalised.
        text_features: [B, D].
        logit_scale: scalar multiplier of the cosine.
        groups: [B], equal where two pairs are positives of each other: a class, a picture.
        all_image_features: [N, D] of all processes in rank order, with gradient; None when B = N.
        all_text_features: [N, D], likewise.
        all_groups: [N], likewise.

    Returns:
        Scalar, the mean over the B rows. Features that know nothing score ln N, and none less than `least`.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        image, text = _unit(image_features), _unit(text_features)
        both = _logits(image, text, logit_scale, all_image_features, all_text_features)
        right = groups[:, None] == (groups if all_groups is None else all_groups)[None]
        return sum(_soft_cross_entropy(logits, right).mean() for logits in both) / 2


def sigmoid(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    all_text_features: Tensor | None = None,
    groups: Tensor | None = None,
    all_groups: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """Judge each image and text by itself: do they belong together? (Zhai et al. 2023, arXiv 2303.15343, section 3.2).

    Args:
        image_features: [B, D], need not be normalised.
        text_features: [B, D], row i belongs to image i.
        logit_scale: scalar multiplier of the cosine.
        logit_bias: scalar added to the logits, -ln(N - 1) or so at the start, see `starting_bias`.
        all_text_features: [N, D] of all processes in rank order, with gradient; None when B = N.
        groups: [B], equal where two pairs belong together, too; None: no two do.
        all_groups: [N], likewise, of all processes.
        offset: the row of `all_text_features` that is this process's first (rank * B).

    Returns:
        Scalar: the sum over the N columns, the mean over the B rows.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        image = _unit(image_features)
        text = _unit(text_features if all_text_features is None else all_text_features)
        logits = logit_scale * (image @ text.T) + logit_bias
        if groups is None:
            right = torch.zeros_like(logits, dtype=torch.bool)
            right.diagonal(offset).fill_(True)
        else:
            right = groups[:, None] == (groups if all_groups is None else all_groups)[None]
        return -F.logsigmoid(torch.where(right, logits, -logits)).sum() / len(image)


@torch.no_grad()
def starting_bias(image_features: Tensor, text_features: Tensor, logit_scale: Tensor, iterations: int = 50) -> float:
    """Return the bias with which `sigmoid` starts lowest: where as many pairs are expected to match as do.

    For features that know nothing, cosines of about 0, it is -ln(N - 1): the -10 of Zhai et al. (2023) at their
    batch of 32,768. Weights trained by the softmax loss have a scale of 100 and cosines far from 0, with which that
    would start by pushing everything apart.

    Args:
        image_features: [N, D] of all processes.
        text_features: [N, D].
        logit_scale: scalar multiplier of the cosine.
        iterations: halvings of the interval that it is looked for in.
    """
    logits = (logit_scale * (_unit(image_features) @ _unit(text_features).T)).double()
    low, high = -float(logits.max()) - 100, -float(logits.min()) + 100
    for _ in range(iterations):
        middle = (low + high) / 2
        too_many = float(torch.sigmoid(logits + middle).sum()) > len(logits)
        low, high = (low, middle) if too_many else (middle, high)
    return (low + high) / 2


def sigmoid_chance(pairs: int) -> float:
    """Return what `sigmoid` scores in a batch of N pairs for features that know nothing, with the best bias.

    Each of the N columns is then judged to match with probability 1 / N.
    """
    return math.log(pairs) + (pairs - 1) * math.log(pairs / max(1, pairs - 1))


def feature_distillation(features: Tensor, teacher_features: Tensor) -> Tensor:
    """Return the mean of 1 - cosine between a student's and a teacher's features.

    Args:
        features: [B, D], need not be normalised.
        teacher_features: [B, D] of the same inputs, without gradient.
    """
    with torch.autocast(features.device.type, enabled=False):
        return 1 - (_unit(features) * _unit(teacher_features)).sum(dim=-1).mean()


def logit_distillation(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    teacher_image_features: Tensor,
    teacher_text_features: Tensor,
    teacher_logit_scale: Tensor,
    *,
    all_image_features: Tensor | None = None,
    all_text_features: Tensor | None = None,
    all_teacher_image_features: Tensor | None = None,
    all_teacher_text_features: Tensor | None = None,
) -> Tensor:
    """Return how far a student's matches in the batch are from a teacher's: KL(teacher || student), both ways.

    Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531) of the contrastive distributions, at the temperatures
    that both have; the teacher may have another embed_dim.

    Args:
        image_features: [B, D], need not be normalised.
        text_features: [B, D].
        logit_scale: scalar multiplier of the student's cosine.
        teacher_image_features: [B, D'], without gradient.
        teacher_text_features: [B, D'].
        teacher_logit_scale: scalar multiplier of the teacher's cosine.
        all_image_features: [N, D] of all processes in rank order, with gradient; None when B = N.
        all_text_features: [N, D], likewise.
        all_teacher_image_features: [N, D'], likewise, without gradient.
        all_teacher_text_features: [N, D'], likewise.

    Returns:
        Scalar, the mean over the B rows; 0 where both agree.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        student = _logits(
            _unit(image_features), _unit(text_features), logit_scale, all_image_features, all_text_features
        )
        teacher = _logits(
            _unit(teacher_image_features),
            _unit(teacher_text_features),
            teacher_logit_scale,
            all_teacher_image_features,
            all_teacher_text_features,
        )
        return (
            sum(
                F.kl_div(ours.log_softmax(dim=1), theirs.log_softmax(dim=1), reduction="batchmean", log_target=True)
                for ours, theirs in zip(student, teacher, strict=True)
            )
            / 2
        )


def least(groups: Tensor, all_groups: Tensor | None = None) -> Tensor:
    """Return the value below which `multi_positive` cannot go: the mean over the rows of ln(their positives).

    Args:
        groups: [B], see `multi_positive`.
        all_groups: [N], likewise.
    """
    right = groups[:, None] == (groups if all_groups is None else all_groups)[None]
    return right.sum(dim=1).float().log().mean()


@torch.no_grad()
def contrastive_in_blocks(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    groups: Tensor | None = None,
    block: int = 1024,
) -> Tensor:
    """Compute the value of `contrastive` over N pairs with block x N memory instead of N x N; no gradient.

    Args:
        image_features: [N, D].
        text_features: [N, D].
        logit_scale: scalar multiplier.
        groups: [N]: the value of `multi_positive` with them.
        block: rows of the similarity matrix held at a time.
    """
    image, text = _unit(image_features), _unit(text_features)
    groups = torch.arange(len(image), device=image.device) if groups is None else groups
    total = image.new_zeros(())
    for start in range(0, len(image), block):
        rows = slice(start, start + block)
        right = groups[rows, None] == groups[None]
        for queries, keys in ((image[rows], text), (text[rows], image)):
            total += _soft_cross_entropy(logit_scale * (queries @ keys.T), right).sum()
    return total / (2 * len(image))


def _logits(
    image: Tensor, text: Tensor, logit_scale: Tensor, all_image: Tensor | None, all_text: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the scaled cosines of B normalised images and texts with all texts and images, [B, N] each."""
    if all_image is None or all_text is None:
        logits = logit_scale * (image @ text.T)
        return logits, logits.T
    return logit_scale * (image @ _unit(all_text).T), logit_scale * (text @ _unit(all_image).T)


def _soft_cross_entropy(logits: Tensor, right: Tensor) -> Tensor:
    """Return the cross-entropy of each row [B, N] with a target that is spread evenly over its right columns, [B]."""
    share = right.to(logits.dtype) / right.sum(dim=1, keepdim=True)
    return logits.logsumexp(dim=1) - (logits * share).sum(dim=1)


def _unit(features: Tensor) -> Tensor:
    """L2-normalise the rows of [B, D], in at least fp32."""
    return F.normalize(features if features.dtype == torch.float64 else features.float(), dim=-1)
