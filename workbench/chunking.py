"""Batches larger than memory: encode in chunks, keep only the features, recompute each chunk in the backward pass.

With one loss over all features this is exact (Gao et al. 2021, arXiv 2101.06983, "GradCache"), costs one extra
forward pass, and leaves the optimizer step, clipping and gradient scaling to the trainer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def encode_in_chunks(
    encode: Callable[..., Tensor], *inputs: Tensor, chunk: int | None, module: nn.Module | None = None
) -> Tensor:
    """Encode `inputs` chunk by chunk under non-reentrant checkpointing.

    Random state is replayed in the recomputation, so dropout draws the same masks. Batch normalisation sees the
    statistics of a chunk, not of the batch, and counts each chunk once; towers without it, or with frozen statistics
    (`workbench.models.batch_norm`), are exact. Synchronised statistics are those of all processes' chunks.

    Args:
        encode: [b, ...] of each input -> [b, D].
        *inputs: [B, ...] each.
        chunk: rows encoded at a time; None, or at least B, encodes everything at once without checkpointing.
        module: the tower that `encode` runs, whose running statistics must not be updated twice.

    Returns:
        [B, D].
    """
    if chunk is None or chunk >= len(inputs[0]) or not torch.is_grad_enabled():
        return encode(*inputs)

    def contexts():
        return nullcontext(), (held_running_statistics(module) if module is not None else nullcontext())

    parts = zip(*(column.split(chunk) for column in inputs), strict=True)
    return torch.cat([checkpoint(encode, *part, use_reentrant=False, context_fn=contexts) for part in parts])


@contextmanager
def held_running_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch normalisation in `module` use the batch's statistics without counting them.

    By a momentum of 0 rather than by switching the statistics off: the recomputed graph must save the same tensors.
    """
    layers = [
        layer
        for layer in module.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training and layer.track_running_stats
    ]
    before = [(layer.momentum, layer.num_batches_tracked.clone()) for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, (momentum, batches) in zip(layers, before, strict=True):
            layer.momentum = momentum
            layer.num_batches_tracked.copy_(batches)
