"""Half precision by OpenAI's rule (openai/CLIP @ d05afc4, clip/model.py, convert_weights)."""

import copy

import torch
from torch import nn

from workbench.models import CLIP
from workbench.models.layers import Attention


def to_half(model: CLIP) -> CLIP:
    """Turn convolutions, linear maps, attention and the projections into fp16, in place.

    LayerNorm, BatchNorm, embeddings of tokens, positions and class, and the temperature stay fp32. For inference: what
    trains keeps fp32 weights, see `optimization.parameter_groups`.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            module.to(torch.float16)
        elif isinstance(module, Attention):
            for parameter in (module.in_proj_weight, module.in_proj_bias):
                parameter.data = parameter.data.half()
    for module in (model, model.visual):
        for name in ("text_projection", "proj"):
            parameter = getattr(module, name, None)
            if isinstance(parameter, nn.Parameter):
                parameter.data = parameter.data.half()
    return model


def rounded_to_half(model: CLIP) -> CLIP:
    """Return a copy in fp32 whose values are those of the half-precision model."""
    return to_half(copy.deepcopy(model)).float()
