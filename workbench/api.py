"""The Python interface, in the shape of OpenAI's `clip` package."""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from workbench import models
from workbench.errors import UserError
from workbench.models import CLIP, OPENAI_ARCHITECTURES
from workbench.preprocessing import Preprocessing, preprocess
from workbench.weights import load_weights, read_weights


def available_models() -> list[str]:
    """Return the names whose weights OpenAI released, in OpenAI's order."""
    return list(OPENAI_ARCHITECTURES)


def create_model(architecture: str, weights: str | None = None, **changes: object) -> CLIP:
    """Build a model; see `workbench.models.create_model` for `changes` and `weights.load_weights` for `weights`."""
    model = models.create_model(architecture, **changes)
    if weights is not None:
        load_weights(model, weights)
    return model


def load(
    name: str | Path, device: str | torch.device | None = None, download_root: str | Path | None = None
) -> tuple[CLIP, Callable[[Image.Image], Tensor]]:
    """Return a trained model in evaluation mode, in fp32, and the transform for its pictures.

    Args:
        name: of `available_models()`, or the path of a checkpoint that this package wrote.
        device: None takes CUDA where there is one.
        download_root: folder for downloaded weights, see `weights.zoo.find`.

    Raises:
        UserError: the weights cannot be had or read, or a file does not say which architecture it has.
    """
    if str(name) in OPENAI_ARCHITECTURES:
        architecture, changes = str(name), {}
    else:
        about = read_weights(name, download_root).metadata
        if "architecture" not in about:
            raise UserError(
                f"{name} does not say which architecture it has; build that with workbench.create_model(architecture, "
                "weights=path)."
            )
        architecture, changes = about["architecture"], {"image_size": about["image_size"]}
    model = models.create_model(architecture, **changes)
    load_weights(model, name, download_root)
    described = model.architecture
    settings = Preprocessing(described.image_size, described.mean, described.std, described.interpolation)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval(), preprocess(settings)
