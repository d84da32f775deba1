"""Put weights into a model, saying exactly what does not fit."""

import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from workbench.errors import Notice, UserError
from workbench.models import CLIP, Architecture, architecture, position_embedding
from workbench.models.architectures import TimmConfig
from workbench.models.lora import MARK
from workbench.weights import zoo
from workbench.weights.description import described_architecture
from workbench.weights.files import read_checkpoint
from workbench.weights.infer_architecture import infer_architecture
from workbench.weights.state_dicts import Weights, state_dict_of

_PICTURES = ("mean", "std", "interpolation")
_SETTINGS = ("activation", *_PICTURES, "logit_bias")
"""What shapes do not show and names do not fix: taken from the weights."""


def named(source: str | Path, architecture_name: str | None) -> str | Path:
    """Return the zoo's name that `openai` stands for with an architecture; any other source as it is.

    Raises:
        UserError: OpenAI released no weights of that architecture.
    """
    if str(source) != "openai" or architecture_name is None:  # which of nine, `read_weights` asks
        return source
    if architecture_name not in zoo.ZOO:
        raise UserError(f"OpenAI released no weights for {architecture_name}; it did for {', '.join(zoo.ZOO)}.")
    return architecture_name


def checkpoint_architecture(path: str | Path, base: Weights | None = None) -> Architecture | None:
    """Return what a checkpoint of a run says that it is of, without reading its numbers; None if it says nothing.

    Args:
        path: of the checkpoint.
        base: the weights beneath its LoRA adapter, if it has nothing else.

    Raises:
        UserError: it cannot be read, or has an adapter alone and there is no base.
    """
    found = read_checkpoint(Path(path), lazily=True)
    about = found.get("workbench") if isinstance(found, dict) else None
    described = None if about is None else described_architecture(about)
    if described is None:
        return None
    weights = Weights(state_dict_of(found, Path(path)), Path(path), described, "this package's")
    if about.get("base_sha256") is None:
        weights.state_dict = {key: value for key, value in weights.state_dict.items() if MARK not in key}
    elif base is None:
        raise UserError(
            f"{path} holds a LoRA adapter without the weights beneath it: use the config.yaml of its own run folder, "
            "which names both (model.init_args.lora and weights)."
        )
    else:
        weights = base
    _refuse_unfit(weights, described)
    return described


def architecture_for(weights: Weights, name: str | None = None, **changes: object) -> Architecture:
    """Return what to build for weights: theirs, with what is asked for.

    Args:
        weights: read.
        name: the architecture that is asked for; None takes that of the weights. Where the towers are the same, image
            size, context length and heads are the weights' as well, and in any case the activation and how pictures
            are prepared.
        **changes: fields of `Architecture` that are asked for. An activation is a demand: `put_weights` refuses weights
            that say another.

    Raises:
        UserError: nothing says which activation the weights were trained with, or a change is impossible.
    """
    changes = {key: value for key, value in changes.items() if value is not None}
    theirs = weights.architecture
    if theirs is None and "activation" in changes:
        theirs = _guessed(weights, str(changes["activation"])) or (architecture(name) if name else None)
    if theirs is None:
        raise UserError(_unsaid(weights, name))
    if not weights.stated and "activation" not in changes:
        warnings.warn(
            Notice(
                f"{weights.path} does not say its activation; taken as {theirs.activation}, which is the rule for "
                f"{weights.source}. If it was fine-tuned from OpenAI's weights, set activation to quick_gelu."
            ),
            stacklevel=3,
        )
    wanted = under_demands(theirs, name, **changes)
    _refuse_unfit(weights, wanted)
    return wanted


def under_demands(theirs: Architecture, name: str | None, **changes: object) -> Architecture:
    """Return `theirs` under a name and with changes, see `architecture_for`."""
    if name is None or _same_towers(theirs, name):
        base = replace(theirs, name=name or theirs.name)
    else:
        base = replace(architecture(name), **{key: getattr(theirs, key) for key in _SETTINGS})
    return base.changed(**changes)


def _refuse_unfit(weights: Weights, described: Architecture) -> None:
    """Compare shapes before anything of them is made: a file may claim sizes that no memory holds."""
    if isinstance(described.vision, TimmConfig):
        return
    with torch.device("meta"):
        model = CLIP(described)
    given = dict(weights.state_dict)
    for key in position_embedding.different(given, model):
        given[key] = model.state_dict()[key]
    _refuse_other_shapes(given, weights, model)


