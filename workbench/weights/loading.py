"""Find weights, read them, and put them into a model, saying exactly what does not fit."""

import difflib
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import UserError
from workbench.models import position_embedding
from workbench.models.architectures import TimmConfig
from workbench.tokenizer import content_hash
from workbench.weights import openai_archive, zoo
from workbench.weights.files import read_checkpoint


@dataclass
class Weights:
    """A state dict with OpenAI's keys, and what is known about it."""

    state_dict: dict[str, Tensor]
    path: Path
    metadata: dict[str, Any] = field(default_factory=dict)


def load_weights(model: nn.Module, source: str | Path, download_root: str | Path | None = None) -> dict[str, Any]:
    """Load weights into an initialised `CLIP`; they become fp32 whatever they were stored in.

    Args:
        model: the model, whose architecture the weights must have. Image position embeddings are interpolated when
            only the image size differs.
        source: `openai` (those of the model's architecture), a name of `zoo.ZOO`, or a path.
        download_root: see `zoo.find`.

    Returns:
        Where they came from: `source`, `sha256`, and `interpolated` positions.

    Raises:
        UserError: they cannot be had or read, or do not fit; the message lists what is missing, unexpected, mis-shaped.
    """
    name = model.architecture.name if str(source) == "openai" else str(source)
    if str(source) == "openai" and name not in zoo.ZOO:
        raise UserError(f"OpenAI released no weights for {name}; it did for {', '.join(zoo.ZOO)}.")
    weights = read_weights(name, download_root)
    interpolated = put_weights(model, weights)
    return {
        "source": str(source),
        "sha256": zoo.sha256(weights.path),
        "interpolated": {key: list(sides) for key, sides in interpolated.items()},
    }


def put_weights(model: nn.Module, weights: Weights) -> dict[str, tuple[int, int]]:
    """Put weights that were read into a model, see `load_weights`; return which positions were interpolated."""
    _check_metadata(weights, model)
    interpolated = position_embedding.fit(weights.state_dict, model)
    _check_shapes(weights, model)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            value.copy_(weights.state_dict[key])
    return interpolated


def read_weights(source: str | Path, download_root: str | Path | None = None) -> Weights:
    """Read weights by zoo name or path; the kind of file is found by looking into it, and nothing in it is run.

    Raises:
        UserError: no such name or file, or one that cannot be read.
    """
    if str(source) in zoo.ZOO:
        path = zoo.find(str(source), download_root)
    else:
        path = Path(source).expanduser()
        if not path.is_file():
            lower = {name.lower(): name for name in zoo.ZOO}
            near = [lower[name] for name in difflib.get_close_matches(str(source).lower(), lower, n=1)]
            raise UserError(
                f"There are no weights at {source}{f' (is it {near[0]!r}?)' if near else ''}: give `openai`, one "
                f"of {', '.join(zoo.ZOO)}, or the path of a checkpoint."
            )
    if openai_archive.is_torchscript(path):
        return Weights(openai_archive.read_torchscript(path), path, {"activation": "quick_gelu"})
    return _unwrapped(read_checkpoint(path), path)


def _unwrapped(loaded: Any, path: Path) -> Weights:
    metadata: dict[str, Any] = {}
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        metadata = loaded.get("workbench", {})
        loaded = loaded["state_dict"]
        if all(key.startswith("clip.") for key in loaded):
            loaded = {key.removeprefix("clip."): value for key, value in loaded.items()}
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError(f"{path} holds no state dict: it is a checkpoint of something else.")
    state_dict = {key: value for key, value in loaded.items() if key not in openai_archive.NOT_WEIGHTS}
    return Weights(state_dict, path, dict(metadata))


def _check_metadata(weights: Weights, model: nn.Module) -> None:
    ours, theirs = model.architecture.activation, weights.metadata.get("activation")
    if theirs is None and not isinstance(model.architecture.vision, TimmConfig):
        warnings.warn(
            f"{weights.path} does not say which activation it was trained with; the model has {ours}. OpenAI's weights "
            "want quick_gelu, most of OpenCLIP's gelu, and with the wrong one features are silently wrong.",
            stacklevel=4,
        )
    if theirs not in (None, ours):
        raise UserError(
            f"{weights.path} was trained with {theirs} and the model has {ours}: its features would be silently "
            "wrong. Choose the architecture that the weights were trained as."
        )
    if weights.metadata.get("tokenizer") not in (None, content_hash()):
        raise UserError(f"{weights.path} was trained with another vocabulary than this tokenizer's.")


def _check_shapes(weights: Weights, model: nn.Module) -> None:
    wanted, given = model.state_dict(), weights.state_dict
    # Older checkpoints lack the counter, which nothing reads as long as the momentum is fixed.
    for key in wanted:
        if key.endswith("num_batches_tracked"):
            given.setdefault(key, wanted[key])
    problems = {
        "missing": [key for key in wanted if key not in given],
        "unexpected": [key for key in given if key not in wanted],
        "of another shape": [
            f"{key} {tuple(given[key].shape)} for {tuple(wanted[key].shape)}"
            for key in wanted
            if key in given and given[key].shape != wanted[key].shape
        ],
    }
    said = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in problems.items()
        if keys
    ]
    if said:
        raise UserError(
            f"The weights in {weights.path} are not those of {model.architecture.name}: {'; '.join(said)}. "
            "Choose the architecture that they belong to."
        )
