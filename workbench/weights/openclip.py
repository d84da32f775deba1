"""OpenCLIP's weights and configurations (mlfoundations/open_clip 3.3.0, model.py and factory.py), both ways.

Their native models have OpenAI's keys. Differences: training checkpoints put `module.` in front, models with a text
tower of their own (`custom_text`) put `text.` in front of it, and the activation is in the configuration alone.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from workbench.errors import UserError
from workbench.models.architectures import Architecture, ResNetConfig, TextConfig, TimmConfig, ViTConfig
from workbench.weights.infer_architecture import under_its_name

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
"""What their repositories call the weights, the best first."""

_HEAD_WIDTH = 64
_READ = {
    "": {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_bias"},
    "vision_cfg": {"image_size", "layers", "width", "patch_size", "head_width"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers"},
}
# How a new model starts, how it is trained or what it returns: nothing that features depend on.
_NO_MATTER = {
    *(
        "init_logit_scale",
        "custom_text",
        "cast_dtype",
        "output_dict",
        "output_tokens",
        "patch_dropout",
        "multimodal_cfg",
    ),
    *("attn_pooler_queries", "attn_pooler_heads", "pad_id", "eos_id", "hf_model_pretrained", "hf_proj_type"),
    *("hf_pooler_type", "tokenizer_mode", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_drop"),
}
_PLAIN = {"mlp_ratio": 4.0, "proj_type": "linear", "pos_embed_type": "learnable", "block_type": "default"}
_POOLED = {"vision_cfg": "tok", "text_cfg": "argmax"}
_TEXT_KEYS = re.compile(
    r"text\.(?=(token_embedding|positional_embedding|transformer\.resblocks|ln_final|text_projection)\b)"
)


def to_openai_keys(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of OpenCLIP's under OpenAI's keys; keys that are not theirs stay as they are."""
    return {_TEXT_KEYS.sub("", key, count=1): value for key, value in state_dict.items() if key != "attn_mask"}


def read_config(config: Mapping[str, Any], where: str) -> Architecture:
    """Return the architecture of a configuration, of `open_clip_config.json` or of one of their `model_configs`.

    Args:
        config: the parsed JSON.
        where: its place, for messages.

    Raises:
        UserError: it is incomplete, or has a part that this package's towers lack.
    """
    try:
        model = config.get("model_cfg", config)
        for place, part in (("", model), ("vision_cfg", model["vision_cfg"]), ("text_cfg", model["text_cfg"])):
            _refuse_other_parts(place, part, where)
        return under_its_name(_architecture(model, config.get("preprocess_cfg") or {}, where))
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where} is no complete configuration of OpenCLIP's ({error!r}).") from error


def _architecture(model: Mapping[str, Any], pictures: Mapping[str, Any], where: str) -> Architecture:
    vision, text = model["vision_cfg"], model["text_cfg"]
    head_width, width, layers = vision.get("head_width", _HEAD_WIDTH), vision["width"], vision["layers"]
    if width * (32 if isinstance(layers, list) else 1) % head_width:
        raise UserError(f"{where}: vision_cfg.width {width} is no multiple of head_width {head_width}.")
    if isinstance(layers, list):
        tower: ViTConfig | ResNetConfig = ResNetConfig(tuple(layers), width, width * 32 // head_width)
    else:
        tower = ViTConfig(vision["patch_size"], width, layers, width // head_width)
    if pictures.get("resize_mode", "shortest") != "shortest":
        raise UserError(
            f"{where}: pictures were resized by {pictures['resize_mode']!r}, this package knows `shortest` alone."
        )
    said = {key: tuple(pictures[key]) for key in ("mean", "std") if key in pictures}
    if pictures.get("interpolation", "random") != "random":
        said["interpolation"] = pictures["interpolation"]
    return Architecture(
        "custom",
        embed_dim=model["embed_dim"],
        image_size=_side(vision.get("image_size", 224), where),
        vision=tower,
        text=TextConfig(text["width"], text["heads"], text["layers"]),
        context_length=text.get("context_length", 77),
        vocab_size=text.get("vocab_size", 49408),
        activation="quick_gelu" if model.get("quick_gelu") else "gelu",
        logit_bias=model.get("init_logit_bias") is not None,
        **said,
    ).changed()


def _side(size: Any, where: str) -> int:
    sides = set(size) if isinstance(size, list) else {size}
    if len(sides) != 1:
        raise UserError(f"{where}: pictures are {size}; this package's towers take squares alone.")
    return int(sides.pop())


def _refuse_other_parts(place: str, part: Mapping[str, Any], where: str) -> None:
    for key, value in part.items():
        plain = _POOLED.get(place) if key == "pool_type" else _PLAIN.get(key)
        if key in _READ[place] or key in _NO_MATTER or not value or value == plain:
            continue
        hint = " (build a timm image tower with architecture timm/<backbone>)" if key == "timm_model_name" else ""
        raise UserError(
            f"{where}: {f'{place}.' if place else ''}{key} is {value!r}, which this package's towers do not have{hint}."
        )


def write_config(described: Architecture) -> dict[str, Any]:
    """Return what belongs into `open_clip_config.json`.

    Raises:
        UserError: OpenCLIP has no native form of the image tower.
    """
    vision = described.vision
    if isinstance(vision, TimmConfig):
        raise UserError("A timm image tower has no native form in OpenCLIP; export it as safetensors or onnx.")
    tower: dict[str, Any] = {"image_size": described.image_size, "width": vision.width}
    if isinstance(vision, ResNetConfig):
        tower |= {"layers": list(vision.layers), "head_width": vision.channels // vision.heads, "patch_size": None}
    else:
        tower |= {
            "layers": vision.layers,
            "head_width": vision.channels // vision.heads,
            "patch_size": vision.patch_size,
        }
    text = described.text
    model = {
        "embed_dim": described.embed_dim,
        "quick_gelu": described.activation == "quick_gelu",
        "vision_cfg": tower,
        "text_cfg": {
            "context_length": described.context_length,
            "vocab_size": described.vocab_size,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
        },
    }
    if described.logit_bias:
        model["init_logit_bias"] = -10  # SigLIP's start; the weights have the value
    pictures = {
        "size": described.image_size,
        "mode": "RGB",
        "mean": list(described.mean),
        "std": list(described.std),
        "interpolation": described.interpolation,
        "resize_mode": "shortest",
    }
    return {"model_cfg": model, "preprocess_cfg": pictures}
