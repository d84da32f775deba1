"""Weights that have gone too far from where they started, moved back along the straight line between."""

from collections.abc import Callable

from torch import Tensor, nn

from workbench.distributed import broadcast_object
from workbench.interpolation import interpolate_into, snapshot, straightened

_LEAST_ALPHA = 2**-10


def starting_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy on the CPU of what training changes: trained parameters and buffers, such as running means."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in snapshot(model).items() if name not in frozen}


def hold_back(model: nn.Module, start: dict[str, Tensor], within: Callable[[], bool]) -> float:
    """Replace the weights by start + alpha (now - start), as WiSE-FT does (arXiv 2109.01903); return alpha.

    Alpha is halved, from 1/2 down to 1/1024 and then 0, until `within()` says of the model as it stands that it will
    do. On several processes the result is the same on all: their parameters are, and of buffers, which each has of its
    own under DDP, the first one's are taken. Of LoRA's factors B moves, so that what they add moves straight.

    Args:
        model: as it stands.
        start: of `starting_weights`.
        within: measures the model; the same on all processes.
    """
    own = snapshot(model)
    now = own | broadcast_object({name: own[name] for name, _ in model.named_buffers() if name in own})
    start, alpha = straightened(now | start, now), 1.0
    while alpha > 0:
        alpha = alpha / 2 if alpha > _LEAST_ALPHA else 0.0
        interpolate_into(model, start, now, alpha)
        if within():
            break
    return alpha