def _same_towers(theirs: Architecture, name: str) -> bool:
    ours = architecture(name)
    sizes = {key: getattr(ours, key) for key in ("vision", "text", "embed_dim", "vocab_size")}
    return all(getattr(theirs, key) == value for key, value in sizes.items())


def _guessed(weights: Weights, activation: str) -> Architecture | None:
    if any(key.startswith("visual.trunk.") for key in weights.state_dict):  # of timm; only a name says the backbone
        return None
    return infer_architecture(weights.state_dict, activation)


def _unsaid(weights: Weights, name: str | None) -> str:
    guess = _guessed(weights, "quick_gelu")
    likely = name or (guess.name if guess else "timm/...")
    return (
        f"{weights.path} does not say which activation it was trained with, and with the wrong one features are "
        f'silently wrong. Say it: activation "quick_gelu" if the weights are OpenAI\'s, "gelu" for most of '
        f"OpenCLIP's (workbench.create_model({likely!r}, weights=path, activation=...); in a run "
        "--model.init_args.activation, of `convert` --activation)."
    )


def put_weights(model: nn.Module, weights: Weights, interpolate_positions: bool = False) -> dict[str, tuple[int, int]]:
    """Put weights that were read into a model; nothing of it changes when they are refused.

    Args:
        model: a `CLIP`.
        weights: its weights.
        interpolate_positions: resample position embeddings of another image size or context length, see
            `position_embedding.fit`; without, they are refused.

    Returns:
        The positions that were resampled: key -> (sides or length before, after).

    Raises:
        UserError: they were trained as another model than this one.
    """
    given, interpolated = fitted(weights, model, interpolate_positions)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            value.copy_(given[key])
    return interpolated


def fitted(
    weights: Weights, model: nn.Module, interpolate_positions: bool = False
) -> tuple[dict[str, Tensor], dict[str, tuple[int, int]]]:
    """Return what `put_weights` puts into a model, which may be on the meta device, and what it resampled."""
    _refuse_other_settings(weights, model)
    given = dict(weights.state_dict)
    # What cannot be resampled has another shape, which is said below.
    different = position_embedding.different(given, model)
    if different and not interpolate_positions:
        said = "; ".join(f"{key} has {before} rows for {after}" for key, (before, after) in different.items())
        raise UserError(
            f"The weights in {weights.path} are of another image size or context length: {said}. Ask for resampled "
            "position embeddings with interpolate_positions (in a run --model.init_args.interpolate_positions true), "
            "or leave image_size and context_length to the weights."
        )
    interpolated = position_embedding.fit(given, model)
    _refuse_other_shapes(given, weights, model)
    return given, interpolated


def _refuse_other_settings(weights: Weights, model: nn.Module) -> None:
    ours, theirs = model.architecture, weights.architecture
    if theirs is None:
        return
    if theirs.activation != ours.activation and weights.stated:
        raise UserError(
            f"{weights.path} was trained with {theirs.activation} and the model has {ours.activation}: its features "
            f"would be silently wrong. Leave the activation to the weights, or ask for {theirs.activation}."
        )
    if any(getattr(theirs, key) != getattr(ours, key) for key in _PICTURES):
        raise UserError(
            f"{weights.path} was trained on pictures normalised with mean {theirs.mean} and std {theirs.std}, resized "
            f"by {theirs.interpolation}; the model is for {ours.mean}, {ours.std} and {ours.interpolation}. Build it "
            "for the weights: create_model(..., weights=path)."
        )


def _refuse_other_shapes(given: dict[str, Tensor], weights: Weights, model: nn.Module) -> None:
    wanted = model.state_dict()
    # Older checkpoints lack the counter, which nothing reads as long as the momentum is fixed.
    for key in wanted:
        if key.endswith("num_batches_tracked"):
            given.setdefault(key, torch.zeros_like(wanted[key], device="cpu"))
    if "logit_bias" in wanted:  # 0 is the same as none
        given.setdefault("logit_bias", torch.zeros(()))
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
        timm = isinstance(model.architecture.vision, TimmConfig)
        hint = "; position embeddings of timm backbones are not resampled" if timm else ""
        raise UserError(
            f"The weights in {weights.path} are not those of {model.architecture.name}: {'; '.join(said)}. "
            f"Choose the architecture that they belong to{hint}."
        )
    theirs, ours = weights.architecture, model.architecture
    if theirs is not None and (theirs.vision, theirs.text) != (ours.vision, ours.text):
        raise UserError(
            f"The weights in {weights.path} are of towers {theirs.vision} and {theirs.text}, which have the shapes, "
            f"but not the heads, of {ours.name}'s {ours.vision} and {ours.text}."
        )
