"""Whose statistics batch normalisation uses in training: those it has, those of a process's batch, or of all batches.

Each function changes the layers' class in place and nothing else: state-dict keys, parameters and what is computed in
evaluation mode stay as they are, and timm's layers with an activation of their own are changed alike.

Synchronised statistics are our own rather than `torch.nn.SyncBatchNorm`'s (2.14), which refuses tensors on the CPU,
where ours is compared with one process in float64, and which would leave the GPU's path to be another one than the
tested. Forward and backward pass are each one of torch's fused kernels and one collective of twice as many numbers as
there are channels; nothing is kept for the backward pass but the input. Not timed on a GPU yet.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from workbench import distributed
from workbench.errors import UserError

POLICIES = ("frozen", "batch", "synchronised")


def apply_policy(model: nn.Module, policy: str | None, default: str) -> str | None:
    """Make the batch normalisation of a model use the statistics that a policy says.

    Args:
        model: a `CLIP`, or any module.
        policy: one of `POLICIES`, or null for `default`.
        default: one of `POLICIES`.

    Returns:
        The policy in use; None where the model has no batch normalisation.

    Raises:
        UserError: an unknown policy, or one for a model without batch normalisation.
    """
    if policy is not None and policy not in POLICIES:
        raise UserError(f"batch_norm is {policy!r}; there are {', '.join(POLICIES)}, and null.")
    if not _layers(model):
        if policy is not None:
            raise UserError(
                f"batch_norm is {policy!r}, and the model has no batch normalisation: it is for ResNets. Leave it out."
            )
        return None
    chosen = policy or default
    if chosen == "frozen":
        freeze_statistics(model)
    elif chosen == "synchronised":
        synchronise(model)
    return chosen


def freeze_statistics(module: nn.Module) -> None:
    """Let batch normalisation use its running statistics and never change them, whatever `train()` is called.

    Its gains and biases train as before. Each picture's features then are a function of that picture alone, so chunks
    and processes do not change a gradient.
    """
    for layer in _layers(module):
        layer.__class__ = _mixed(_FrozenStatistics, type(layer))
        layer.eval()


def synchronise(module: nn.Module) -> None:
    """Let batch normalisation use the statistics of all processes' batches in training mode.

    On one process that is its own batch, bit for bit. The gradient is that of one process with the whole batch, as
    DDP's average over the processes; running statistics are those, too, and equal on every process.
    """
    for layer in _layers(module):
        layer.__class__ = _mixed(_Synchronised, type(layer))


def _layers(module: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


@cache
def _mixed(kind: type, layer: type[_BatchNorm]) -> type[_BatchNorm]:
    if issubclass(layer, kind):
        return layer
    return type(f"{kind.__name__.strip('_')}{layer.__name__}", (kind, layer), {})


class _FrozenStatistics:
    """Mixed into a layer: it stays in evaluation mode."""

    def train(self, mode: bool = True) -> nn.Module:
        """Leave the mode as it is."""
        return super().train(False)


class _Synchronised:
    """Mixed into a layer: in training mode its statistics are those of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, C, ...] over all but C; B may differ between processes."""
        if not (self.training and distributed.is_distributed()):
            return super().forward(x)
        x = _synchronised(self, x)
        for name in ("drop", "act"):  # what timm's BatchNormAct2d goes on with
            x = getattr(self, name, nn.Identity())(x)
        return x


@torch.compiler.disable  # collectives would break the graph inside the layer; so it breaks around it
def _synchronised(layer: _BatchNorm, x: Tensor) -> Tensor:
    with torch.no_grad():
        mean, var, count = _statistics(x)
        if layer.track_running_stats:
            layer.num_batches_tracked.add_(1)
            # 0 in a recomputation, see `workbench.chunking.held_running_statistics`.
            momentum = 1 / layer.num_batches_tracked if layer.momentum is None else layer.momentum
            for running, found in ((layer.running_mean, mean), (layer.running_var, var * count / (count - 1))):
                running.copy_((1 - momentum) * running + momentum * found)
    weight = torch.ones_like(mean) if layer.weight is None else layer.weight
    return _Normalise.apply(x, weight, layer.bias, mean, var, count, layer.eps)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean [C], biased variance [C] and number of values [1] of all processes' x [B, C, ...]."""
    # From each process's own mean and variance (Chan et al. 1979): sums of squares lose what a large mean hides.
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    # batch_norm's own kernel; torch.var_mean takes fifty times as long on a CPU for NHWC.
    own_mean, own_var = torch.batch_norm_update_stats(exact, None, None, 0.0)
    own_count = own_mean.new_full((1,), x.numel() // x.shape[1])
    parts = distributed.gather_features(torch.cat([own_mean, own_var, own_count])[None])
    means, variances, counts = parts.split([x.shape[1], x.shape[1], 1], dim=1)
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    return mean, (counts * (variances + (means - mean) ** 2)).sum(0) / count, count


class _Normalise(torch.autograd.Function):
    """Batch normalisation by statistics of all processes, of which each process's input is a part."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, mean: Tensor, var: Tensor, count: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, count = ctx.saved_tensors
        # As if the statistics were constants; the other two are the sums of dy x^ and of dy over this process's values.
        to_x, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        # Every value also moves the statistics, and with them the values of every process:
        # dx = weight / deviation * (dy - mean(dy) - x^ mean(dy x^)), the means over all processes.
        through_var, through_mean = distributed.sum_over_processes(torch.stack([to_weight, to_bias])) / count
        scale = weight * (var + ctx.eps).rsqrt()
        to_x -= F.batch_norm(x, mean, var, scale * through_var, scale * through_mean, False, 0.0, ctx.eps)
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]
        return to_x, to_weight if needs_weight else None, to_bias if needs_bias else None, None, None, None, None
