"""The losses of `workbench.losses` over the pairs of all processes, each process with its share."""

from typing import NamedTuple

import torch
from torch import Tensor

from workbench import losses
from workbench.distributed import gather_features, is_distributed, rank


class GatheredPairs(NamedTuple):
    """The features of this process's pairs, and those of all processes in rank order, with gradient.

    Attributes:
        image: [B, D], un-normalised.
        text: [B, D].
        all_image: [N, D]; None on one process.
        all_text: [N, D], likewise.
        groups: [B], equal where two pairs are positives of each other; None where no two are.
        all_groups: [N], likewise.
        offset: the row of the first of these pairs among all.
    """

    image: Tensor
    text: Tensor
    all_image: Tensor | None = None
    all_text: Tensor | None = None
    groups: Tensor | None = None
    all_groups: Tensor | None = None
    offset: int = 0

    @property
    def everyone(self) -> tuple[Tensor, Tensor]:
        """The images and texts of all processes, [N, D] each."""
        return (self.image, self.text) if self.all_image is None else (self.all_image, self.all_text)


def gather_pairs(image: Tensor, text: Tensor, groups: Tensor | None = None) -> GatheredPairs:
    """Gather the features of all processes.

    Args:
        image: [B, D] of this process, un-normalised, the same B on every process.
        text: [B, D].
        groups: [B], see `GatheredPairs`.
    """
    if not is_distributed():
        return GatheredPairs(image, text, groups=groups)
    all_groups = None if groups is None else gather_features(groups)
    return GatheredPairs(
        image, text, gather_features(image), gather_features(text), groups, all_groups, rank() * len(image)
    )


def softmax(pairs: GatheredPairs, logit_scale: Tensor) -> Tensor:
    """Return this process's share of `losses.contrastive`, or of `losses.multi_positive` where there are groups."""
    everyone = {"all_image_features": pairs.all_image, "all_text_features": pairs.all_text}
    if pairs.groups is None:
        return losses.contrastive(pairs.image, pairs.text, logit_scale, **everyone, offset=pairs.offset)
    return losses.multi_positive(
        pairs.image, pairs.text, logit_scale, pairs.groups, **everyone, all_groups=pairs.all_groups
    )


def sigmoid(pairs: GatheredPairs, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """Return this process's share of `losses.sigmoid`."""
    return losses.sigmoid(
        pairs.image,
        pairs.text,
        logit_scale,
        logit_bias,
        all_text_features=pairs.all_text,
        groups=pairs.groups,
        all_groups=pairs.all_groups,
        offset=pairs.offset,
    )


def logit_distillation(
    pairs: GatheredPairs, logit_scale: Tensor, teacher: GatheredPairs, teacher_logit_scale: Tensor
) -> Tensor:
    """Return this process's share of `losses.logit_distillation`."""
    return losses.logit_distillation(
        pairs.image,
        pairs.text,
        logit_scale,
        teacher.image,
        teacher.text,
        teacher_logit_scale,
        all_image_features=pairs.all_image,
        all_text_features=pairs.all_text,
        all_teacher_image_features=teacher.all_image,
        all_teacher_text_features=teacher.all_text,
    )


def feature_distillation(pairs: GatheredPairs, teacher: GatheredPairs) -> Tensor:
    """Return this process's share of `losses.feature_distillation` of both towers."""
    image = losses.feature_distillation(pairs.image, teacher.image)
    return (image + losses.feature_distillation(pairs.text, teacher.text)) / 2


@torch.no_grad()
def starting_bias(pairs: GatheredPairs, logit_scale: Tensor) -> float:
    """Return `losses.starting_bias` over the pairs of all processes, the same on each."""
    return losses.starting_bias(*pairs.everyone, logit_scale)
