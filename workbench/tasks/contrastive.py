"""Contrastive learning on image-text pairs: pre-training and fine-tuning, which differ by their YAML alone."""

import math
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from workbench import distributed, losses
from workbench.chunking import encode_in_chunks
from workbench.errors import UserError
from workbench.evaluation import embedding_space, retrieval
from workbench.optimization import (
    ParameterRule,
    group_table,
    parameter_groups,
    schedule,
    use_fused,
    warmup_steps,
)
from workbench.randomness import mixed_seed
from workbench.tasks.base import Task

OptimizerFactory = Callable[[Iterable], Optimizer]
RECALL_AT = (1, 5, 10)


class ContrastiveTask(Task):
    """Train both towers so that pairs find each other in the batch (Radford et al. 2021, section 2.3).

    The batch of one optimizer step is the datamodule's `batch_size`, over all processes. `encode_chunk` makes it
    larger than memory allows. Lightning's `accumulate_grad_batches` does *not*: each of its micro-batches is
    a contrastive batch of its own, with fewer negatives.

    Args:
        architecture: see `Task`, as for `weights`, `image_size`, `context_length`, `activation`,
            `interpolate_positions`, `init`, `temperature_init`, `patch_dropout`, `gradient_checkpointing` and
            `compile`.
        weights: see `Task`.
        image_size: see `Task`.
        context_length: see `Task`.
        activation: see `Task`.
        interpolate_positions: see `Task`.
        init: see `Task`.
        temperature_init: see `Task`.
        patch_dropout: see `Task`.
        gradient_checkpointing: see `Task`.
        compile: see `Task`.
        optimizer: AdamW with the paper's values by default: lr 5e-4, betas 0.9 / 0.98, eps 1e-6, weight
            decay 0.2 (tables 18 and 19, ViT). Adam's fused kernels are used where the device has them.
        warmup: linear warm-up, in steps (an int) or as a fraction of the run (a float below 1).
        schedule: what follows the warm-up, per step: `cosine`, `linear` or `constant`.
        parameter_rules: ordered table of patterns for freezing, learning rates and weight decay, see
            `workbench.optimization.ParameterRule`. The temperature's own learning rate is a row:
            `{match: logit_scale, lr: 0.1}`.
        freeze_temperature: keep `logit_scale` as it starts.
        temperature_end: not learned but scheduled: from `temperature_init` to this, geometrically, over the run.
        logit_scale_max: clamp of exp(logit_scale), applied after each optimizer step (100, section 2.5).
        encode_chunk: pairs encoded at a time on each process, see `workbench.chunking`; null for all at once.
    """

    def __init__(
        self,
        architecture: str | None = None,
        weights: str | None = None,
        image_size: int | None = None,
        context_length: int | None = None,
        activation: str | None = None,
        interpolate_positions: bool = False,
        init: str | dict[str, str] = "openai",
        temperature_init: float = 0.07,
        patch_dropout: float = 0.0,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        optimizer: OptimizerFactory = lambda p: AdamW(p, lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2),
        warmup: int | float = 0.1,
        schedule: str = "cosine",
        parameter_rules: list[ParameterRule] | None = None,
        freeze_temperature: bool = False,
        temperature_end: float | None = None,
        logit_scale_max: float = 100.0,
        encode_chunk: int | None = None,
    ):
        super().__init__(
            architecture,
            weights,
            image_size,
            context_length,
            activation,
            interpolate_positions,
            init,
            temperature_init,
            patch_dropout,
            gradient_checkpointing,
            compile,
        )
        # Not the optimizer: a callable would not load with weights_only=True. config.yaml has it.
        self.save_hyperparameters(ignore=["optimizer", "parameter_rules"])
        if temperature_end is not None and (freeze_temperature or temperature_end <= 0):
            raise UserError(
                f"temperature_end is {temperature_end}: give a temperature above 0, and not together with "
                "freeze_temperature."
            )
        self.optimizer_factory = optimizer
        self.parameter_rules = parameter_rules or []
        self.total_steps: int | None = None
        self._step_seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        self._features: list[tuple[Tensor, Tensor]] = []
        self.last_batch: dict[str, Tensor] | None = None

    def configure_model(self) -> None:
        """Build the model as every task does, and hold the temperature where it is not learned."""
        super().configure_model()
        if self.hparams.freeze_temperature or self.hparams.temperature_end is not None:
            self.clip.logit_scale.requires_grad_(False)

    # Training

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of `image` uint8 [B, 3, S, S] and `text` [B, L]."""
        self.last_batch = batch  # for NanGuard to look into
        image_features, text_features = self.encode(batch, batch_idx)
        logit_scale = self.clip.logit_scale.exp()
        loss = gathered_contrastive(image_features, text_features, logit_scale)
        pairs = len(batch["image"]) * distributed.world_size()
        self.log("train/loss", loss.detach(), sync_dist=distributed.is_distributed(), batch_size=pairs)
        self.log("train/loss_chance", math.log(pairs), batch_size=pairs)
        self.log("train/logit_scale", logit_scale.detach(), batch_size=pairs)
        self.log("train/temperature", 1 / logit_scale.detach(), batch_size=pairs)
        return loss

    def encode(self, batch: dict[str, Tensor], batch_idx: int) -> tuple[Tensor, Tensor]:
        """Encode this process's pairs, in chunks of `encode_chunk`; two un-normalised [B, embed_dim]."""
        chunk, images = self.hparams.encode_chunk, batch["image"]

        def encode_image(images: Tensor, *options: Tensor) -> Tensor:
            return self.clip.encode_image(self.normalize(images), *options)

        options = [self._patches(len(images), batch_idx)] if self.hparams.patch_dropout else []
        return (
            encode_in_chunks(encode_image, images, *options, chunk=chunk, module=self.clip.visual),
            encode_in_chunks(self.clip.encode_text, batch["text"], chunk=chunk),
        )

    def _patches(self, pairs: int, batch_idx: int) -> Tensor:
        """Draw which patches of this process's pictures stay, from (seed, epoch, batch) for those of all processes.

        So neither their number nor a resumption changes what is dropped.
        """
        generator = torch.Generator(self.device).manual_seed(mixed_seed(self._step_seed, self.current_epoch, batch_idx))
        patches = self.clip.visual.draw_patches(pairs * distributed.world_size(), generator)
        return patches[distributed.rank() * pairs :][:pairs]

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

    def configure_optimizers(self) -> dict[str, Any]:
        """Build the optimizer over the rules' groups, and the per-step schedule; say once what trains how."""
        self.total_steps = total_optimizer_steps(self.trainer)
        warmup = warmup_steps(self.hparams.warmup, self.total_steps)
        try:
            probe = self.optimizer_factory([torch.nn.Parameter(torch.zeros(1))]).defaults
        except (ValueError, TypeError) as error:
            raise UserError(f"The optimizer refuses its settings: {error}.") from error
        groups = parameter_groups(self.clip, probe.get("weight_decay", 0.0), self.parameter_rules)
        for group in groups:
            group["lr"] = probe["lr"] * group["lr_multiplier"]
        table = group_table(self.clip, groups)
        rank_zero_info(f"{self.total_steps} optimizer steps, {warmup} of them warm-up. What is trained:\n{table}")
        optimizer = self.optimizer_factory(groups)
        use_fused(optimizer)
        scheduler = LambdaLR(optimizer, schedule(self.hparams.schedule, warmup, self.total_steps))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "train/learning_rate"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the length of the schedule to what every task's checkpoint says."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["workbench"]["total_steps"] = self.total_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the model as every task does; say so when the schedule's length has changed."""
        super().on_load_checkpoint(checkpoint)
        before = checkpoint["workbench"].get("total_steps")
        if self.trainer.training and before is not None:
            now = total_optimizer_steps(self.trainer)
            if before != now:
                rank_zero_info(
                    f"The checkpoint's run was {before} steps long and this one is {now}: the schedule is "
                    "that of the new length, so the learning rate jumps here."
                )

    # Validation and test

    def on_validation_epoch_start(self) -> None:
        """Forget the features of the last validation."""
        self._features.clear()

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Keep a batch's features; the metrics are those of the whole split."""
        self._features.append(
            (self.encode_image_batch(batch["image"]).float(), self.encode_text_batch(batch["text"]).float())
        )

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss`, retrieval and the geometry of the embedding over the whole split."""
        self._log_split("val")

    def on_test_epoch_end(self) -> None:
        """Log the same as `test/...`."""
        self._log_split("test")

    def _log_split(self, split: str) -> None:
        image, text = (distributed.gather_ragged(torch.cat(side)) for side in zip(*self._features, strict=True))
        self._features.clear()
        pairs = len(image)
        metrics: dict[str, Tensor | float] = {
            "loss": losses.contrastive_in_blocks(image, text, self.clip.logit_scale.exp()),
            "loss_chance": math.log(pairs),
            "alignment": embedding_space.alignment(image, text),
            "uniformity": embedding_space.uniformity(torch.cat([image, text])),
            "modality_gap": embedding_space.modality_gap(image, text),
            **retrieval.recall_at_k(image, text, ks=RECALL_AT),
        }
        for k in RECALL_AT:
            for direction in ("image_to_text", "text_to_image"):
                self.chance[f"{split}/{direction}_recall@{k}"] = retrieval.chance_recall(k, pairs)
        self.chance[f"{split}/loss"] = math.log(pairs)
        # Every process holds the same gathered features, so nothing is left to reduce.
        named = {f"{split}/{name}": value for name, value in metrics.items()}
        self.log_dict(named, batch_size=pairs, rank_zero_only=False, sync_dist=False)


def gathered_contrastive(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """Return this process's share of the contrastive loss over the pairs of all processes.

    Args:
        image_features: [B, D] of this process, un-normalised.
        text_features: [B, D].
        logit_scale: scalar multiplier of the cosine.
    """
    if not distributed.is_distributed():
        return losses.contrastive(image_features, text_features, logit_scale)
    return losses.contrastive(
        image_features,
        text_features,
        logit_scale,
        all_image_features=distributed.gather_features(image_features),
        all_text_features=distributed.gather_features(text_features),
        offset=distributed.rank() * len(image_features),
    )


def total_optimizer_steps(trainer: Any) -> int:
    """Return the optimizer steps of the whole run, from the datamodule and the Trainer's limits.

    Not `trainer.estimated_stepping_batches`: reading it builds the loaders before a checkpoint is restored
    (Lightning #20550).
    """
    batches = trainer.datamodule.batches_per_epoch
    per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    epochs = trainer.max_epochs if trainer.max_epochs not in (None, -1) else math.inf
    total = per_epoch * epochs
    if trainer.max_steps not in (None, -1):
        total = min(total, trainer.max_steps)
    if total == math.inf:
        raise UserError("The run has no end, so the schedule has none; set trainer.max_epochs or trainer.max_steps.")
    if total < 1:
        raise UserError(
            f"The run has no step: {batches} batches an epoch, max_epochs {trainer.max_epochs}, "
            f"max_steps {trainer.max_steps}."
        )
    return int(total)
