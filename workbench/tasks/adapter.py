"""What every task shares that learns something small beside a frozen CLIP, from pictures of classes."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from workbench import distributed
from workbench.errors import UserError
from workbench.evaluation import classification
from workbench.evaluation.encoding import class_vectors
from workbench.models.batch_norm import apply_policy
from workbench.tasks.labelled import LabelledTask

_PREFIX = "adapter."


class AdapterTask(LabelledTask):
    """Train an adapter by the cross-entropy of its logits; CLIP stays as it is, in evaluation mode.

    The loss of a step is the mean over the datamodule's `batch_size`, over all processes. The image tower never
    changes, and yet encodes each training picture anew: each visit is another random crop, so that nothing of it can
    be kept. Beside the metrics of `LabelledTask` are those of zero-shot classification: `zero_shot_top1` and so on.

    Args:
        training: see `TrainingTask` and `Task`. Names in `parameter_rules` are the adapter's, and there is nothing for
            `lora`.

    Attributes:
        adapter: the only module with parameters that train; `adapter....` in checkpoints.
    """

    def __init__(self, **training: Any):
        super().__init__(**training)
        if self.lora is not None or self.hparams.batch_norm not in (None, "frozen"):
            raise UserError(f"{type(self).__name__} keeps CLIP as it is: leave out lora and batch_norm.")
        self.adapter: nn.Module | None = None
        self._zero_shot: Tensor | None = None
        self._zero_shot_rows: list[tuple[Tensor, Tensor]] = []

    # For subclasses, beside `logits`

    def build_adapter(self) -> nn.Module:
        """Return the adapter for `clip` and `class_names`, both of which are there."""
        raise NotImplementedError

    def accept(self, adapter: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Look at the tensors of a checkpoint's adapter, and its `metadata`, before they are loaded.

        Raises:
            UserError: this run cannot go on with them or measure them.
        """
        raise NotImplementedError

    # The model

    def setup(self, stage: str) -> None:
        """Learn what the classes are, see `LabelledTask`."""
        super().setup(stage)
        self._zero_shot = None

    def configure_model(self) -> None:
        """Build and freeze CLIP, and build the adapter.

        Raises:
            UserError: the strategy shards the model.
        """
        if self.clip is not None:
            return
        self.refuse_sharding()
        super().configure_model()
        self.clip.eval().requires_grad_(False)
        self.adapter = self.build_adapter()

    def _settle_batch_norm(self) -> None:
        """Hold the statistics, as evaluation mode does, without the word about letting them follow the data."""
        apply_policy(self.clip, self.hparams.batch_norm, "frozen")

    def train(self, mode: bool = True) -> "AdapterTask":
        """Switch the mode of all but CLIP, whose batch normalisation keeps the statistics that it was trained with."""
        super().train(mode)
        if self.clip is not None:
            self.clip.eval()
        return self

    def trained_module(self) -> nn.Module:
        """Return the adapter."""
        return self.adapter

    @property
    def fitting(self) -> bool:
        """Whether this is a run that trains, in its training as in its validation."""
        return self.trainer.state.fn == TrainerFn.FITTING

    # Logits

    def zero_shot_logits(self, features: Tensor) -> Tensor:
        """Return CLIP's own logits [B, C] of un-normalised image features, by the data's names and templates."""
        if self._zero_shot is None:
            data = self.trainer.datamodule
            self._zero_shot = class_vectors(self, data.class_names, data.templates, data.context_length)
        return self.scaled_cosines(features, self._zero_shot)

    def scaled_cosines(self, features: Tensor, vectors: Tensor) -> Tensor:
        """Return exp(logit_scale) times the cosines of features [B, D] and normalised vectors [C, D], not in half."""
        with torch.autocast(features.device.type, enabled=False):
            features = normalized(features)
            return self.clip.logit_scale.exp() * features @ vectors.T.to(features.dtype)

    # Training

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of `image` uint8 [B, 3, S, S] and `label` [B]."""
        self.last_batch = batch  # for NanGuard to look into
        with torch.no_grad():
            features = self.encode_image_batch(batch["image"])
        loss = F.cross_entropy(self.logits(features), batch["label"])
        pictures = len(features) * distributed.world_size()
        self.log("train/loss", loss.detach(), sync_dist=distributed.is_distributed(), batch_size=pictures)
        self.log("train/loss_chance", self.chance_levels()["loss"], batch_size=pictures)
        return loss

    # Validation and test

    def on_validation_epoch_start(self) -> None:
        """Forget the rows of the last validation."""
        super().on_validation_epoch_start()
        self._zero_shot_rows.clear()

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Keep what becomes of each row, with the adapter and without."""
        features, labels = self.encode_image_batch(batch["image"]), batch["label"]
        self._rows.append((labels, *classification.outcomes(self.logits(features), labels)))
        self._zero_shot_rows.append((labels, classification.outcomes(self.zero_shot_logits(features), labels)[1]))

    test_step = validation_step

    def measured(self) -> dict[str, float]:
        """Return the metrics of the rows that were kept on all processes, and forget them."""
        labels, ranks = (distributed.gather_ragged(torch.cat(each)) for each in zip(*self._zero_shot_rows, strict=True))
        self._zero_shot_rows.clear()
        zero_shot = classification.accuracies(ranks, labels, len(self.class_names))
        return super().measured() | {f"zero_shot_{name}": value for name, value in zero_shot.items()}

    def chance_levels(self) -> dict[str, float]:
        """Return what guessing gives."""
        chance = super().chance_levels()
        return chance | {f"zero_shot_{name}": value for name, value in chance.items()}

    # Checkpoints

    def metadata(self) -> dict[str, Any]:
        """Add the classes to what is true of the weights."""
        return super().metadata() | {"class_names": self.class_names}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the model as every task does, and the adapter.

        Raises:
            UserError: there is none, or one of another task, other classes or another size.
        """
        super().on_load_checkpoint(checkpoint)
        found = {
            key.removeprefix(_PREFIX): value
            for key, value in checkpoint["state_dict"].items()
            if key.startswith(_PREFIX)
        }
        if found.keys() != self.adapter.state_dict().keys():
            raise UserError(
                f"--ckpt_path is of a run of another task, without what {type(self).__name__} learns; start from its "
                "weights with --model.init_args.weights."
            )
        self.accept(found, checkpoint["workbench"])


def normalized(features: Tensor) -> Tensor:
    """Return features [B, D] of length 1, in fp32 or better."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
