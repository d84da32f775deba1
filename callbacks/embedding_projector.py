"""The embedding, to walk through in TensorBoard's projector."""

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.evaluation import encode_pairs

_THUMBNAIL = 32


class EmbeddingProjector(Callback):
    """At the end of training, hand image and text features of a split to TensorBoard's projector, with thumbnails.

    Args:
        split: of the run's data.
        samples: rows to take; both modalities of each are shown.
    """

    def __init__(self, split: str = "val", samples: int = 500):
        self.split, self.samples = split, samples

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Encode on all processes, write on the first."""
        loader = trainer.datamodule.evaluation_dataloader(self.split, self.samples)
        image, text, rows = encode_pairs(pl_module, loader, "index")
        if not trainer.is_global_zero:
            return
        pairs = trainer.datamodule.datasets[self.split]
        rows = rows.tolist()
        pictures = torch.stack([self._thumbnail(pairs[row]["image"]) for row in rows])
        blank = torch.ones_like(pictures)
        labels = [[pairs.captions[row], kind] for kind in ("image", "text") for row in rows]
        for logger in trainer.loggers:
            if hasattr(logger.experiment, "add_embedding"):
                logger.experiment.add_embedding(
                    F.normalize(torch.cat([image, text]), dim=-1).cpu(),
                    metadata=labels,
                    metadata_header=["caption", "modality"],
                    label_img=torch.cat([pictures, blank]),
                    global_step=trainer.global_step,
                    tag=self.split,
                )

    @staticmethod
    def _thumbnail(image: Tensor) -> Tensor:
        return F.interpolate(image[None] / 255, size=(_THUMBNAIL, _THUMBNAIL), mode="area")[0]
