"""The architectures as data: the nine of OpenAI, small ones that train on a CPU, and any timm backbone.

Figures: Radford et al. 2021, tables 19 and 20, and the released checkpoints (openai/CLIP @ d05afc4, clip/model.py).
"""

import difflib
from dataclasses import dataclass, replace

from workbench.errors import UserError

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ViTConfig:
    """A Vision Transformer image tower (Dosovitskiy et al. 2020, with CLIP's extra LayerNorm before the blocks)."""

    patch_size: int
    width: int
    layers: int
    heads: int


@dataclass(frozen=True)
class ResNetConfig:
    """A modified ResNet. `width` is the stem's; the features that attention pooling sees have 32 times as many."""

    layers: tuple[int, int, int, int]
    width: int
    heads: int


@dataclass(frozen=True)
class TimmConfig:
    """A timm backbone with its own pooling, followed by our projection."""

    name: str


@dataclass(frozen=True)
class TextConfig:
    """The text tower."""

    width: int
    heads: int
    layers: int


@dataclass(frozen=True)
class Architecture:
    """Everything that is true of a model before it has weights.

    `mean`, `std` and `interpolation` say how its pictures are prepared; they belong to the weights, not to data.
    `logit_bias`: a constant is added to the logits, as in models trained with the sigmoid loss (SigLIP).
    """

    name: str
    embed_dim: int
    image_size: int
    vision: ViTConfig | ResNetConfig | TimmConfig
    text: TextConfig
    context_length: int = 77
    vocab_size: int = 49408
    activation: str = "quick_gelu"
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    interpolation: str = "bicubic"
    logit_bias: bool = False

    def changed(self, **changes: object) -> "Architecture":
        """Return a copy with some fields changed, checked.

        Raises:
            UserError: an unknown field or activation, no size, or an image size that the towers cannot take.
        """
        unknown = set(changes) - set(self.__dataclass_fields__)
        if unknown:
            raise UserError(
                f"Architecture {self.name} has no field {', '.join(sorted(unknown))}; "
                f"fields are {', '.join(self.__dataclass_fields__)}."
            )
        changed = replace(self, **changes)
        if changed.activation not in ("quick_gelu", "gelu"):
            raise UserError(f"activation {changed.activation!r} is unknown; choose quick_gelu or gelu.")
        sizes = {key: getattr(changed, key) for key in ("embed_dim", "image_size", "context_length", "vocab_size")}
        for part in (changed.vision, changed.text):
            sizes |= {key: value for key, value in vars(part).items() if key != "name"}
        for key, value in sizes.items():
            for size in value if isinstance(value, tuple) else (value,):
                if not isinstance(size, int) or size < 1:
                    raise UserError(f"{key} is {value!r}; it must be a whole number above 0.")
        step = {ViTConfig: lambda v: v.patch_size, ResNetConfig: lambda v: 32, TimmConfig: lambda v: 1}
        multiple = step[type(changed.vision)](changed.vision)
        if changed.image_size < multiple or changed.image_size % multiple:
            near = max(multiple, round(changed.image_size / multiple) * multiple)
            raise UserError(
                f"image_size {changed.image_size} does not suit {self.name}: it must be a multiple of {multiple}, "
                f"for example {near}."
            )
        return changed


_SMALL, _BASE, _MIDDLE, _LARGE = (TextConfig(width, width // 64, 12) for width in (512, 640, 768, 1024))
_MINI_TEXT = TextConfig(128, 2, 2)


def _by_name(*architectures: Architecture) -> dict[str, Architecture]:
    return {architecture.name: architecture for architecture in architectures}


OPENAI_ARCHITECTURES = _by_name(
    Architecture("RN50", 1024, 224, ResNetConfig((3, 4, 6, 3), 64, 32), _SMALL),
    Architecture("RN101", 512, 224, ResNetConfig((3, 4, 23, 3), 64, 32), _SMALL),
    Architecture("RN50x4", 640, 288, ResNetConfig((4, 6, 10, 6), 80, 40), _BASE),
    Architecture("RN50x16", 768, 384, ResNetConfig((6, 8, 18, 8), 96, 48), _MIDDLE),
    Architecture("RN50x64", 1024, 448, ResNetConfig((3, 15, 36, 10), 128, 64), _LARGE),
    Architecture("ViT-B/32", 512, 224, ViTConfig(32, 768, 12, 12), _SMALL),
    Architecture("ViT-B/16", 512, 224, ViTConfig(16, 768, 12, 12), _SMALL),
    Architecture("ViT-L/14", 768, 224, ViTConfig(14, 1024, 24, 16), _MIDDLE),
    Architecture("ViT-L/14@336px", 768, 336, ViTConfig(14, 1024, 24, 16), _MIDDLE),
)
"""In the order of OpenAI's `available_models()`."""

SMALL_ARCHITECTURES = _by_name(
    # For tests: a training step takes milliseconds.
    Architecture("tiny-vit", 32, 32, ViTConfig(8, 64, 2, 2), TextConfig(64, 2, 2)),
    Architecture("tiny-rn", 32, 32, ResNetConfig((1, 1, 1, 1), 8, 4), TextConfig(64, 2, 2)),
    # For learning something real on a CPU in minutes.
    Architecture("mini-rn", 128, 64, ResNetConfig((1, 1, 1, 1), 24, 12), _MINI_TEXT),
    Architecture("mini-vit", 128, 64, ViTConfig(8, 128, 4, 2), _MINI_TEXT),
)

ARCHITECTURES = OPENAI_ARCHITECTURES | SMALL_ARCHITECTURES


def architecture(name: str) -> Architecture:
    """Return the architecture called `name`, or the one around the timm backbone of `timm/<backbone>`.

    A timm backbone brings its own image size and normalisation, and gets the text tower of ViT-B/32 with exact
    GELU (OpenCLIP's choice for such models).

    Raises:
        UserError: no such architecture; the message lists those there are and the nearest.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    if name.startswith("timm/"):
        return _timm_architecture(name)
    near = difflib.get_close_matches(name, ARCHITECTURES, n=1, cutoff=0.4)
    raise UserError(
        f"Architecture {name!r} is unknown{f'; did you mean {near[0]!r}' if near else ''}? "
        f"There are {', '.join(ARCHITECTURES)}, and timm/<backbone>."
    )


def _timm_architecture(name: str) -> Architecture:
    import timm  # half a second, and most models need it not

    backbone = name.removeprefix("timm/")
    if not timm.is_model(backbone):
        near = difflib.get_close_matches(backbone.split(".")[0], timm.list_models(), n=3)
        raise UserError(
            f"timm has no backbone {backbone!r}{'; near names: ' + ', '.join(near) if near else ''}. "
            "timm.list_models() lists them all."
        )
    cfg = timm.get_pretrained_cfg(backbone)
    return Architecture(
        name,
        embed_dim=512,
        image_size=cfg.input_size[-1],
        vision=TimmConfig(backbone),
        text=_SMALL,
        activation="gelu",
        mean=tuple(cfg.mean),
        std=tuple(cfg.std),
        interpolation=cfg.interpolation or "bicubic",
    )
