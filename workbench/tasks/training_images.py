"""Encode a training batch's pictures: in chunks, and with patches left out, whatever is done with the features."""

import os

import torch
from torch import Tensor

from workbench import distributed
from workbench.chunking import encode_in_chunks
from workbench.randomness import mixed_seed
from workbench.tasks.training import TrainingTask


def encode_training_images(task: TrainingTask, images: Tensor, batch_idx: int) -> Tensor:
    """Encode this process's pictures in chunks of the task's `encode_chunk`; un-normalised [B, embed_dim].

    Args:
        task: with `encode_chunk` among its arguments.
        images: uint8 [B, 3, S, S].
        batch_idx: of the epoch.
    """

    def encode(images: Tensor, *options: Tensor) -> Tensor:
        return task.clip.encode_image(task.normalize(images), *options)

    options = [_patches(task, len(images), batch_idx)] if task.hparams.patch_dropout else []
    return encode_in_chunks(encode, images, *options, chunk=task.hparams.encode_chunk, module=task.clip.visual)


def _patches(task: TrainingTask, pictures: int, batch_idx: int) -> Tensor:
    """Draw which patches of this process's pictures stay, from (seed, epoch, batch) for those of all processes.

    So neither their number nor a resumption changes what is dropped.
    """
    seed = mixed_seed(int(os.environ.get("PL_GLOBAL_SEED", 0)), task.current_epoch, batch_idx)
    generator = torch.Generator(task.device).manual_seed(seed)
    patches = task.clip.visual.draw_patches(pictures * distributed.world_size(), generator)
    return patches[distributed.rank() * pictures :][:pictures]
