"""Initialisation: named presets, each a table from tensor family to distribution.

`openai` is that of the paper's authors (openai/CLIP @ d05afc4, clip/model.py `initialize_parameters`; the text
tower follows GPT-2's scaling by depth, Radford et al. 2019). The others exist to be compared with it.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workbench.errors import UserError


@dataclass(frozen=True)
class Context:
    """What a distribution may depend on besides the tensor's shape: the width and depth of its transformer."""

    width: int
    layers: int
    fan_in: int


Rule = Callable[[Tensor, Context], object]


def normal(std: Callable[[Context], float]) -> Rule:
    """Return a rule that draws from N(0, std(context))."""
    return lambda tensor, context: nn.init.normal_(tensor, std=std(context))


def constant(value: float) -> Rule:
    """Return a rule that fills."""
    return lambda tensor, context: nn.init.constant_(tensor, value)


def _kaiming(tensor: Tensor, context: Context) -> None:
    """PyTorch's default for the weight and bias of Linear and Conv2d: uniform within 1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(context.fan_in)
    nn.init.uniform_(tensor, -bound, bound)


def _xavier(tensor: Tensor, context: Context) -> None:
    nn.init.xavier_uniform_(tensor)


def _truncated(tensor: Tensor, context: Context) -> None:
    nn.init.trunc_normal_(tensor, std=0.02, a=-0.04, b=0.04)


FAMILIES: dict[str, str] = {
    "logit_scale": r"logit_(scale|bias)",
    "token_embedding": r"token_embedding\.weight",
    "text_position": r"positional_embedding",
    "text_attention_in": r"transformer\..*\.in_proj_weight",
    "text_mlp_in": r"transformer\..*\.c_fc\.weight",
    "text_residual_out": r"transformer\..*\.(out_proj|c_proj)\.weight",
    "text_projection": r"text_projection",
    "vit_patch": r"visual\.conv1\.weight@vit",
    "vit_embeddings": r"visual\.(class|positional)_embedding",
    "vit_attention_in": r"visual\.transformer\..*\.in_proj_weight",
    "vit_mlp_in": r"visual\.transformer\..*\.c_fc\.weight",
    "vit_residual_out": r"visual\.transformer\..*\.(out_proj|c_proj)\.weight",
    "vit_projection": r"visual\.proj",
    "resnet_convs": r"visual\.(conv[123]|layer\d.*\.conv\d|layer\d.*\.downsample\.0)\.weight",
    "resnet_residual_norms": r"visual\.layer\d+\.\d+\.bn3\.weight",
    "attention_pool": r"visual\.attnpool\.._proj\.weight",
    "attention_pool_position": r"visual\.attnpool\.positional_embedding",
    "norm_gains": r".*(ln_\w+|bn\d|downsample\.1)\.weight",
    "norm_biases": r".*(ln_\w+|bn\d|downsample\.1)\.bias",
    "attention_biases": r".*(in_proj_bias|out_proj\.bias)",
    "linear_biases": r".*(c_fc|._proj)\.bias",
    "timm_projection": r"visual\.proj\.weight",
}
"""Tensor family -> pattern of OpenAI's names, the first full match; `visual.trunk.*` of timm keeps timm's own."""

_PYTORCH: dict[str, Rule] = {
    "logit_scale": lambda tensor, context: None,  # from temperature_init, and 0, whatever the preset
    "token_embedding": normal(lambda c: 1.0),
    # PyTorch has no default for bare parameters: positions and class token follow nn.Embedding, projections nn.Linear.
    "text_position": normal(lambda c: 1.0),
    "text_attention_in": _xavier,
    "text_mlp_in": _kaiming,
    "text_residual_out": _kaiming,
    "text_projection": _kaiming,
    "vit_patch": _kaiming,
    "vit_embeddings": normal(lambda c: 1.0),
    "vit_attention_in": _xavier,
    "vit_mlp_in": _kaiming,
    "vit_residual_out": _kaiming,
    "vit_projection": _kaiming,
    "resnet_convs": _kaiming,
    "resnet_residual_norms": constant(1.0),
    "attention_pool": _kaiming,
    "attention_pool_position": normal(lambda c: 1.0),
    "norm_gains": constant(1.0),
    "norm_biases": constant(0.0),
    "attention_biases": constant(0.0),
    "linear_biases": _kaiming,
    "timm_projection": _kaiming,
}

_OPENAI: dict[str, Rule] = _PYTORCH | {
    "token_embedding": normal(lambda c: 0.02),
    "text_position": normal(lambda c: 0.01),
    "text_attention_in": normal(lambda c: c.width**-0.5),
    "text_mlp_in": normal(lambda c: (2 * c.width) ** -0.5),
    "text_residual_out": normal(lambda c: c.width**-0.5 * (2 * c.layers) ** -0.5),
    "text_projection": normal(lambda c: c.width**-0.5),
    "vit_embeddings": normal(lambda c: c.width**-0.5),
    "vit_projection": normal(lambda c: c.width**-0.5),
    "resnet_residual_norms": constant(0.0),
    "attention_pool": normal(lambda c: c.fan_in**-0.5),
    "attention_pool_position": normal(lambda c: c.fan_in**-0.5),
}

_MATRICES = (
    *("token_embedding", "text_position", "text_attention_in", "text_mlp_in", "text_residual_out", "text_projection"),
    *("vit_patch", "vit_embeddings", "vit_attention_in", "vit_mlp_in", "vit_residual_out", "vit_projection"),
    *("resnet_convs", "attention_pool", "attention_pool_position", "timm_projection"),
)

PRESETS: dict[str, dict[str, Rule]] = {
    "openai": _OPENAI,
    "pytorch": _PYTORCH,
    "truncated_normal": _PYTORCH | dict.fromkeys(_MATRICES, _truncated) | {"linear_biases": constant(0.0)},
    "no_depth_scaling": _OPENAI | {"text_residual_out": normal(lambda c: c.width**-0.5)},
    "zero_residual": _OPENAI | {"text_residual_out": constant(0.0), "vit_residual_out": constant(0.0)},
}
"""
openai: ViT blocks and convolutions at PyTorch's defaults, the last BatchNorm gain of each
    residual block 0, everything else normal.
