"""What is true of weights besides their numbers, as plain values that travel inside a checkpoint."""

from dataclasses import asdict, fields
from typing import Any

import workbench
from workbench.errors import UserError
from workbench.models.architectures import (
    Architecture,
    ResNetConfig,
    TextConfig,
    TimmConfig,
    ViTConfig,
    architecture,
)
from workbench.tokenizer import content_hash

_TOWERS = {"vit": ViTConfig, "resnet": ResNetConfig, "timm": TimmConfig}
_PLAIN = [field.name for field in fields(Architecture) if field.name not in ("name", "vision", "text")]
_TUPLES = ("mean", "std", "layers")


def description(described: Architecture) -> dict[str, Any]:
    """Return an architecture as numbers, strings, lists and dicts: what `described_architecture` reads back."""
    kind = next(kind for kind, tower in _TOWERS.items() if isinstance(described.vision, tower))
    return {
        "version": workbench.__version__,
        "architecture": described.name,
        **{key: _listed(getattr(described, key)) for key in _PLAIN},
        "vision": {"kind": kind, **{key: _listed(value) for key, value in asdict(described.vision).items()}},
        "text": asdict(described.text),
        "tokenizer": content_hash(),
    }


def described_architecture(about: dict[str, Any]) -> Architecture | None:
    """Return the architecture of a `description`; None where it has no activation, which shapes do not show.

    What is left out has the value of the architecture of that name.

    Raises:
        UserError: the description makes no sense, or is of another vocabulary than this tokenizer's.
    """
    if not isinstance(about, dict):
        raise UserError(f"The weights' description makes no sense: it is a {type(about).__name__}.")
    if about.get("tokenizer") not in (None, content_hash()):
        raise UserError("The weights were trained with another vocabulary than this tokenizer's.")
    if "architecture" not in about or "activation" not in about:
        return None
    try:
        known = {key: _tupled(key, about[key]) for key in _PLAIN if key in about}
        if "vision" not in about:
            return architecture(str(about["architecture"])).changed(**known)
        vision = {key: _tupled(key, value) for key, value in about["vision"].items() if key != "kind"}
        tower = _TOWERS[about["vision"]["kind"]](**vision)
        return Architecture(about["architecture"], vision=tower, text=TextConfig(**about["text"]), **known).changed()
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"The weights' description of their architecture makes no sense ({error!r}).") from error


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _tupled(key: str, value: Any) -> Any:
    return tuple(value) if key in _TUPLES and isinstance(value, list) else value
