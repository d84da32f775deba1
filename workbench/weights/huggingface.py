"""Hugging Face's `CLIPModel` (transformers 5.23, models/clip), both ways; its image tower is a ViT.

Differences from OpenAI's keys: towers and layers have other names, the input projection of attention is three, and the
projections into the shared space are transposed.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.errors import UserError
from workbench.models.architectures import Architecture, TextConfig, ViTConfig
from workbench.weights.infer_architecture import under_its_name

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
"""What transformers 5 writes in its place."""
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""What their repositories call the weights, the best first."""

MARK = ("text_model.", "vision_model.")
"""How keys of theirs start."""

_SINGLE = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # their spelling
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
_TOWERS = {
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "transformer.resblocks.": "text_model.encoder.layers.",
}
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_POSITIONS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")  # of older releases

# Defaults of CLIPTextConfig and CLIPVisionConfig: a config.json may leave out what it does not change.
_BOTH = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_hidden_layers": 12}
_TEXT = _BOTH | {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
_TEXT |= {"max_position_embeddings": 77, "vocab_size": 49408}
_VISION = _BOTH | {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
_VISION |= {"image_size": 224, "patch_size": 32, "num_channels": 3}
_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # PIL's numbers


def to_openai_keys(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of `CLIPModel` under OpenAI's keys; keys that are not its stay as they are."""
    single = {theirs: ours for ours, theirs in _SINGLE.items()}
    transposed = {theirs: ours for ours, theirs in _TRANSPOSED.items()}
    found: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        if key in _POSITIONS:
            continue
        block, name, kind = _parts_of(key)
        if key in single:
            found[single[key]] = value
        elif key in transposed:
            found[transposed[key]] = value.T.contiguous()
        elif name in _IN_BLOCK.values():
            ours = next(ours for ours, theirs in _IN_BLOCK.items() if theirs == name)
            found[f"{block}{ours}.{kind}"] = value
        elif name in _QKV:
            thirds = [state_dict.get(key.replace(name, each)) for each in _QKV]
            if all(third is not None for third in thirds):  # else what is missing is said later
                found[f"{block}attn.in_proj_{kind}"] = torch.cat(thirds)
        else:
            found[key] = value
    return found


def _parts_of(key: str) -> tuple[str, str, str]:
    """Return our prefix of the block that a key of theirs is in, what stands in it, and `weight` or `bias`."""
    for ours, theirs in _TOWERS.items():
        if key.startswith(theirs):
            number, _, rest = key.removeprefix(theirs).partition(".")
            name, _, kind = rest.rpartition(".")
            return f"{ours}{number}.", name, kind
    return "", "", ""


def from_openai_keys(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of a model with a ViT under the keys of `CLIPModel`."""
    found: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        if key in _SINGLE:
            found[_SINGLE[key]] = value
        elif key in _TRANSPOSED:
            found[_TRANSPOSED[key]] = value.T.contiguous()
        else:
            ours, theirs = next(pair for pair in _TOWERS.items() if key.startswith(pair[0]))
            number, _, rest = key.removeprefix(ours).partition(".")
            if rest.startswith("attn.in_proj_"):
                kind = rest.removeprefix("attn.in_proj_")
                for name, part in zip(_QKV, value.chunk(3), strict=True):
                    found[f"{theirs}{number}.{name}.{kind}"] = part.contiguous()
            else:
                name, _, kind = rest.rpartition(".")
                found[f"{theirs}{number}.{_IN_BLOCK[name]}.{kind}"] = value
    return found


def read_config(config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None, where: str) -> Architecture:
    """Return the architecture of a `config.json` and a `preprocessor_config.json`.

    Raises:
        UserError: it is of another model than `CLIPModel`, or of one with parts that this package's towers lack.
    """
    if config.get("model_type") != "clip":
        raise UserError(
            f"{where} is of a {config.get('model_type', 'model that it does not name')!r}, not of a CLIPModel ('clip')."
        )
    try:
        text, vision = _of_tower(config, "text_config", _TEXT), _of_tower(config, "vision_config", _VISION)
        described = _architecture(config, text, vision, where)
        return under_its_name(_with_pictures(described, preprocessor or {}))
    except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
        raise UserError(f"{where} is no complete configuration of a CLIPModel ({error!r}).") from error


def _of_tower(config: Mapping[str, Any], name: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """Return a tower's settings. Configurations of 2021 have them twice, and mean the second, defaults included."""
    second = config.get(f"{name}_dict")
    return {**(config.get(name) or {}), **defaults, **second} if second else {**defaults, **(config.get(name) or {})}


def _architecture(config: Mapping[str, Any], text: dict, vision: dict, where: str) -> Architecture:
    activations = {vision["hidden_act"], text["hidden_act"]}
    if len(activations) != 1 or not activations <= {"quick_gelu", "gelu"}:
        raise UserError(
            f"{where}: the activation is {' and '.join(sorted(activations))}; this package has quick_gelu and gelu, "
            "the same in both towers."
        )
    for name, part in (("text_config", text), ("vision_config", vision)):
        expected = {"intermediate_size": 4 * part["hidden_size"], "layer_norm_eps": 1e-5, "num_channels": 3}
        for key, value in expected.items():
            if part.get(key, value) != value:
                raise UserError(f"{where}: {name}.{key} is {part[key]}; this package's towers have {value}.")
    return Architecture(
        "custom",
        embed_dim=config.get("projection_dim", 512),
        image_size=vision["image_size"],
        vision=ViTConfig(
            vision["patch_size"], vision["hidden_size"], vision["num_hidden_layers"], vision["num_attention_heads"]
        ),
        text=TextConfig(text["hidden_size"], text["num_attention_heads"], text["num_hidden_layers"]),
        context_length=text["max_position_embeddings"],
        vocab_size=text["vocab_size"],
        activation=activations.pop(),
    )


def _with_pictures(described: Architecture, preprocessor: Mapping[str, Any]) -> Architecture:
    preprocessor = preprocessor.get("image_processor", preprocessor)
    _refuse_other_pictures(described, preprocessor)
    said: dict[str, Any] = {}
    if preprocessor.get("do_normalize", True):
        for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
            if theirs in preprocessor:
                said[ours] = tuple(preprocessor[theirs])
    else:
        said = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    if preprocessor.get("resample", 3) not in _RESAMPLING:
        raise UserError(f"The preprocessor's resample is {preprocessor['resample']!r}; Pillow's are {_RESAMPLING}.")
    if "resample" in preprocessor:
        said["interpolation"] = _RESAMPLING[preprocessor["resample"]]
    return described.changed(**said)


def _refuse_other_pictures(described: Architecture, preprocessor: Mapping[str, Any]) -> None:
    """Refuse pictures that are prepared otherwise than by resizing the shorter side and cutting out the centre."""
    size = preprocessor.get("size", described.image_size)
    shortest = size.get("shortest_edge") if isinstance(size, Mapping) else size
    plain = all(preprocessor.get(key, True) for key in ("do_resize", "do_center_crop", "do_rescale"))
    if (
        not plain
        or shortest != described.image_size
        or abs(preprocessor.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-4
    ):
        raise UserError(
            f"Pictures are prepared in a way that this package does not have (size {size!r}, or without a resize, "
            "centre crop or rescaling by 1/255): its own is the shorter side to image_size, and the centre."
        )


def write_config(described: Architecture) -> dict[str, Any]:
    """Return what belongs into `config.json`, complete.

    Raises:
        UserError: `CLIPModel` cannot express the model.
    """
    if not isinstance(described.vision, ViTConfig):
        raise UserError(
            f"Hugging Face's CLIPModel has a ViT as image tower, {described.name} has not; export it to open_clip, "
            "onnx or safetensors."
        )
    if described.logit_bias:
        raise UserError("Hugging Face's CLIPModel has no logit_bias; export it to open_clip, onnx or safetensors.")
    vision, text = described.vision, described.text
    common = {"hidden_act": described.activation, "layer_norm_eps": 1e-5, "projection_dim": described.embed_dim}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": described.embed_dim,
        "logit_scale_init_value": 2.6592,
        "text_config": {
            **common,
            "model_type": "clip_text_model",
            "hidden_size": text.width,
            "intermediate_size": 4 * text.width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": described.context_length,
            "vocab_size": described.vocab_size,
            "bos_token_id": described.vocab_size - 2,
            "eos_token_id": described.vocab_size - 1,
            "pad_token_id": described.vocab_size - 1,
        },
        "vision_config": {
            **common,
            "model_type": "clip_vision_model",
            "hidden_size": vision.width,
            "intermediate_size": 4 * vision.width,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "image_size": described.image_size,
            "patch_size": vision.patch_size,
            "num_channels": 3,
        },
    }


def write_preprocessor(described: Architecture) -> dict[str, Any]:
    """Return what belongs into `preprocessor_config.json`."""
    numbers = {name: number for number, name in _RESAMPLING.items()}
    if described.interpolation not in numbers:
        raise UserError(
            f"Hugging Face's preprocessor cannot resize by {described.interpolation}; it has {', '.join(numbers)}."
        )
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": described.image_size},
        "resample": numbers[described.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": described.image_size, "width": described.image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(described.mean),
        "image_std": list(described.std),
    }