pytorch: PyTorch's defaults throughout, gains of residual blocks 1.
truncated_normal: every weight and embedding N(0, 0.02) cut at two deviations (BERT, ViT), biases 0.
no_depth_scaling: openai without the text tower's factor (2 layers)^-0.5.
zero_residual: openai with both transformers' residual output projections 0, so each block starts as the identity.
"""


def family(name: str, vit: bool) -> str | None:
    """Return the family of a parameter, None for those of a timm backbone."""
    candidate = f"{name}@vit" if vit and name == "visual.conv1.weight" else name
    return next((family for family, pattern in FAMILIES.items() if re.fullmatch(pattern, candidate)), None)


def rules(init: str | Mapping[str, str]) -> dict[str, Rule]:
    """Return family -> rule for a preset, or for a table family -> preset whose `*` names the rest (`openai`).

    Raises:
        UserError: an unknown preset or family.
    """
    table = {"*": init} if isinstance(init, str) else {"*": "openai", **init}
    for preset in table.values():
        if preset not in PRESETS:
            raise UserError(f"init preset {preset!r} is unknown; there are {', '.join(PRESETS)}.")
    for key in table:
        if key != "*" and key not in FAMILIES:
            raise UserError(f"init has no tensor family {key!r}; there are {', '.join(FAMILIES)}, and * for the rest.")
    return {key: PRESETS[table.get(key, table["*"])][key] for key in FAMILIES}


@torch.no_grad()
def initialize(model: nn.Module, init: str | Mapping[str, str] = "openai", temperature_init: float = 0.07) -> None:
    """Draw every parameter of a CLIP anew from torch's global random state.

    Args:
        model: a `CLIP`.
        init: a name of `PRESETS`, or a table family -> preset.
        temperature_init: logit_scale becomes ln(1 / temperature_init).

    Raises:
        UserError: an unknown preset or family, or a temperature that is not above 0.
    """
    if not temperature_init > 0:
        raise UserError(f"temperature_init is {temperature_init}; it must be above 0 (the paper's is 0.07).")
    chosen = rules(init)
    vit = hasattr(model.visual, "class_embedding")
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        kind = family(name, vit)
        if kind is not None:
            chosen[kind](parameter, _context(name, parameters))
        elif not name.startswith("visual.trunk."):
            raise AssertionError(f"{name} belongs to no family")
    nn.init.constant_(model.logit_scale, math.log(1 / temperature_init))


def _context(name: str, parameters: Mapping[str, Tensor]) -> Context:
    tower = "visual." if name.startswith("visual.") else ""
    blocks = {
        match[1]
        for key in parameters
        if (match := re.match(rf"{re.escape(tower)}transformer\.resblocks\.(\d+)\.", key))
    }
    position = parameters.get(f"{tower}positional_embedding")
    # A bias is drawn within the bound of its layer's weight.
    weight = parameters[name.removesuffix("bias") + "weight"] if name.endswith(".bias") else parameters[name]
    if name.endswith(("text_projection", "visual.proj")):
        fan_in = weight.shape[0]  # stored [width, embed_dim]
    else:
        fan_in = weight[0].numel() if weight.ndim > 1 else weight.numel()
    return Context(position.shape[-1] if position is not None else 0, len(blocks), fan_in)
