"""Which architecture a state dict with OpenAI's keys belongs to, read from its shapes (openai/CLIP @ d05afc4)."""

import math
import re
from dataclasses import replace

from torch import Tensor

from workbench.errors import UserError
from workbench.models import ARCHITECTURES, Architecture
from workbench.models.architectures import ResNetConfig, TextConfig, ViTConfig

_HEAD_WIDTH = 64
_OTHER_HEAD_WIDTHS = {1280: 80}  # the image tower of OpenCLIP's ViT-H


def infer_architecture(state_dict: dict[str, Tensor], activation: str) -> Architecture:
    """Return the architecture whose shapes these are, under its own name if it is a known one.

    Shapes do not show the number of heads: known architectures bring theirs, OpenCLIP's ViT-H has heads of 80, others
    have heads of 64, as all of OpenAI's and nearly all of OpenCLIP's. Nor do they show the activation.

    Args:
        state_dict: of a model with a ViT or a modified ResNet.
        activation: `quick_gelu` or `gelu`.

    Raises:
        UserError: it is the state dict of something else.
    """
    try:
        found = _from_shapes(state_dict, activation)
    except KeyError as error:
        raise UserError(f"These are not the weights of a CLIP with OpenAI's keys: {error} is missing.") from error
    except (IndexError, ValueError, TypeError, ArithmeticError) as error:
        raise UserError("These are not the weights of a CLIP: a tensor has another number of dimensions.") from error
    for known in _of_that_size_first(found):
        same = _with_settings_of(known, found)
        if _without_heads(same) == _without_heads(found):
            return same
    return found


def under_its_name(found: Architecture) -> Architecture:
    """Return an architecture under the name of the known one whose towers it has, if there is one."""
    for known in _of_that_size_first(found):
        same = _with_settings_of(known, found)
        if same == replace(found, name=known.name):
            return same
    return found


def _of_that_size_first(found: Architecture) -> list[Architecture]:
    return sorted(ARCHITECTURES.values(), key=lambda known: known.image_size != found.image_size)


def _with_settings_of(known: Architecture, found: Architecture) -> Architecture:
    settings = ("image_size", "context_length", "activation", "mean", "std", "interpolation", "logit_bias")
    return replace(known, **{key: getattr(found, key) for key in settings})


def _from_shapes(state_dict: dict[str, Tensor], activation: str) -> Architecture:
    text_width = state_dict["ln_final.weight"].shape[0]
    stem = state_dict["visual.conv1.weight"]
    if "visual.proj" in state_dict:
        positions, width = state_dict["visual.positional_embedding"].shape
        patch = stem.shape[-1]
        layers = _count(state_dict, r"visual\.transformer\.resblocks\.(\d+)\.")
        heads = max(1, width // _OTHER_HEAD_WIDTHS.get(width, _HEAD_WIDTH))
        vision, step = ViTConfig(patch, width, layers, heads), patch
    else:
        positions = state_dict["visual.attnpool.positional_embedding"].shape[0]
        width = state_dict["visual.layer1.0.conv1.weight"].shape[0]
        layers = tuple(_count(state_dict, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
        vision, step = ResNetConfig(layers, width, max(1, 32 * width // _HEAD_WIDTH)), 32
    vocab_size, context_length = state_dict["token_embedding.weight"].shape[0], len(state_dict["positional_embedding"])
    return Architecture(
        "custom",
        embed_dim=state_dict["text_projection"].shape[1],
        image_size=step * math.isqrt(positions - 1),
        vision=vision,
        text=TextConfig(
            text_width, max(1, text_width // _HEAD_WIDTH), _count(state_dict, r"transformer\.resblocks\.(\d+)\.")
        ),
        context_length=context_length,
        vocab_size=vocab_size,
        activation=activation,
        logit_bias="logit_bias" in state_dict,
    )


def _count(state_dict: dict[str, Tensor], pattern: str) -> int:
    return len({match[1] for key in state_dict if (match := re.match(pattern, key))})


def _without_heads(a: Architecture) -> tuple:
    vision = (a.vision.layers, a.vision.width, getattr(a.vision, "patch_size", None))
    return vision, (a.text.width, a.text.layers), a.embed_dim, a.image_size, a.context_length, a.vocab_size
