"""Contrastive learning on image-text pairs: pre-training and fine-tuning, which differ by their YAML alone."""

import math
from typing import Any

import torch
from torch import Tensor

from workbench import distributed, losses, objectives
from workbench.chunking import encode_in_chunks
from workbench.errors import UserError
from workbench.evaluation import embedding_space, retrieval
from workbench.objectives import GatheredPairs, gather_pairs
from workbench.positives import NO_LABELS, check_positives, positive_groups
from workbench.tasks.distillation import Distillation, Teacher
from workbench.tasks.training import TrainingTask
from workbench.tasks.training_images import encode_training_images

LOSSES = ("softmax", "sigmoid")
RECALL_AT = (1, 5, 10)


class ContrastiveTask(TrainingTask):
    """Train both towers so that pairs find each other in the batch (Radford et al. 2021, section 2.3).

    The batch of one optimizer step is the datamodule's `batch_size`, over all processes. `encode_chunk` makes it
    larger than memory allows. Lightning's `accumulate_grad_batches` does *not*: each of its micro-batches is
    a contrastive batch of its own, with fewer negatives.

    Args:
        loss: `softmax` (CLIP), or `sigmoid` (SigLIP), which adds a learned `logit_bias` to models without: it starts
            where the first batch's loss is lowest, -ln(batch_size - 1) for a new model.
        positives: which other pairs of the batch are positives of a pair rather than negatives: `label` those of its
            class, or of its picture under `several_captions: all`; `caption` those of equal captions; `pair` none, as
            CLIP and FLYP do. Null is `label` where the data have labels.
        distillation: keep to a frozen teacher's matches or features, see `Distillation`.
        freeze_temperature: keep `logit_scale` as it starts.
        temperature_end: not learned but scheduled: from `temperature_init` to this, geometrically, over the run.
        logit_scale_max: clamp of exp(logit_scale), applied after each optimizer step (100, section 2.5).
        encode_chunk: pairs encoded at a time on each process, see `workbench.chunking`; null for all at once.
        training: see `TrainingTask` and `Task`.
    """

    def __init__(
        self,
        *,
        loss: str = "softmax",
        positives: str | None = None,
        distillation: Distillation | None = None,
        freeze_temperature: bool = False,
        temperature_end: float | None = None,
        logit_scale_max: float = 100.0,
        encode_chunk: int | None = None,
        **training: Any,
    ):
        super().__init__(**training)
        if temperature_end is not None and (freeze_temperature or temperature_end <= 0):
            raise UserError(
                f"temperature_end is {temperature_end}: give a temperature above 0, and not together with "
                "freeze_temperature."
            )
        if loss not in LOSSES:
            raise UserError(f"loss is {loss!r}; there are {' and '.join(LOSSES)}.")
        check_positives(positives)
        self.distillation = distillation
        self._starts_bias = False
        self._teachers: list[Teacher] = []  # in a list, lest its weights be taken for the run's
        self._features: list[tuple[Tensor, ...]] = []
        self.last_batch: dict[str, Tensor] | None = None

    @property
    def method(self) -> str:
        """What the settings are compared with."""
        if not any(parameter.requires_grad for parameter in self.clip.visual.parameters()):
            return "LiT"
        return "FLYP" if getattr(self.trainer.datamodule, "class_names", None) else "contrastive"

    def configure_model(self) -> None:
        """Build the model as every task does, with a bias for the sigmoid loss, and hold what is not learned."""
        super().configure_model()
        if self.hparams.loss == "sigmoid":
            self._starts_bias = self.clip.learn_logit_bias()
        if self.hparams.freeze_temperature or self.hparams.temperature_end is not None:
            self.clip.logit_scale.requires_grad_(False)

    def on_fit_start(self) -> None:
        """Refuse data without the labels that are asked for, and fetch the teacher, before anything is trained."""
        train = getattr(self.trainer.datamodule, "datasets", {}).get("train")
        if self.hparams.positives == "label" and getattr(train, "labels", None) is None:
            raise UserError(NO_LABELS)
        if self.distillation is not None:
            self._teachers = [Teacher(self.distillation, self.hparams.weights, self.clip.architecture)]
            self._teachers[0].to(self.device)

    # Training

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of `image` uint8 [B, 3, S, S], `text` [B, L] and maybe `label` [B]."""
        self.last_batch = batch  # for NanGuard to look into
        pairs = gather_pairs(*self.encode(batch, batch_idx), positive_groups(batch, self.hparams.positives))
        logit_scale = self.clip.logit_scale.exp()
        count = len(pairs.everyone[0])
        parts = {"loss": self._loss(pairs, logit_scale)}
        chance = math.log(count) if self.hparams.loss == "softmax" else losses.sigmoid_chance(count)
        for teacher in self._teachers:
            found = teacher.losses(pairs, logit_scale, batch)
            parts |= {f"distillation_{name}": value for name, value in found.items()}
        if pairs.groups is not None and self.hparams.loss == "softmax":
            self._log("loss_least", losses.least(pairs.groups, pairs.all_groups), count)
        for name, value in parts.items():
            self._log(name, value.detach(), count)
        self.log("train/loss_chance", chance, batch_size=count)
        self.log("train/logit_scale", logit_scale.detach(), batch_size=count)
        self.log("train/temperature", 1 / logit_scale.detach(), batch_size=count)
        if self.hparams.loss == "sigmoid":
            self.log("train/logit_bias", self.clip.logit_bias.detach(), batch_size=count)
        return sum(parts.values())

    def _log(self, name: str, value: Tensor, count: int) -> None:
        """Log a mean over this process's rows as one over all."""
        self.log(f"train/{name}", value, sync_dist=distributed.is_distributed(), batch_size=count)

    def _loss(self, pairs: GatheredPairs, logit_scale: Tensor) -> Tensor:
        if self.hparams.loss == "softmax":
            return objectives.softmax(pairs, logit_scale)
        if self._starts_bias:
            self._starts_bias = False
            self.clip.logit_bias.data.fill_(objectives.starting_bias(pairs, logit_scale))
        return objectives.sigmoid(pairs, logit_scale, self.clip.logit_bias)

    def encode(self, batch: dict[str, Tensor], batch_idx: int) -> tuple[Tensor, Tensor]:
        """Encode this process's pairs, in chunks of `encode_chunk`; two un-normalised [B, embed_dim]."""
        return (
            encode_training_images(self, batch["image"], batch_idx),
            encode_in_chunks(self.clip.encode_text, batch["text"], chunk=self.hparams.encode_chunk),
        )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then clamp or schedule the temperature: the forward pass always sees the parameter itself."""
        super().optimizer_step(*args, **kwargs)
        self._schedule_temperature(self.trainer.global_step + 1)
        self.clamp_logit_scale(self.hparams.logit_scale_max)

    @torch.no_grad()
    def _schedule_temperature(self, step: int) -> None:
        end = self.hparams.temperature_end
        if end is None:
            return
        progress = min(1.0, step / self.total_steps)
        start = self.hparams.temperature_init
        self.clip.logit_scale.fill_(-(math.log(start) + progress * (math.log(end) - math.log(start))))

    # Validation and test

    def on_validation_epoch_start(self) -> None:
        """Forget the features of the last validation."""
        self._features.clear()

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Keep a batch's features, and its labels if it has some; the metrics are those of the whole split."""
        features = self.encode_image_batch(batch["image"]), self.encode_text_batch(batch["text"])
        groups = positive_groups(batch, None)
        self._features.append((*(side.float() for side in features), *([] if groups is None else [groups])))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss`, retrieval and the geometry of the embedding over the whole split.

        The loss is softmax's whatever is trained: the sigmoid loss's bias is that of one size of batch. Of labelled
        data, any of a class's texts and pictures is a right answer.
        """
        self._log_split("val")

    def on_test_epoch_end(self) -> None:
        """Log the same as `test/...`."""
        self._log_split("test")

    def _log_split(self, split: str) -> None:
        image, text, *labels = (
            distributed.gather_ragged(torch.cat(side)) for side in zip(*self._features, strict=True)
        )
        self._features.clear()
        pairs = len(image)
        groups = labels[0] if labels else torch.arange(pairs, device=image.device)
        positives = None if self.hparams.positives == "pair" else groups
        metrics: dict[str, Tensor | float] = {
            "loss": losses.contrastive_in_blocks(image, text, self.clip.logit_scale.exp(), positives),
            "loss_chance": math.log(pairs),
            "alignment": embedding_space.alignment(image, text),
            "uniformity": embedding_space.uniformity(torch.cat([image, text])),
            "modality_gap": embedding_space.modality_gap(image, text),
            **retrieval.recall_at_k(image, text, ks=RECALL_AT, groups=groups),
        }
        for k in RECALL_AT:
            for direction in ("image_to_text", "text_to_image"):
                self.chance[f"{split}/{direction}_recall@{k}"] = retrieval.chance_recall(k, groups)
        self.chance[f"{split}/loss"] = math.log(pairs)
        # Every process holds the same gathered features, so nothing is left to reduce.
        named = {f"{split}/{name}": value for name, value in metrics.items()}
        self.log_dict(named, batch_size=pairs, rank_zero_only=False, sync_dist=False)
