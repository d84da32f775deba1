"""Parameter groups from one ordered pattern table, and learning-rate schedules."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from workbench.errors import UserError
from workbench.layer_decay import layer_multipliers
from workbench.patterns import pattern_for


@dataclass
class ParameterRule:
    """One row of the pattern table that decides freezing, learning rates and weight decay.

    Rows are read in order; for each parameter the first matching row that sets `lr` decides its learning rate,
    and the first that sets `weight_decay` its decay. What no row decides keeps the defaults: the optimizer's
    learning rate, and the paper's rule for decay (`decays`).

    Args:
        match: regular expression, searched in the parameter's name from its start (`visual\\.`,
            `.*\\.ln_`, `logit_scale`). Names are those of OpenAI's state dict.
        lr: multiplier of the optimizer's learning rate; 0 freezes.
        weight_decay: the decay itself, not a multiplier.
    """

    match: str
    lr: float | None = None
    weight_decay: float | None = None


def decays(parameter: nn.Parameter) -> bool:
    """Tell whether weight decay applies by the paper's rule: all weights that are not gains or biases.

    Gains, biases and `logit_scale` are the tensors of fewer than two dimensions (Radford et al. 2021,
    section 2.5); the class embedding, a vector, goes with them as in OpenCLIP.
    """
    return parameter.ndim >= 2


@dataclass(frozen=True)
class _Setting:
    lr: float
    weight_decay: float | None


def parameter_groups(
    model: nn.Module, weight_decay: float, rules: Sequence[ParameterRule] = (), layer_decay: float = 1.0
) -> list[dict[str, object]]:
    """Freeze what the rules freeze and group the rest for an optimizer.

    Frozen parameters get `requires_grad = False` and are in no group, so they take no optimizer state.

    Args:
        model: its named parameters are matched.
        weight_decay: of the parameters for which `decays` holds and no rule says otherwise.
        rules: the ordered pattern table.
        layer_decay: see `layer_multipliers`; times what the rules say.

    Returns:
        Groups with `params`, `names`, `weight_decay` and `lr_multiplier`, in a stable order.

    Raises:
        UserError: a rule matches nothing or is no regular expression, everything is frozen, or what trains is in half
            precision.
    """
    names = [name for name, _ in model.named_parameters()]
    patterns = [pattern_for(rule.match, names, "parameter_rules") for rule in rules]
    layers = layer_multipliers(names, layer_decay) if layer_decay != 1 else dict.fromkeys(names, 1.0)
    groups: dict[_Setting, dict] = {}
    for name, parameter in model.named_parameters():
        matching = [rule for rule, pattern in zip(rules, patterns, strict=True) if pattern.match(name)]
        lr = next((rule.lr for rule in matching if rule.lr is not None), 1.0)
        # A parameter that the model itself holds fixed (a scheduled temperature) stays fixed.
        if lr == 0.0 or not parameter.requires_grad:
            parameter.requires_grad_(False)
            continue
        lr *= layers[name]
        decay = next((rule.weight_decay for rule in matching if rule.weight_decay is not None), None)
        if decay is None:
            decay = weight_decay if decays(parameter) else 0.0
        group = groups.setdefault(
            _Setting(lr, decay), {"params": [], "names": [], "weight_decay": decay, "lr_multiplier": lr}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise UserError(
            "parameter_rules freeze every parameter, so there is nothing to train; "
            "let at least one row keep an `lr` above 0."
        )
    _refuse_half(groups.values())
    return list(groups.values())


def _refuse_half(groups: Iterable[dict]) -> None:
    named = [pair for group in groups for pair in zip(group["names"], group["params"], strict=True)]
    half = [name for name, parameter in named if parameter.dtype in (torch.float16, torch.bfloat16)]
    if half:
        raise UserError(
            f"{len(half)} parameters to train are in half precision ({', '.join(half[:3])}): Adam's epsilon and small "
            "steps vanish there, and fp16 weights are NaN after one step. Train fp32 weights and compute in half: "
            "--trainer.precision bf16-mixed or 16-mixed; in Python model.float()."
        )


def group_table(model: nn.Module, groups: Sequence[dict]) -> str:
    """Say in a few lines what is trained how: per group its tensors, elements, learning rate, decay, examples."""
    lines = [f"{'tensors':>8} {'parameters':>12} {'lr':>10} {'decay':>7}  for example"]

    def row(parameters: list[nn.Parameter], names: list[str], lr: str, decay: str) -> str:
        count = sum(parameter.numel() for parameter in parameters)
        examples = ", ".join(names[:: max(1, len(names) // 3)][:3])
        return f"{len(parameters):>8} {count:>12,} {lr:>10} {decay:>7}  {examples}"

    for group in groups:
        lines.append(row(group["params"], group["names"], f"{group['lr']:.3g}", f"{group['weight_decay']:.3g}"))
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    if frozen:
        lines.append(row(list(frozen.values()), list(frozen), "frozen", "-"))
    return "\n".join(lines)


def warmup_steps(warmup: int | float, total_steps: int) -> int:
    """Turn `warmup`, steps (an int) or a fraction of the run (a float below 1), into steps.

    Raises:
        UserError: it is negative, or the run is over before the warm-up is.
    """
    steps = round(warmup * total_steps) if isinstance(warmup, float) and warmup < 1 else int(warmup)
    if steps < 0:
        raise UserError(f"warmup is {warmup}; give steps (0 or more) or a fraction of the run below 1.")
    if steps and steps >= total_steps:
        raise UserError(
            f"The warm-up of {steps} steps is not shorter than the run of {total_steps} steps, so the learning "
            "rate would never be reached; lower `warmup` (a fraction such as 0.1 also works) or train longer."
        )
    return steps


SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "constant": lambda progress: 1.0,
}
"""Multiplier of the learning rate after the warm-up, as a function of progress in [0, 1]."""


def schedule(name: str, warmup: int, total_steps: int) -> Callable[[int], float]:
    """Return step -> multiplier: linear warm-up over `warmup` steps, then `name` down to the last step.

    The first step already trains, with 1 / warmup of the learning rate (OpenCLIP's convention; the paper's
    section 2.5 has the cosine).
    """
    if name not in SCHEDULES:
        raise UserError(f"schedule {name!r} is unknown; choose one of {', '.join(SCHEDULES)}.")
    decay = SCHEDULES[name]

    def multiplier(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return decay(min(1.0, (step - warmup) / max(1, total_steps - warmup)))

    return multiplier


def use_fused(optimizer: torch.optim.Optimizer) -> None:
    """Switch Adam and AdamW to their fused kernels where every parameter allows it (CPU, CUDA; floating point).

    Set per group rather than in the constructor: the constructor's flag also declares the optimizer able to
    unscale gradients itself, and Lightning then refuses to clip them under fp16.
    """
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        return
    for group in optimizer.param_groups:
        explicit = any(group.get(flag) for flag in ("foreach", "capturable", "differentiable"))
        supported = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in group["params"])
        if group.get("fused") is None and supported and not explicit:
            group["fused"] = True
