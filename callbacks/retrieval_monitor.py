"""Retrieval on further sets than the validation split."""

from collections.abc import Sequence

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from callbacks.evaluation import encode_pairs
from workbench.evaluation import retrieval


class RetrievalMonitor(Callback):
    """Log `<name>/image_to_text_recall@k` and `<name>/text_to_image_recall@k` with each validation and at the end.

    Args:
        name: of the metrics.
        split: of the data.
        samples: rows to take, chosen by the data's seed; null takes all.
        data: a datamodule; null takes the run's own. It is prepared as that is.
        ks: the k of recall@k.
    """

    def __init__(
        self,
        name: str,
        split: str = "val",
        samples: int | None = None,
        data: LightningDataModule | None = None,
        ks: Sequence[int] = (1, 5),
    ):
        self.name, self.split, self.samples, self.data, self.ks = name, split, samples, data, tuple(ks)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load a set of one's own before the first step, so that its mistakes are found there."""
        if self.data is not None:
            self.data.follow(trainer.datamodule)
            self.data.prepare_data()
            self.data.setup()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate, unless this is the check before the first step."""
        if trainer.sanity_checking:
            return
        data = self.data or trainer.datamodule
        image, text = encode_pairs(pl_module, data.evaluation_dataloader(self.split, self.samples))
        for name, value in retrieval.recall_at_k(image, text, self.ks).items():
            pl_module.log(f"{self.name}/{name}", value)
            k = int(name.split("@")[1])
            pl_module.chance[f"{self.name}/{name}"] = retrieval.chance_recall(k, len(image))
