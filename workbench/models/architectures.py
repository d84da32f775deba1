"""The architectures as data: the nine of OpenAI, small ones that train on a CPU, and any timm backbone.

Figures: Radford et al. 2021, tables 19 and 20, and the released checkpoints (openai/CLIP @ d05afc4, clip/model.py).
"""

import difflib
from dataclasses import dataclass, replace

from workbench.errors import UserError

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")
"""Of resizing pictures, by the names of torchvision's `InterpolationMode`."""
_LARGEST = {"image_size": 4096, "context_length": 1 << 16, "vocab_size": 1 << 22, "layers": 1000}
_LARGEST_SIZE = 1 << 16


@dataclass(frozen=True)
class ViTConfig:
    """A Vision Transformer image tower (Dosovitskiy et al. 2020, with CLIP's extra LayerNorm before the blocks)."""

    patch_size: int
    width: int
    layers: int
    heads: int

    @property
    def channels(self) -> int:
        """What the heads of attention share."""
        return self.width


@dataclass(frozen=True)
class ResNetConfig:
    """A modified ResNet. `width` is the stem's; the features that attention pooling sees have 32 times as many."""

    layers: tuple[int, int, int, int]
    width: int
    heads: int

    @property
    def channels(self) -> int:
        """What the heads of attention share."""
        return 32 * self.width


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

    @property
    def channels(self) -> int:
        """What the heads of attention share."""
        return self.width


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
        changed._refuse_nonsense()
        step = {ViTConfig: lambda v: v.patch_size, ResNetConfig: lambda v: 32, TimmConfig: lambda v: 1}
        multiple = step[type(changed.vision)](changed.vision)
        if changed.image_size < multiple or changed.image_size % multiple:
            near = max(multiple, round(changed.image_size / multiple) * multiple)
            raise UserError(
                f"image_size {changed.image_size} does not suit {self.name}: it must be a multiple of {multiple}, "
                f"for example {near}."
            )
        return changed

    def _refuse_nonsense(self) -> None:
        """Raise a UserError for values that no model can have; descriptions come from files, too."""
        if self.activation not in ("quick_gelu", "gelu"):
            raise UserError(f"activation {self.activation!r} is unknown; choose quick_gelu or gelu.")
        if not isinstance(self.name, str) or not isinstance(self.logit_bias, bool):
            raise UserError("The architecture's name must be text, and its logit_bias true or false.")
        vision, text = self.vision, self.text
        sizes = {key: getattr(self, key) for key in ("embed_dim", "image_size", "context_length", "vocab_size")}
        if isinstance(vision, TimmConfig):
            _refuse_unknown_backbone(vision.name)
        elif isinstance(vision, ResNetConfig):
            if not isinstance(vision.layers, tuple) or len(vision.layers) != 4:
                raise UserError(f"layers of a ResNet are {vision.layers!r}; it has four stages.")
            sizes |= {f"layers of stage {stage}": layers for stage, layers in enumerate(vision.layers, 1)}
            sizes |= {"width": vision.width, "heads": vision.heads}
        else:
            sizes |= vars(vision)
        for name, found in (*sizes.items(), *((f"text {key}", value) for key, value in vars(text).items())):
            largest = _LARGEST.get(name.split()[-1], _LARGEST_SIZE)
            if type(found) is not int or not 1 <= found <= largest:
                raise UserError(f"{name} is {found!r}; it must be a whole number from 1 to {largest}.")
        for name, tower in (("text", text), *([] if isinstance(vision, TimmConfig) else [("image", vision)])):
            if tower.channels % tower.heads:
                raise UserError(
                    f"The {name} tower's {tower.channels} channels cannot be shared by {tower.heads} heads."
                )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not isinstance(values, tuple) or len(values) != 3 or not all(map(_is_share, values)):
                raise UserError(f"{name} is {values!r}; it must be three numbers between -10 and 10.")
        if min(self.std) <= 0:
            raise UserError(f"std is {self.std!r}; it must be above 0.")
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(f"Interpolation {self.interpolation!r} is unknown; there are {', '.join(INTERPOLATIONS)}.")


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -10 < value < 10


def _refuse_unknown_backbone(name: object) -> None:
    """Raise a UserError for anything but a name of timm's list: timm would fetch `hf-hub:...` from a file's word."""
    import timm  # half a second, and most models need it not

    if not isinstance(name, str) or not timm.is_model(name):
        near = difflib.get_close_matches(str(name).split(".")[0], timm.list_models(), n=3)
        raise UserError(
            f"timm has no backbone {name!r}{'; near names: ' + ', '.join(near) if near else ''}. "
            "timm.list_models() lists them all."
        )


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

DEFAULT_ARCHITECTURE = "ViT-B/32"
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
    _refuse_unknown_backbone(backbone)
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
