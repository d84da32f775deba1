"""The Python interface, in the shape of OpenAI's `clip` package."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from workbench import models
from workbench.errors import UserError
from workbench.models import CLIP, DEFAULT_ARCHITECTURE, OPENAI_ARCHITECTURES, Architecture
from workbench.models.architectures import TimmConfig
from workbench.weights import architecture_for, named, put_weights, read_weights

_FIELDS = {field.name for field in fields(Architecture)}


def available_models() -> list[str]:
    """Return the names whose weights OpenAI released, in OpenAI's order."""
    return list(OPENAI_ARCHITECTURES)


def create_model(
    architecture: str | None = None,
    weights: str | Path | None = None,
    *,
    download_root: str | Path | None = None,
    interpolate_positions: bool = False,
    **changes: object,
) -> CLIP:
    """Build a model, with or without weights.

    Args:
        architecture: a name, see `workbench.models.create_model`; None takes that of the weights.
        weights: None initialises; `openai`, or see `weights.read_weights`. Activation and how pictures are prepared are
            then the weights'; an `activation` among the changes is a demand that they must meet.
        download_root: see `load`.
        interpolate_positions: resample the weights' position embeddings for another `image_size` or `context_length`.
        **changes: see `workbench.models.create_model`.

    Raises:
        UserError: an unknown name, or weights that cannot be had, read or used for it.
    """
    if weights is None:
        return models.create_model(architecture or DEFAULT_ARCHITECTURE, **changes)
    read = read_weights(named(weights, architecture), download_root)
    asked = {key: changes.pop(key) for key in list(changes) if key in _FIELDS}
    model = models.create_model(architecture_for(read, architecture, **asked), **changes)
    put_weights(model, read, interpolate_positions)
    return model


def load(
    name: str | Path, device: str | torch.device | None = None, download_root: str | Path | None = None
) -> tuple[CLIP, Callable[[Image.Image], Tensor]]:
    """Return a trained model in evaluation mode, in fp32, and the transform for its pictures.

    Args:
        name: of `available_models()`, `hf-hub:org/name`, or a path, see `weights.read_weights`.
        device: None takes CUDA where there is one.
        download_root: folder for downloaded weights, see `weights.zoo.find`.

    Raises:
        UserError: the weights cannot be had or read, a file does not say what it was trained as, or there is no GPU.
    """
    from workbench.preprocessing import Preprocessing, preprocess  # torchvision takes as long as torch to import

    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():  # before gigabytes are read
        raise UserError(f'There is no GPU that torch can use, so device {str(device)!r} cannot be had; take "cpu".')
    weights = read_weights(name, download_root)
    model = _without_values(architecture_for(weights))
    put_weights(model, weights)
    return model.to(device).eval(), preprocess(Preprocessing.of(model.architecture))


def _without_values(described: Architecture) -> CLIP:
    """Build a model that waits for its weights: drawing what they overwrite takes seconds."""
    if isinstance(described.vision, TimmConfig):  # whose constants no state dict has
        with torch.random.fork_rng(devices=[]):
            return models.create_model(described)
    with torch.device("meta"):
        model = models.create_model(described)
    return model.to_empty(device="cpu")
