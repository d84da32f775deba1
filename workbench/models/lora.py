"""LoRA: train a low-rank change of frozen linear maps (Hu et al. 2021, arXiv 2106.09685).

Beside a weight W [out, in] stand A [rank, in] and B [out, rank], and the layer computes W x + (alpha / rank) B A x.
B starts at 0, so the adapted model is at first the base, bit for bit. In the fused `in_proj_weight` queries, keys and
values have pairs of their own.

W keeps its name in the state dict, so what is not of the adapter is OpenAI's still; the adapter's names are
`<layer>.lora.A` and `.B`, in attention `attn.lora.q.A` and so on. The layers compute B (A x) beside W x, without the
product B A and without the gradient of W; whatever else reads an adapted `weight` or `in_proj_weight` gets the sum.

Not peft (0.21.2): it refuses this package's fused attention; given the bare parameter, it puts one pair over queries,
keys and values together and hides the layer's own methods; and it renames in the state dict what it wraps.
No dropout on A's input: its masks would depend on the number of processes and chunks.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.errors import UserError
from workbench.models.batch_norm import freeze_statistics
from workbench.models.layers import Attention, fused_projection
from workbench.optimization import ParameterRule
from workbench.patterns import compiled, pattern_for

DEFAULT_MATCH = r"(visual\.)?transformer\.|visual\.attnpool\.._proj\.|visual\.trunk\."
"""Attention and MLP of both towers, and the attention pooling of a ResNet. Of a timm backbone it also matches
convolutions, so it is refused there: each has names of its own."""
MARK = ".lora."
"""Part of the name of every tensor of an adapter, and of no other."""
_PARTS = "qkv"


@dataclass
class LoRA:
    """What of a model gets a low-rank adapter; the rest is frozen.

    Args:
        match: regular expressions, searched in a parameter's name from its start, such as
            `visual\\.transformer\\..*attn\\.`. Of what they match, weights of linear maps and of fused projections are
            adapted, and vectors (biases, gains) are passed over; the default is attention and MLP of both towers.
        parts: which of queries, keys and values, as in `qkv` (default) or `qv`, where they are matched.
        rank: of each pair; the change of a weight has at most this rank.
        alpha: the change is scaled by alpha / rank, so that another rank needs no other learning rate (section 4.1).
    """

    match: list[str] = field(default_factory=lambda: [DEFAULT_MATCH])
    parts: str = "qkv"
    rank: int = 8
    alpha: float = 16.0


class LowRank(nn.Module):
    """A [rank, in] and B [out, rank] of one weight [out, in]; A is drawn as PyTorch draws a linear map, B is 0."""

    def __init__(self, rows: int, columns: int, lora: LoRA, like: Tensor):
        super().__init__()
        options = {"device": like.device, "dtype": like.dtype}
        self.scale = lora.alpha / lora.rank
        # The paper's A is Gaussian; its authors' code, and CLIP-LoRA (Zanella & Ben Ayed 2024), draw it like this.
        bound = 1 / math.sqrt(columns)
        self.A = nn.Parameter(torch.empty(lora.rank, columns, **options).uniform_(-bound, bound))
        self.B = nn.Parameter(torch.zeros(rows, lora.rank, **options))

    def forward(self, x: Tensor) -> Tensor:
        """Return the change of the layer's output, [..., in] -> [..., out]."""
        return F.linear(self.scale * F.linear(x, self.A), self.B)

    def change(self) -> Tensor:
        """Return the change of the weight, [out, in]."""
        return self.scale * self.B @ self.A


class AdaptedLinear(nn.Linear):
    """A linear map with a `LowRank` in `lora`."""

    @property
    def weight(self) -> Tensor:
        """The adapted weight, for whatever does not call the layer."""
        return self._parameters["weight"] + self.lora.change()

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        return F.linear(x, self._parameters["weight"], self.bias) + self.lora(x)


