"""Encode what a datamodule's loaders give, inside a Trainer or without one.

Legend: N rows over all processes, D embed_dim.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from workbench.distributed import gather_ragged
from workbench.evaluation.zero_shot import classifier
from workbench.models import CLIP
from workbench.preprocessing import normalize
from workbench.tokenizer import tokenize, trim

Batch = dict[str, Tensor]


class Encoder(Protocol):
    """What encodes batches: a task, which does it in its Trainer's precision, or a `ModelEncoder`."""

    @property
    def device(self) -> torch.device:
        """Where batches have to be."""

    def encode_image_batch(self, images: Tensor) -> Tensor:
        """Encode uint8 pixels [B, 3, S, S]; un-normalised [B, D]."""

    def encode_text_batch(self, tokens: Tensor) -> Tensor:
        """Encode tokens [B, L]; un-normalised [B, D]."""


class ModelEncoder:
    """A model without a Trainer: in evaluation mode, in the type of its weights, where they are."""

    def __init__(self, model: CLIP):
        self.model = model.eval()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.logit_scale.device

    def encode_image_batch(self, images: Tensor) -> Tensor:
        """Encode uint8 pixels [B, 3, S, S]; un-normalised [B, D]."""
        architecture = self.model.architecture
        return self.model.encode_image(normalize(images, architecture.mean, architecture.std))

    def encode_text_batch(self, tokens: Tensor) -> Tensor:
        """Encode tokens [B, L]; un-normalised [B, D]."""
        return self.model.encode_text(tokens)


def encode_images(encoder: Encoder, batches: Iterable[Batch], *keys: str) -> list[Tensor]:
    """Return image features [N, D] in fp32 and the given entries of the batches, gathered from all processes."""
    return _collect(encoder, batches, keys, lambda batch: [encoder.encode_image_batch(batch["image"])], ("image",))


def encode_pairs(encoder: Encoder, batches: Iterable[Batch], *keys: str) -> list[Tensor]:
    """Return image and text features [N, D] in fp32 and the given entries, gathered from all processes."""

    def encode(batch: Batch) -> list[Tensor]:
        return [encoder.encode_image_batch(batch["image"]), encoder.encode_text_batch(batch["text"])]

    return _collect(encoder, batches, keys, encode, ("image", "text"))


@torch.inference_mode()
def class_vectors(
    encoder: Encoder, class_names: Sequence[str], templates: Sequence[str], context_length: int
) -> Tensor:
    """Return one normalised vector for each class, [C, D]; see `zero_shot.classifier`."""

    def encode(texts: list[str]) -> Tensor:
        return encoder.encode_text_batch(trim(tokenize(texts, context_length, truncate=True)).to(encoder.device))

    return classifier(encode, class_names, templates)


@torch.inference_mode()
def _collect(
    encoder: Encoder,
    batches: Iterable[Batch],
    keys: Sequence[str],
    encode: Callable[[Batch], list[Tensor]],
    inputs: Sequence[str],
) -> list[Tensor]:
    parts: list[list[Tensor]] = []
    for batch in batches:
        moved = {key: batch[key].to(encoder.device, non_blocking=True) for key in (*inputs, *keys)}
        parts.append([part.float() for part in encode(moved)] + [moved[key] for key in keys])
    return [gather_ragged(torch.cat(column)) for column in zip(*parts, strict=True)]
