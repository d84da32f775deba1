"""Checkpoints of LoRA: an adapter and what else was trained, and the weights beneath by their hash."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.errors import UserError
from workbench.models import CLIP
from workbench.models.lora import merged_state_dict
from workbench.weights import hub
from workbench.weights.loading import fitted, named
from workbench.weights.state_dicts import Adapter, Weights

ADDED = "logit_bias"
"""What a run may add to the weights that it starts from, with the value 0."""


def tensors_sha256(state_dict: Mapping[str, Tensor]) -> str:
    """Return the sha256 of a model's tensors: names, types, shapes and numbers, without `logit_bias`."""
    digest = hashlib.sha256()
    for name in sorted(state_dict.keys() - {ADDED}):
        value = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def described_adapter(about: Mapping[str, Any], path: Path) -> Adapter | None:
    """Return what a checkpoint of a run says of its adapter; None where it has none.

    Raises:
        UserError: it makes no sense.
    """
    lora = about.get("lora")
    if lora is None:
        return None
    try:
        alpha, sha256 = float(lora["alpha"]), about.get("base_sha256")
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha {alpha}")
        if sha256 is None:
            return Adapter(alpha)
        origin = about["weights_source"]
        source, revision = str(origin["source"]), origin.get("revision")
        if source.startswith(hub.PREFIX) and revision is not None:
            source = f"{source.partition('@')[0]}@{revision}"
        return Adapter(alpha, str(named(source, str(about["architecture"]))), str(sha256))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: what it says of its LoRA adapter makes no sense ({error!r}).") from error


def merged(weights: Weights, base: Weights | None = None) -> Weights:
    """Return weights with their adapter added, if they have one.

    Args:
        weights: read, with an adapter or none.
        base: what is beneath the adapter, where the file of it has it not.

    Raises:
        UserError: the base is not what the adapter was trained on, or the two do not fit.
    """
    adapter, state_dict = weights.adapter, weights.state_dict
    if adapter is None:
        return weights
    try:
        if base is not None:
            state_dict = _on_base(weights, base)
        return replace(weights, state_dict=merged_state_dict(state_dict, adapter.alpha), adapter=None)
    except UserError as error:
        raise error if str(weights.path) in str(error) else UserError(f"{weights.path}: {error}") from error


def _on_base(weights: Weights, base: Weights) -> dict[str, Tensor]:
    if weights.architecture is None:
        raise UserError("It does not say what it is a model of.")
    with torch.device("meta"):
        model = CLIP(weights.architecture)
    wanted = model.state_dict()
    found = {key: value.to(wanted[key].dtype) for key, value in fitted(base, model, True)[0].items()}
    refuse_other_base(tensors_sha256(found), weights.adapter.base_sha256, str(base.path))
    for key in weights.state_dict.keys() & wanted.keys():
        if weights.state_dict[key].shape != wanted[key].shape:
            raise UserError(f"Its {key} has another shape than its base's.")
    return found | weights.state_dict


def refuse_other_base(found: str | None, recorded: str | None, where: str) -> None:
    """Refuse an adapter on weights that it was not trained on.

    Raises:
        UserError: the hashes differ.
    """
    if found != recorded:
        ours, theirs = (f"{value[:12]}..." if value else "none, as nothing was loaded" for value in (found, recorded))
        raise UserError(
            f"The LoRA adapter was trained on other weights than those of {where}: their sha256 was {theirs} and is "
            f"{ours}. Give it the weights that its run started from."
        )
