"""Encode a split with the model as it stands, over all processes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from workbench.distributed import gather_ragged


@contextmanager
def evaluating(module: LightningModule) -> Iterator[None]:
    """Put a module into evaluation and inference mode, and back into the mode it was in."""
    training = module.training
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        module.train(training)


def encode_images(module: LightningModule, loader: DataLoader, *keys: str) -> list[Tensor]:
    """Return image features [N, D] and the given entries of the batches, gathered from all processes."""
    return _collect(
        loader, lambda batch: [module.encode_image_batch(batch["image"]), *(batch[k] for k in keys)], module
    )


def encode_pairs(module: LightningModule, loader: DataLoader, *keys: str) -> list[Tensor]:
    """Return image and text features [N, D] and the given entries of the batches, gathered from all processes."""

    def encode(batch: dict[str, Tensor]) -> list[Tensor]:
        image, text = module.encode_image_batch(batch["image"]), module.encode_text_batch(batch["text"])
        return [image, text, *(batch[key] for key in keys)]

    return _collect(loader, encode, module)


def _collect(loader: DataLoader, encode, module: LightningModule) -> list[Tensor]:
    parts: list[list[Tensor]] = []
    with evaluating(module):
        for batch in loader:
            batch = module.trainer.strategy.batch_to_device(batch)
            parts.append([part.float() if part.is_floating_point() else part for part in encode(batch)])
    return [gather_ragged(torch.cat(column)) for column in zip(*parts, strict=True)]
