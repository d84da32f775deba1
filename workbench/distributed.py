"""Every collective of the project. All are the identity when no process group exists."""

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
# Newer torch deprecates the older name.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def is_distributed() -> bool:
    """Whether a process group of more than one process exists."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Return this process's number, 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


class _GatherFeatures(torch.autograd.Function):
    """all_gather whose backward sums each row's gradient over the processes that used it.

    Our own, since torch's differentiable all_gather changed its name and module three times between 2.6 and
    2.14, and the oldest raises under newer releases.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:  # [B, D] -> [world * B, D]
        gathered = features.new_empty(world_size() * features.shape[0], *features.shape[1:])
        _all_gather(gathered, features.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # [world * B, D] -> [B, D]
        # all_reduce and slice rather than reduce_scatter, which gloo lacks in older releases; a few MB at most.
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[rank()]


def gather_features(features: Tensor) -> Tensor:
    """Concatenate the features of all processes in rank order, with gradient.

    Args:
        features: [B, D], the same B on every process.

    Returns:
        [world * B, D]; `features` itself without a process group. The gradient that reaches `features` is the
        sum over processes, so that DDP's average is the gradient of the mean of the processes' losses.
    """
    return _GatherFeatures.apply(features) if is_distributed() else features


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the sum over processes of a tensor that has the same shape on each, without gradient."""
    if not is_distributed():
        return values.detach()
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


def gather_ragged(values: Tensor) -> Tensor:
    """Concatenate tensors whose first dimension differs between processes, in rank order, without gradient.

    Args:
        values: [B_rank, ...]; B_rank may be 0 on some processes.

    Returns:
        [sum of B_rank, ...] on every process.
    """
    if not is_distributed():
        return values.detach()
    sizes = values.new_empty(world_size(), dtype=torch.long)
    _all_gather(sizes, torch.tensor([len(values)], device=values.device))
    longest = int(sizes.max())
    padded = values.new_zeros(longest, *values.shape[1:])
    padded[: len(values)] = values.detach()
    gathered = values.new_empty(world_size() * longest, *values.shape[1:])
    _all_gather(gathered, padded)
    return torch.cat(
        [part[:size] for part, size in zip(gathered.split(longest), sizes.tolist(), strict=True)]
        if longest
        else [gathered]
    )


def broadcast_object(value: T) -> T:
    """Return process 0's `value` (picklable) on every process."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: T) -> list[T]:
    """Return every process's `value` (picklable, small), in rank order."""
    if not is_distributed():
        return [value]
    found: list[T | None] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found
