"""What is read from a file: a state dict with OpenAI's keys, and what is known about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from workbench.errors import UserError
from workbench.models import Architecture
from workbench.weights import zoo
from workbench.weights.files import refuse_strange_tensors

_WRAPPERS = ("module.", "_orig_mod.", "clip.", "model.")
_BESIDE = ("head.", "adapter.")
"""Of what tasks learn beside `clip.`: a classifier's head, an adapter."""


@dataclass(frozen=True)
class Adapter:
    """What a checkpoint says of the LoRA adapter in it.

    Attributes:
        alpha: of its settings.
        base: the weights that it was trained on, as `read_weights` takes them; None where the checkpoint has them.
        base_sha256: by which they are known, see `adapters.tensors_sha256`.
    """

    alpha: float
    base: str | None = None
    base_sha256: str | None = None


@dataclass
class Weights:
    """A state dict with OpenAI's keys, and what is known about it.

    Attributes:
        state_dict: in the type it was stored in.
        path: the file.
        architecture: what they were trained as; None where nothing says the activation.
        source: whose they are, in words.
        stated: the file says its activation; else it is its source's rule.
        revision: the commit of the hub.
        adapter: of LoRA, among the state dict's keys; `read_weights` returns it merged.
    """

    state_dict: dict[str, Tensor]
    path: Path
    architecture: Architecture | None
    source: str
    stated: bool = True
    revision: str | None = None
    adapter: Adapter | None = None

    def provenance(self, asked: str, resampled: Mapping[str, tuple[int, int]] | None = None) -> dict[str, Any]:
        """Return where they come from, as plain values.

        Args:
            asked: what was asked for.
            resampled: what `put_weights` returned.
        """
        found = {"source": asked, "kind": self.source, "sha256": zoo.sha256(self.path)}
        found["interpolated"] = {key: list(both) for key, both in (resampled or {}).items()}
        return found | ({"revision": self.revision} if self.revision else {})


def state_dict_of(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Return the model's part of a checkpoint of a run, under OpenAI's keys.

    Raises:
        UserError: it has none.
    """
    found = checkpoint.get("state_dict")
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no state dict: it is a checkpoint of something else.")
    refuse_strange_tensors(found, path)
    return without_wrappers(found)


def without_wrappers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off what DDP, torch.compile and tasks put in front of every key, and leave out what stands beside CLIP."""
    of_a_task = any(key.startswith("clip.") for key in state_dict)
    found = {key: value for key, value in state_dict.items() if not (of_a_task and key.startswith(_BESIDE))}
    while found and (prefix := next((p for p in _WRAPPERS if all(key.startswith(p) for key in found)), None)):
        found = {key.removeprefix(prefix): value for key, value in found.items()}
    return found
