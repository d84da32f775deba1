"""Retrieval on further sets than the validation split."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule

from callbacks.canary import Canary
from workbench.distributed import gather_ragged
from workbench.evaluation import retrieval


class RetrievalMonitor(Canary):
    """Log `<name>/image_to_text_recall@k` and `<name>/text_to_image_recall@k` from before the first step on.

    The score that is compared with the start is `<name>/mean_recall@k`, the mean of both ways at the smallest k; see
    `Canary`.

    Args:
        name: of the metrics.
        ks: the k of recall@k.
        canary: see `Canary`.
    """

    kind = "retrieval"

    def __init__(self, name: str, ks: Sequence[int] = (1, 5), **canary: Any):
        super().__init__(name=name, **canary)
        self.ks = tuple(ks)

    def chances(self, pl_module: LightningModule) -> dict[str, float]:
        """Return recall@k of a random order, in which pictures of a class answer for each other."""
        rows = torch.as_tensor(self.measured.evaluation_dataloader(self.split, self.samples).sampler.rows)
        labels = self.measured.datasets[self.split].labels
        groups = gather_ragged((rows if labels is None else labels[rows]).to(pl_module.device))
        return {
            f"{self.name}/{way}_recall@{k}": retrieval.chance_recall(k, groups)
            for way in ("image_to_text", "text_to_image")
            for k in self.ks
        }
