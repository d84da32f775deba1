"""The Python interface, in the shape of OpenAI's `clip` package."""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from workbench import models
from workbench.errors import UserError
from workbench.models import CLIP, OPENAI_ARCHITECTURES, Architecture
from workbench.preprocessing import Preprocessing, preprocess
from workbench.weights import Weights, infer_architecture, load_weights, put_weights, read_weights

_CHANGEABLE = ("activation", "embed_dim", "image_size", "context_length", "interpolation", "mean", "std")


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
        name: of `available_models()`, or the path of a checkpoint that this package wrote or of OpenAI's.
        device: None takes CUDA where there is one.
        download_root: folder for downloaded weights, see `weights.zoo.find`.

    Raises:
        UserError: the weights cannot be had or read, or a file does not say what it was trained as.
    """
    weights = read_weights(name, download_root)
    with torch.random.fork_rng(devices=[]):  # what is drawn is overwritten
        model = models.create_model(_architecture(weights))
    put_weights(model, weights)
    described = model.architecture
    settings = Preprocessing(described.image_size, described.mean, described.std, described.interpolation)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval(), preprocess(settings)


def _architecture(weights: Weights) -> Architecture:
    about = weights.metadata
    if "architecture" in about:
        changes = {key: about[key] for key in _CHANGEABLE if key in about}
        changes |= {key: tuple(changes[key]) for key in ("mean", "std") if key in changes}
        return models.architecture(about["architecture"]).changed(**changes)
    if "activation" in about:
        return infer_architecture(weights.state_dict, about["activation"])
    likely = infer_architecture(weights.state_dict, "quick_gelu").name
    raise UserError(
        f"{weights.path} does not say which activation it was trained with, and with the wrong one features are "
        f"silently wrong. Its shapes are those of {likely}: build it with workbench.create_model({likely!r}, "
        'weights=path, activation="quick_gelu") if the weights are OpenAI\'s, "gelu" for most of OpenCLIP\'s.'
    )
