"""A frozen teacher CLIP whose features or matches a student should keep, so that forgetting is penalised."""

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench import objectives, preprocessing, weights
from workbench.errors import UserError
from workbench.models import CLIP, Architecture, create_model
from workbench.objectives import GatheredPairs, gather_pairs


@dataclass
class Distillation:
    """What is kept of a teacher, added to the loss.

    Args:
        teacher: weights, as for a task's `weights`; null takes those, so that what they knew is not forgotten
            (Li & Hoiem 2016, arXiv 1606.09282).
        logits: weight of the distance between the two models' matches in the batch, see `losses.logit_distillation`.
        features: weight of the distance between their features, see `losses.feature_distillation`.
    """

    teacher: str | None = None
    logits: float = 1.0
    features: float = 0.0

    def __post_init__(self) -> None:
        if self.logits < 0 or self.features < 0 or self.logits + self.features == 0:
            raise UserError(
                f"distillation: logits is {self.logits} and features {self.features}; give weights of at least 0, and "
                "one above."
            )


class Teacher:
    """A frozen CLIP beside the one that is trained. Not a module of the task: its weights are not the run's.

    Args:
        distillation: what to keep.
        start: the task's own `weights`.
        student: what is trained.

    Raises:
        UserError: weights that cannot be had or read, or a teacher that cannot judge the student's batches.
    """

    def __init__(self, distillation: Distillation, start: str | None, student: Architecture):
        source = distillation.teacher or start
        if source is None:
            raise UserError(
                "distillation has no teacher: the run starts without weights, and distillation.teacher names none."
            )
        self.distillation = distillation
        read = weights.read_weights(weights.named(source, student.name))
        self.clip = _frozen(read)
        theirs = self.clip.architecture
        for setting in ("image_size", "context_length", "interpolation"):
            if getattr(theirs, setting) != getattr(student, setting):
                raise UserError(
                    f"The teacher {source} has {setting} {getattr(theirs, setting)} and the student "
                    f"{getattr(student, setting)}: they see the same batches, so these must be equal."
                )
        if distillation.features and theirs.embed_dim != student.embed_dim:
            raise UserError(
                f"The teacher {source} has features of {theirs.embed_dim} dimensions and the student of "
                f"{student.embed_dim}: distil logits alone, with distillation.features 0."
            )

    def to(self, device: torch.device) -> None:
        """Move to where the batches are."""
        self.clip.to(device)

    @torch.no_grad()
    def encode(self, batch: dict[str, Tensor]) -> GatheredPairs:
        """Encode this process's pairs and gather those of all processes."""
        theirs = self.clip.architecture
        image = self.clip.encode_image(preprocessing.normalize(batch["image"], theirs.mean, theirs.std))
        return gather_pairs(image, self.clip.encode_text(batch["text"]))

    def losses(self, pairs: GatheredPairs, logit_scale: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return this process's share of the terms that are asked for, weighted, by name.

        Args:
            pairs: the student's.
            logit_scale: the student's multiplier of the cosine.
            batch: of this process.
        """
        theirs, wanted = self.encode(batch), self.distillation
        found = {}
        if wanted.logits:
            scale = self.clip.logit_scale.exp()
            found["logits"] = wanted.logits * objectives.logit_distillation(pairs, logit_scale, theirs, scale)
        if wanted.features:
            found["features"] = wanted.features * objectives.feature_distillation(pairs, theirs)
        return found


def _frozen(read: weights.Weights) -> CLIP:
    clip = create_model(weights.architecture_for(read))
    weights.put_weights(clip, read)
    return clip.eval().requires_grad_(False)
