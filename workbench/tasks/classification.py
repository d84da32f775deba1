"""Fine-tuning for classification: cross-entropy with a linear head on the image tower."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from workbench import distributed
from workbench.errors import Notice, UserError
from workbench.evaluation.encoding import class_vectors, encode_images
from workbench.evaluation.linear_probe import linear_probe
from workbench.evaluation.logistic_regression import LogisticRegression
from workbench.tasks.labelled import LabelledTask, require_same_classes
from workbench.tasks.training_images import encode_training_images

HEAD_INITS = ("zero_shot", "probe", "zeros")


class ClassificationTask(LabelledTask):
    """Train the image tower and a linear head on labelled pictures, from a head that knows something already.

    Logits are those of WiSE-FT's classifier (Wortsman et al. 2022, arXiv 2109.01903, and its code's `ImageClassifier`):
    the head on normalised features. `zero_shot` starts it from the vectors that the text tower gives the data's class
    names and templates, times exp(logit_scale), so that step 0 is zero-shot classification. `probe` is LP-FT (Kumar et
    al. 2022, arXiv 2202.10054): first the head alone on frozen features, to the end, then everything. The features are
    those that the head acts on, as there: projected, and here normalised, of the evaluation crop.

    The text tower and the temperature take no part and never change, so that zero-shot classification with the trained
    image tower, and averages of its weights with those of the start, remain possible.

    The batch of one optimizer step is the datamodule's `batch_size`, over all processes; the loss is the mean over it,
    however it is divided among processes, chunks or `accumulate_grad_batches` (but for batch normalisation that follows
    the batch, see `batch_norm` and `workbench.chunking`).

    Args:
        head_init: where the head starts: `zero_shot`, `probe` or `zeros`. A checkpoint brings its own.
        probe_strength: of the L2 penalty of `probe`, 1 / C of scikit-learn's `LogisticRegression`; null chooses it by
            accuracy on val, as `linear_probe` does, to which the head is not fitted then. It is fitted to each training
            picture once, under the evaluation transform, whatever `balanced` says.
        label_smoothing: share of the target that is spread evenly over the classes (0; val and test have none).
        encode_chunk: pictures encoded at a time on each process, see `workbench.chunking`; null for all at once.
        training: see `TrainingTask` and `Task`. Names in `parameter_rules` are `head.weight`, `head.bias`, and those of
            the image tower.

    Attributes:
        head: from embed_dim to as many logits as there are classes.
        start: the metrics of val before the first step, logged as `val/<name>_start`.
    """

    def __init__(
        self,
        *,
        head_init: str = "zero_shot",
        probe_strength: float | None = None,
        label_smoothing: float = 0.0,
        encode_chunk: int | None = None,
        **training: Any,
    ):
        super().__init__(**training)
        if head_init not in HEAD_INITS:
            raise UserError(f"head_init is {head_init!r}; there are {', '.join(HEAD_INITS)}.")
        if probe_strength is not None and (head_init != "probe" or probe_strength <= 0):
            raise UserError(
                f"probe_strength is {probe_strength}: give a number above 0, and together with head_init probe alone."
            )
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing is {label_smoothing}; give a share from 0 to below 1.")
        self.head: nn.Linear | None = None
        self.start: dict[str, float] = {}
        self._filled = False

    # The model

    def configure_model(self) -> None:
        """Build the model as every task does, hold all but the image tower, and add a head that is filled later.

        Raises:
            UserError: the strategy shards the model.
        """
        if self.head is not None:
            return
        self.refuse_sharding()
        super().configure_model()
        for name, parameter in self.clip.named_parameters():
            if not name.startswith("visual."):
                parameter.requires_grad_(False)
        self.head = nn.Linear(self.clip.architecture.embed_dim, len(self.class_names))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def method(self) -> str:
        """What the settings are compared with."""
        return "LP-FT" if self.hparams.head_init == "probe" else "classifier"

    def trained_module(self) -> nn.Module:
        """Return the image tower and the head: `visual....`, `head.weight`, `head.bias`."""
        return nn.ModuleDict({"visual": self.clip.visual, "head": self.head})

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits [B, C] of un-normalised image features [B, embed_dim], in the head's type."""
        with torch.autocast(features.device.type, enabled=False):
            return self.head(self.head_features(features))

    def head_features(self, features: Tensor) -> Tensor:
        """Return what the head acts on: normalised features [B, embed_dim]."""
        return F.normalize(features.to(self.head.weight.dtype), dim=-1)

    # Where the head starts

    @torch.no_grad()
    def on_fit_start(self) -> None:
        """Fill the head and measure where the run starts, unless a checkpoint has brought both."""
        if self._filled:
            return
        training = [part for part in self.modules() if part.training]
        self.eval()
        self._fill_head()
        if self.trainer.limit_val_batches:
            for batch in self.trainer.datamodule.val_dataloader():
                self.validation_step(self.trainer.strategy.batch_to_device(batch), 0)
            self.start = {f"val/{name}": value for name, value in self.measured().items()}
        for part in training:  # not self.train(), which would wake what is held in evaluation mode
            part.training = True

    def on_validation_start(self) -> None:
        """Fill the head where nothing has: what is measured then is where a run would start."""
        if not self._filled:
            self._fill_head()

    on_test_start = on_validation_start

    @torch.no_grad()
    def _fill_head(self) -> None:
        data, kind = self.trainer.datamodule, self.hparams.head_init
        weight, bias = torch.zeros_like(self.head.weight), torch.zeros_like(self.head.bias)
        if kind == "zero_shot":
            vectors = class_vectors(self, data.class_names, data.templates, data.context_length)
            weight = self.clip.logit_scale.exp() * vectors
        elif kind == "probe":
            weight, bias = self._probe()
        # Those of the first process, lest the last bit differ between machines.
        weight, bias = distributed.broadcast_object((weight.cpu(), bias.cpu()))
        self.head.weight.copy_(weight)
        self.head.bias.copy_(bias)
        self._filled = True

    def _probe(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the linear probe, fitted on train alone."""
        datasets, strength = self.trainer.datamodule.datasets, self.hparams.probe_strength
        if "train" not in datasets:
            raise UserError("The linear probe is fitted to training pictures, and the data have none.")
        self._require_all_classes(datasets["train"].labels)
        if strength is None and ("val" not in datasets or datasets["val"] is datasets["train"]):
            raise UserError(
                "There is no validation split to choose the linear probe's penalty by: hold some pictures out with "
                "--data.val_fraction 0.1, give a split, or set --model.init_args.probe_strength."
            )
        train, classes = self._features("train"), len(self.class_names)
        self._require_all_classes(train[1])  # some may not have been readable
        by = "as given"
        if strength is None:
            chosen = linear_probe(train, self._features("val"), classes)
            strength, by = chosen.strength, f"chosen by val ({chosen.validation:.1%})"
        fit = LogisticRegression(*train, classes).fit(strength)
        rank_zero_info(f"Linear probe: {len(train[1]):,} pictures, strength {strength:.3g} {by}, {fit.steps} steps.")
        if not fit.converged:
            rank_zero_warn(
                f"The linear probe of strength {strength:.3g} stopped short of its solution, as rounding hid the rest; "
                "fine-tuning starts from where it came to.",
                category=Notice,
            )
        return fit.classifier.weight, fit.classifier.bias

    def _features(self, split: str) -> tuple[Tensor, Tensor]:
        """Return what the head acts on, and the labels, of a split of all processes, under the evaluation transform."""
        features, labels = encode_images(self, self.trainer.datamodule.evaluation_dataloader(split), "label")
        return self.head_features(features), labels

    def _require_all_classes(self, labels: Tensor) -> None:
        without = sorted(set(range(len(self.class_names))) - set(labels.unique().tolist()))
        if without:
            raise UserError(
                f"There are no training pictures of {self.class_names[without[0]]!r}, so that the linear probe knows "
                "nothing of it: leave the class out, or take --model.init_args.head_init zero_shot."
            )

    # Training

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of `image` uint8 [B, 3, S, S] and `label` [B]."""
        self.last_batch = batch  # for NanGuard to look into
        logits = self.logits(encode_training_images(self, batch["image"], batch_idx))
        loss = F.cross_entropy(logits, batch["label"], label_smoothing=self.hparams.label_smoothing)
        pictures = len(logits) * distributed.world_size()
        self.log("train/loss", loss.detach(), sync_dist=distributed.is_distributed(), batch_size=pictures)
        self.log("train/loss_chance", self.chance_levels()["loss"], batch_size=pictures)
        return loss

    def on_validation_epoch_end(self) -> None:
        """Log `val/...` as every task of classes does, and beside it what it was before the first step."""
        super().on_validation_epoch_end()
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.log_of_all(self.start, suffix="_start")

    # Checkpoints

    def metadata(self) -> dict[str, Any]:
        """Add the classes, in the order of the head's rows, to what is true of the weights."""
        return super().metadata() | {"class_names": self.class_names}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add where the run started to what every task's checkpoint says."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["workbench"]["start"] = self.start

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the model as every task does, and the head.

        Raises:
            UserError: it is of another task, or for other classes than the data's.
        """
        super().on_load_checkpoint(checkpoint)
        theirs = checkpoint["workbench"]
        require_same_classes(theirs["class_names"], self.class_names)
        self.start, self._filled = theirs["start"], True