class AdaptedAttention(Attention):
    """Attention with a `LowRank` for each adapted part, `q`, `k` or `v`, in `lora`."""

    @property
    def in_proj_weight(self) -> Tensor:
        """The adapted weight [3 W, W], for whatever does not call `project`."""
        base = self._parameters["in_proj_weight"]
        return base + torch.cat([self._change(part, base) for part in _PARTS])

    def _change(self, part: str, base: Tensor) -> Tensor:
        return self.lora[part].change() if part in self.lora else torch.zeros_like(base[: base.shape[1]])

    def project(self, x: Tensor, parts: str) -> tuple[Tensor, ...]:
        """Project as the base does, and add the low-rank changes: two thin products for all parts together."""
        projected = fused_projection(x, self._parameters["in_proj_weight"], self.in_proj_bias, parts)
        adapted = [self.lora[part] for part in parts if part in self.lora]
        if adapted:
            inner = adapted[0].scale * F.linear(x, torch.cat([low.A for low in adapted]))
            # Each part's rows see their own A alone; those of a part without one are 0.
            none = inner.new_zeros(x.shape[-1], 0)
            outer = torch.block_diag(*(self.lora[part].B if part in self.lora else none for part in parts))
            projected = projected + F.linear(inner, outer)
        return projected.chunk(len(parts), dim=-1)


_ADAPTED: dict[type[nn.Module], tuple[type[nn.Module], str]] = {
    nn.Linear: (AdaptedLinear, "weight"),
    Attention: (AdaptedAttention, "in_proj_weight"),
}
"""What can be adapted: what it becomes, and the weight that is meant."""


def add_lora(model: nn.Module, lora: LoRA) -> None:
    """Freeze a model and put adapters beside its weights, in place; what it computes stays the same to the last bit.

    Statistics of batch normalisation are frozen with it. A is drawn from torch's global random state.

    Args:
        model: a `CLIP`; on the meta device too.
        lora: what is adapted.

    Raises:
        UserError: a pattern is none, matches nothing, or what is no linear map; or a rank, an alpha or parts that make
            no sense. The model is as it was.
    """
    if set(lora.parts) - set(_PARTS) or len(set(lora.parts)) != len(lora.parts) or not lora.parts:
        raise UserError(f"lora.parts is {lora.parts!r}; give some of the letters q, k and v, such as qv.")
    if lora.rank < 1 or not 0 < lora.alpha < math.inf:
        raise UserError(f"lora.rank is {lora.rank} and lora.alpha {lora.alpha}; both must be above 0.")
    chosen = _chosen(model, lora)
    model.requires_grad_(False)
    freeze_statistics(model)
    for module in chosen.values():
        adapted, name = _ADAPTED[type(module)]
        weight = module._parameters[name]
        if adapted is AdaptedLinear:
            low = LowRank(*weight.shape, lora, weight)
        else:
            width = weight.shape[1]
            low = nn.ModuleDict({part: LowRank(width, width, lora, weight) for part in _PARTS if part in lora.parts})
        module.lora = low
        module.__class__ = adapted


def _chosen(model: nn.Module, lora: LoRA) -> dict[str, nn.Module]:
    """Return the layers to adapt, by the names of their weights, in the model's order."""
    weights = {
        f"{path}.{_ADAPTED[type(module)][1]}": module
        for path, module in model.named_modules()
        if type(module) in _ADAPTED
    }
    parameters = dict(model.named_parameters())
    left_out = tuple(f".{part}_proj.weight" for part in set(_PARTS) - set(lora.parts))
    hit: set[str] = set()
    for match in lora.match:
        pattern = pattern_for(match, list(parameters), "lora.match")
        # A vector has no rank to be low.
        found = [name for name, value in parameters.items() if pattern.match(name) and value.ndim > 1]
        for name in found:
            _refuse_unfit(match, name, parameters[name], name in weights, lora.rank)
        found = [name for name in found if not name.endswith(left_out)]
        if not found:
            raise UserError(f"lora.match: {match!r} matches no weight that lora.parts {lora.parts!r} leaves to adapt.")
        hit.update(found)
    if not hit:
        raise UserError("lora.match is empty, so there is nothing to train; leave it out for attention and MLP.")
    return {name: module for name, module in weights.items() if name in hit}


def _refuse_unfit(match: str, name: str, weight: Tensor, linear: bool, rank: int) -> None:
    if not linear:
        kind = "a convolution" if weight.ndim == 4 else "no weight of a linear map"
        hint = r"visual\.trunk\.blocks\..*\.attn\." if name.startswith("visual.trunk.") else r"(visual\.)?transformer\."
        raise UserError(
            f"lora.match: {match!r} matches {name}, {kind}; LoRA here is for linear maps and attention. Narrow the "
            f"pattern, as in {hint}"
        )
    if rank > min(weight.shape):
        raise UserError(
            f"lora.rank {rank} is more than {name} {tuple(weight.shape)} can have; typical ranks are 2 to 16."
        )


