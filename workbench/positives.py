"""Which pairs of a batch are positives of each other, beside each picture and its own text."""

from collections.abc import Mapping

import torch
from torch import Tensor

from workbench.errors import UserError

POSITIVES = ("pair", "label", "caption")
"""`pair`: no others; `label`: pairs of one class, or of one picture; `caption`: pairs with the same tokens."""

NO_LABELS = (
    "positives is label, and the data have none; ClassificationDataModule's do, and ImageTextDataModule's with "
    "--data.several_captions all. For pairs with equal captions there is --model.init_args.positives caption."
)


def check_positives(positives: str | None) -> None:
    """Refuse what is not one of `POSITIVES` or None."""
    if positives is not None and positives not in POSITIVES:
        raise UserError(f"positives is {positives!r}; choose one of {', '.join(POSITIVES)}, or null.")


def positive_groups(batch: Mapping[str, Tensor], positives: str | None) -> Tensor | None:
    """Return numbers that are equal where two pairs are positives of each other, int64 [B]; None if no two are.

    Args:
        batch: with `text` [B, L], and `label` [B] where the data have classes or pictures with several captions.
        positives: one of `POSITIVES`; None takes labels where there are some.

    Raises:
        UserError: labels are asked for, and the data have none.
    """
    if positives == "caption":
        return caption_numbers(batch["text"])
    if positives == "label" and "label" not in batch:
        raise UserError(NO_LABELS)
    return batch.get("label") if positives != "pair" else None


def caption_numbers(tokens: Tensor) -> Tensor:
    """Return a number for each text, int64 [B], equal where the texts are, however far they are padded.

    A sum of tokens times odd 64-bit coefficients, one for each position, so that no process needs the others' texts
    to number its own. That two of a million texts share a number by chance has a probability of about 1e-7.

    Args:
        tokens: [B, L], padded with zeros.
    """
    generator = torch.Generator().manual_seed(0)
    bounds = torch.iinfo(torch.int64)
    coefficients = torch.randint(bounds.min, bounds.max, (tokens.shape[1],), generator=generator) | 1
    return (tokens.long() * coefficients.to(tokens.device)).sum(dim=1)  # int64 wraps around, the same everywhere
