"""Proof on the machine at hand that chunks and processes do not change the gradient.

`1 process == chunked == 2 processes == 2 processes chunked`, for both towers and for the temperature. Averaging
the gradients of per-process losses, or of per-chunk losses, does not have this property by itself: it depends on
how features are gathered and on how often the loss is counted.
"""

import math
import os
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from workbench import objectives
from workbench.chunking import encode_in_chunks
from workbench.distributed import rank, world_size
from workbench.models import CLIP, create_model
from workbench.models import architecture as describe
from workbench.models.architectures import ViTConfig
from workbench.models.batch_norm import freeze_statistics
from workbench.objectives import gather_pairs

_TIMEOUT = timedelta(minutes=2)
"""Where processes cannot reach each other, say so instead of waiting for half an hour."""
_PATCH_DROPOUT = 0.25
PARTS = ("image tower", "text tower", "logit_scale")
LOSSES = ("contrastive", "multi_positive", "sigmoid", "distillation")


class ContrastiveStep(nn.Module):
    """One training step's forward pass as a module, so that DDP can wrap it.

    Args:
        clip: the model.
        chunk: pairs encoded at a time, None for all.
        loss: one of `LOSSES`; distillation is of the pixels themselves.
    """

    def __init__(self, clip: CLIP, chunk: int | None = None, loss: str = "contrastive"):
        super().__init__()
        self.clip, self.chunk, self.loss = clip, chunk, loss

    def forward(self, images: Tensor, tokens: Tensor, groups: Tensor, *patches: Tensor) -> Tensor:
        """Return the loss of this process's images [B, 3, S, S], tokens [B, L], groups, and a ViT's patches."""
        visual = self.clip.visual
        image = encode_in_chunks(self.clip.encode_image, images, *patches, chunk=self.chunk, module=visual)
        text = encode_in_chunks(self.clip.encode_text, tokens, chunk=self.chunk)
        pairs = gather_pairs(image, text, groups if self.loss in ("multi_positive", "sigmoid") else None)
        scale = self.clip.logit_scale.exp()
        if self.loss == "sigmoid":
            return objectives.sigmoid(pairs, scale, scale.new_tensor(-math.log(len(pairs.everyone[0]) - 1)))
        if self.loss == "distillation":
            teacher = gather_pairs(images.flatten(1)[:, :64], images.flatten(1)[:, -64:])
            return objectives.logit_distillation(pairs, scale, teacher, scale.detach())
        return objectives.softmax(pairs, scale)


def example_batch(clip: CLIP, pairs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw normalised images [pairs, 3, S, S] and tokens [pairs, L] of mixed lengths."""
    generator = torch.Generator().manual_seed(seed)
    architecture = clip.architecture
    size, length = architecture.image_size, min(16, architecture.context_length)
    images = torch.randn(pairs, 3, size, size, generator=generator)
    tokens = torch.zeros(pairs, length, dtype=torch.int32)
    for row in range(pairs):
        words = 1 + row % (length - 2)
        tokens[row, 0] = architecture.vocab_size - 2
        tokens[row, 1 : 1 + words] = torch.randint(1, architecture.vocab_size - 2, (words,), generator=generator)
        tokens[row, 1 + words] = architecture.vocab_size - 1
    return images, tokens


def gradients(architecture: str, pairs: int, chunk: int | None, loss: str = "contrastive") -> dict[str, Tensor]:
    """Return the gradient of each of `PARTS`, flattened, of this process's share of `pairs` example pairs.

    Three pairs in a row have a group. Within a process group the shares are consecutive and DDP averages the gradients.
    A ViT drops a quarter of the patches, the same of each picture whoever encodes it; a ResNet has frozen statistics.
    """
    torch.manual_seed(0)
    vit = isinstance(describe(architecture).vision, ViTConfig)
    # OpenAI's last gain of a residual block is 0, behind which no gradient would be compared.
    options = {"patch_dropout": _PATCH_DROPOUT} if vit else {"init": "pytorch"}
    clip = create_model(architecture, **options)
    freeze_statistics(clip.visual)
    images, tokens = example_batch(clip, pairs)
    patches = [clip.visual.draw_patches(pairs, torch.Generator().manual_seed(1))] if vit else []
    share = pairs // world_size()
    rows = slice(rank() * share, (rank() + 1) * share)
    groups = torch.arange(pairs) // 3
    step: nn.Module = ContrastiveStep(clip, chunk, loss)
    if world_size() > 1:
        step = DistributedDataParallel(step)
    step(images[rows], tokens[rows], groups[rows], *(each[rows] for each in patches)).backward()
    parts: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    for name, parameter in clip.named_parameters():
        part = PARTS[0] if name.startswith("visual.") else PARTS[2] if name == "logit_scale" else PARTS[1]
        parts[part].append(parameter.grad.flatten())
    return {part: torch.cat(values) for part, values in parts.items()}


def relative_errors(
    architecture: str = "tiny-vit", pairs: int = 16, processes: int = 2, loss: str = "contrastive"
) -> dict[str, dict[str, float]]:
    """Compare every way of computing the gradient with the plain one, in fp32 on the CPU.

    Args:
        architecture: of a ViT or a ResNet.
        pairs: of the whole batch; a multiple of 2 x `processes`.
        processes: of the distributed ways (gloo).
        loss: one of `LOSSES`.

    Returns:
        way -> part -> ||g - g_plain|| / ||g_plain||.
    """
    plain = gradients(architecture, pairs, None, loss)
    chunk = pairs // (2 * processes)
    ways = {"chunked": gradients(architecture, pairs, chunk, loss)}
    whole, chunked = _in_processes(architecture, pairs, (None, chunk), processes, loss)
    ways |= {f"{processes} processes": whole, f"{processes} processes, chunked": chunked}
    return {
        way: {part: float((found[part] - plain[part]).norm() / plain[part].norm()) for part in PARTS}
        for way, found in ways.items()
    }


def _in_processes(
    architecture: str, pairs: int, chunks: tuple[int | None, ...], processes: int, loss: str
) -> list[dict[str, Tensor]]:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, (architecture, pairs, chunks, processes, loss, folder), nprocs=processes)
        return torch.load(Path(folder, "gradients.pt"), weights_only=True)


def _worker(
    rank: int, architecture: str, pairs: int, chunks: tuple[int | None, ...], processes: int, loss: str, folder: str
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=processes,
        timeout=_TIMEOUT,
    )
    try:
        found = [gradients(architecture, pairs, chunk, loss) for chunk in chunks]
        if rank == 0:
            torch.save(found, Path(folder, "gradients.pt"))
        dist.barrier()  # with some releases of torch, who leaves first lets the last wait for ever
    finally:
        dist.destroy_process_group()
    # Not through the interpreter's end, where what gloo's threads still hold now and then aborts the process
    # (pytorch #179291).
    os._exit(0)