def open_parameters(module: nn.Module, rules: Sequence[ParameterRule]) -> None:
    """Let train what a table of rules gives a learning rate of its own, such as `logit_scale`, besides the adapter.

    For each frozen parameter the first matching row that sets `lr` decides, as in `parameter_groups`; it opens the
    parameter if its `lr` is above 0 and it matches nothing of the adapter: `visual\\.` sets the rate of the image
    tower's adapter and opens nothing.
    """
    adapter = [name for name, _ in module.named_parameters() if MARK in name]
    table = [(compiled(rule.match, "parameter_rules"), rule.lr) for rule in rules if rule.lr is not None]
    for name, parameter in module.named_parameters():
        pattern, lr = next(((pattern, lr) for pattern, lr in table if pattern.match(name)), (None, 0.0))
        if lr > 0 and not any(pattern.match(other) for other in adapter):
            parameter.requires_grad_(True)


@torch.no_grad()
def merge_lora(model: nn.Module) -> dict[str, Tensor]:
    """Add an adapter's change to the weights and take it off, in place; the model is plain again, and still frozen.

    Returns:
        The adapter, which `unmerge_lora` takes back out.
    """
    adapter = {name: value for name, value in model.state_dict().items() if MARK in name}
    for weight, low in _pairs(model):
        weight.copy_(_added(weight, low.A, low.B, low.scale))
    for module in model.modules():
        if isinstance(module, AdaptedLinear | AdaptedAttention):
            del module.lora
            module.__class__ = type(module).__base__
    return adapter


@torch.no_grad()
def unmerge_lora(model: nn.Module, lora: LoRA, adapter: Mapping[str, Tensor]) -> None:
    """Undo `merge_lora`, in place, up to the rounding of the weights' type.

    Args:
        model: merged.
        lora: the settings of the adapter.
        adapter: what `merge_lora` returned.

    Raises:
        UserError: see `add_lora`.
    """
    add_lora(model, lora)
    model.load_state_dict({**model.state_dict(), **adapter})
    for weight, low in _pairs(model):
        weight.copy_(_added(weight, low.A, low.B, -low.scale))


def _pairs(model: nn.Module) -> Iterator[tuple[Tensor, LowRank]]:
    """Yield each adapted weight, or part of one, with its adapter."""
    for module in model.modules():
        if isinstance(module, AdaptedLinear):
            yield module._parameters["weight"], module.lora
        elif isinstance(module, AdaptedAttention):
            rows = module._parameters["in_proj_weight"].chunk(3)
            yield from ((rows[_PARTS.index(part)], low) for part, low in module.lora.items())


def merged_state_dict(state_dict: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Add the adapter in a state dict to its weights; what is left has plain names.

    Raises:
        UserError: the adapter does not fit the weights.
    """
    found = {name: value for name, value in state_dict.items() if MARK not in name}
    for name, A in state_dict.items():
        layer, mark, rest = name.partition(MARK)
        if not mark or not name.endswith(".A"):
            continue
        part = rest.removesuffix("A").removesuffix(".")
        weight = f"{layer}.in_proj_weight" if part else f"{layer}.weight"
        B, base = state_dict.get(name.removesuffix("A") + "B"), found.get(weight)
        fits = B is not None and base is not None and {A.ndim, B.ndim, base.ndim} == {2}
        rows = list(base.chunk(3)) if fits and part else [base]
        place = {"": 0, "q": 0, "k": 1, "v": 2}.get(part)
        if (
            not fits
            or place is None
            or A.shape[0] != B.shape[1]
            or rows[place].shape != (len(B), A.shape[1])
            or not len(A)
        ):
            raise UserError(f"The adapter does not fit its weights: {name} has no place in {weight}.")
        rows[place] = _added(rows[place], A, B, alpha / len(A))
        found[weight] = torch.cat(rows)
    return found


def _added(weight: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """Add the change, in float64, so that the weight is rounded once."""
    return (weight.double() + scale * B.double() @ A.double()).to(weight.dtype)
