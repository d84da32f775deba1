"""Encode a split with the model as it stands, over all processes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from workbench.evaluation import encoding


@contextmanager
def evaluating(module: LightningModule) -> Iterator[None]:
    """Put a module into evaluation and inference mode, and each of its parts back into the mode that it was in."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for part in training:  # not module.train(), which would wake those that are held in evaluation mode
            part.training = True


def encode_images(module: LightningModule, loader: DataLoader, *keys: str) -> list[Tensor]:
    """Return image features [N, D] and the given entries of the batches, gathered from all processes."""
    with evaluating(module):
        return encoding.encode_images(module, loader, *keys)


def encode_pairs(module: LightningModule, loader: DataLoader, *keys: str) -> list[Tensor]:
    """Return image and text features [N, D] and the given entries of the batches, gathered from all processes."""
    with evaluating(module):
        return encoding.encode_pairs(module, loader, *keys)
