"""The linear probe as a run: features once, the protocol of the paper, and a classifier in the run folder."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from tqdm import tqdm

from workbench import distributed, weights
from workbench.atomic import written_atomically
from workbench.errors import Notice, UserError
from workbench.evaluation import classification
from workbench.evaluation.encoding import encode_images
from workbench.evaluation.linear_probe import Probe, linear_probe, mean_per_class, top1
from workbench.feature_cache import FeatureCache, identity
from workbench.models.batch_norm import apply_policy
from workbench.tasks.base import Task
from workbench.tasks.labelled import class_names_of, require_same_classes

METRICS = {"top1": top1, "mean_per_class": mean_per_class}
_SPLIT_OF = {"validate": "val", "test": "test"}

# As it should be: nothing is trained by gradients.
warnings.filterwarnings("ignore", ".*this fit will run with no optimizer.*")


class LinearProbeTask(Task):
    """Fit a linear classifier to a frozen model's features, see `workbench.evaluation.linear_probe` for the protocol.

    Features are un-normalised and from before the projection (Radford et al. 2021, appendix A.3): a ViT's class token
    behind the last LayerNorm, and a ResNet's attention pool before `c_proj`. The paper speaks of the ViTs alone there;
    that `c_proj` is the ResNets' projection says its author in openai/CLIP #51. Pictures are prepared as for
    evaluation, so each is encoded once; the cache keeps the features for other runs, as long as neither weights nor
    pictures nor precision change.

    `fit` is one step, whatever the Trainer's limits. It logs `val/probe_top1` and `val/probe_mean_per_class` (and
    `val/probe_top5` of more than ten classes) of the classifier that was fitted to train alone, with the strength that
    those very pictures chose, `val/probe_strength`. `test` measures the one that was fitted to train and val.

    Args:
        metric: what the strength is chosen by: `top1` or `mean_per_class`, which the paper reports for Oxford Pets,
            Caltech101, FGVC Aircraft and Flowers102.
        feature_cache: folder of the features; null takes `clip-workbench/features` in `XDG_CACHE_HOME`, else in
            `~/.cache`. They take 4 bytes for each number: 8 kB a picture with RN50, 3 kB with ViT-B/32.
        model: see `Task`; there is nothing for `lora` and `batch_norm`.

    Attributes:
        head: two linear maps from features to the classes: `of_train`, and `of_all`, fitted to train and val.
        found: what the protocol came to: `strength`, `metric`, `curve`, `converged`; empty before.
    """

    def __init__(self, *, metric: str = "top1", feature_cache: str | None = None, **model: Any):
        super().__init__(**model)
        if metric not in METRICS:
            raise UserError(f"metric is {metric!r}; there are {' and '.join(METRICS)}.")
        if self.lora is not None or self.hparams.batch_norm not in (None, "frozen"):
            raise UserError("LinearProbeTask keeps CLIP as it is: leave out lora and batch_norm.")
        self.cache = FeatureCache(feature_cache)
        self.head: nn.ModuleDict | None = None
        self.class_names: list[str] = []
        self.found: dict[str, Any] = {}
        self.total_steps = 1
        self._visual_sha256: str | None = None
        self._measured: dict[str, float] = {}

    # The model

    def setup(self, stage: str) -> None:
        """Learn what the classes are, and make the run one batch long.

        Raises:
            UserError: the data have no classes, or lack a split that is needed.
        """
        trainer, data = self.trainer, getattr(self.trainer, "datamodule", None)
        self.class_names = class_names_of(data, type(self).__name__)
        if stage == "fit":
            if data.datasets.get("val") in (None, data.datasets["train"]):
                raise UserError(
                    "There is no validation split, and the training pictures cannot choose the strength of their own "
                    "penalty: hold some out with --data.val_fraction 0.2, or give a split."
                )
            trainer.limit_train_batches, trainer.limit_val_batches, trainer.log_every_n_steps = 1, 0, 1
            trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps = 1, -1
            self.found = {}  # a checkpoint brings its own later
        elif (split := _SPLIT_OF[stage]) not in data.datasets:
            others = "; `validate` measures val" if split == "test" else ""
            raise UserError(f"There is no {split} split to measure the probe on: give one to the data{others}.")
        else:
            trainer.limit_val_batches = trainer.limit_test_batches = 1

    def configure_model(self) -> None:
        """Build and freeze CLIP, and add two heads that are filled later.

        Raises:
            UserError: the strategy shards the model, or the precision would round the classifier.
        """
        if self.clip is not None:
            return
        self.refuse_sharding()
        super().configure_model()
        self.clip.requires_grad_(False)
        sizes = self.clip.visual.pooled_dim, len(self.class_names)
        self.head = nn.ModuleDict({name: nn.Linear(*sizes) for name in ("of_train", "of_all")})
        if self.head["of_all"].weight.dtype in (torch.float16, torch.bfloat16):
            raise UserError(
                f"Precision {self.trainer.precision} would round the classifier; take --trainer.precision bf16-mixed, "
                "which encodes as fast."
            )

    def _settle_batch_norm(self) -> None:
        """Hold the statistics, as evaluation mode does, without the word about letting them follow the data."""
        apply_policy(self.clip, self.hparams.batch_norm, "frozen")

    # Features

    def features(self, split: str) -> tuple[Tensor, Tensor]:
        """Return features [N, D] and labels [N] of a split, from the cache where they are there, else for it.

        They are fp32, of all processes, and in the order of the split; pictures that cannot be read are left out.
        """
        data = self.trainer.datamodule
        path = self.cache.path(model=self._identity(), pictures=self._of_first(lambda: identity(data.datasets[split])))
        found = self.cache.read(path)
        if all(distributed.gather_objects(found is not None)):
            rank_zero_info(f"Features of {split}: {len(found['label']):,} pictures, from {path}.")
        else:
            rank_zero_info(f"Features of {split}: {len(data.datasets[split]):,} pictures to encode.")
            batches = tqdm(
                data.evaluation_dataloader(split),
                desc=f"Encoding {split}",
                leave=False,
                disable=None if distributed.rank() == 0 else True,  # None: where there is no terminal
            )
            self.clip.eval()  # and so it stays
            features, labels, rows = encode_images(_BeforeProjection(self), batches, "label", "index")
            order = rows.argsort()
            found = {"features": features[order], "label": labels[order]}
            if distributed.rank() == 0:
                self._keep(path, found)
        return found["features"].to(self.device), found["label"].to(self.device)

    def _keep(self, path: Path, found: dict[str, Tensor]) -> None:
        try:
            self.cache.write(path, found)
        except OSError as error:
            rank_zero_warn(
                f"The features cannot be kept in {path.parent} ({error.strerror}); the next run encodes again. Give a "
                "folder that can be written with --model.init_args.feature_cache.",
                category=Notice,
            )

    def _identity(self) -> dict[str, Any]:
        """Return what features follow from besides pictures."""
        if self._visual_sha256 is None:
            self._visual_sha256 = self._of_first(lambda: weights.tensors_sha256(self.clip.visual.state_dict()))
        return {
            "weights": self._visual_sha256,
            "architecture": weights.description(self.clip.architecture),  # with activation, size, mean, std, ...
            "precision": str(self.trainer.precision),
            "device": self.device.type,
        }

    @staticmethod
    def _of_first(compute: Callable[[], str]) -> str:
        return distributed.broadcast_object(compute() if distributed.rank() == 0 else "")

    # A run

    def configure_optimizers(self) -> None:
        """Return none."""

    def on_fit_start(self) -> None:
        """Encode and fit, unless a checkpoint has brought the result.

        Raises:
            UserError: features that no classifier can be fitted to.
        """
        if self.found:
            return
        train, val = self.features("train"), self.features("val")
        probe = linear_probe(train, val, len(self.class_names), METRICS[self.hparams.metric])
        self._take(probe)
        self._measured = self._measure("of_train", *val)
        rows = "".join(f"\n  {strength:10.3g}  {value:.2%}" for strength, value in probe.curve.items())
        rank_zero_info(
            f"Linear probe: {len(train[1]):,} pictures of train and {len(val[1]):,} of val, {train[0].shape[1]} "
            f"features. {self.hparams.metric} on val by strength of the penalty:{rows}\n"
            f"Chosen: {probe.strength:.3g} (scikit-learn's C = {1 / probe.strength:.3g}), {probe.validation:.2%}."
        )
        if not probe.converged:
            rank_zero_warn(
                "Not every fit of the linear probe came within its tolerance of the solution; the features are as good "
                "as constant, or of sizes that fp32 cannot hold together.",
                category=Notice,
            )

    @torch.no_grad()
    def _take(self, probe: Probe) -> None:
        for name, classifier in (("of_train", probe.of_train), ("of_all", probe.classifier)):
            # Those of the first process, lest the last bit differ between machines.
            weight, bias = distributed.broadcast_object((classifier.weight.cpu(), classifier.bias.cpu()))
            self.head[name].weight.copy_(weight)
            self.head[name].bias.copy_(bias)
        self.found = distributed.broadcast_object(
            {
                "strength": probe.strength,
                "metric": self.hparams.metric,
                "curve": [list(row) for row in probe.curve.items()],
                "converged": probe.converged,
            }
        )

    def on_train_start(self) -> None:
        """Write `probe.json` into the run's folder: the curve, and what was chosen."""
        folder = getattr(self.trainer.logger, "log_dir", None)
        if folder and distributed.rank() == 0:
            with written_atomically(Path(folder, "probe.json"), "w") as file:
                json.dump(self.found, file, indent=2)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Log what was found; the batch itself is not looked at, and the loss, which the Trainer wants, is 0."""
        self._log("val", {**self._measured, "strength": self.found["strength"]})
        return sum((parameter * 0).sum() for parameter in self.head.parameters())

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Callable[[], Any]) -> None:
        """Only compute the batch: fp16's gradient scaler wants an optimizer."""
        closure()

    def on_validation_start(self) -> None:
        """Refuse to measure without a classifier.

        Raises:
            UserError: there is no checkpoint to take it from.
        """
        if not self.found:
            raise UserError("There is no classifier to measure; give a run's checkpoint with --ckpt_path.")

    on_test_start = on_validation_start

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Do nothing: the features of the whole split may be in the cache."""

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log `val/...` of the classifier that was fitted to train alone."""
        self._log("val", self._measure("of_train", *self.features("val")))

    def on_test_epoch_end(self) -> None:
        """Log `test/...` of the classifier that was fitted to train and val."""
        self._log("test", self._measure("of_all", *self.features("test")))

    @torch.no_grad()
    def _measure(self, head: str, features: Tensor, labels: Tensor) -> dict[str, float]:
        """Return the accuracies of a head."""
        ranks = classification.outcomes(self.head[head](features), labels)[1]
        return classification.accuracies(ranks, labels, len(self.class_names))

    def _log(self, split: str, metrics: dict[str, float]) -> None:
        """Log what every process holds the same of, with its chance level."""
        chance = classification.chance(len(self.class_names))
        for name, value in metrics.items():
            self.log(f"{split}/probe_{name}", value, rank_zero_only=False, sync_dist=False)
            if name in chance:
                self.chance[f"{split}/probe_{name}"] = chance[name]

    # Checkpoints

    def metadata(self) -> dict[str, Any]:
        """Add the classes, in the order of the heads' rows, and what was found to what is true of the weights."""
        return super().metadata() | {"class_names": self.class_names, "probe": self.found}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the model as every task does, and the classifier.

        Raises:
            UserError: there is none, or one for other classes than the data's.
        """
        super().on_load_checkpoint(checkpoint)
        theirs = checkpoint["workbench"]
        if not theirs.get("probe"):
            raise UserError(
                "--ckpt_path is of a run without a linear probe; take its weights with --model.init_args.weights."
            )
        require_same_classes(theirs["class_names"], self.class_names)
        self.found = theirs["probe"]


class _BeforeProjection:
    """What `encode_images` asks for features before the projection."""

    def __init__(self, task: LinearProbeTask):
        self.task, self.device = task, task.device

    def encode_image_batch(self, images: Tensor) -> Tensor:
        """Encode uint8 pixels [B, 3, S, S] in the trainer's precision; un-normalised [B, D]."""
        with self.task._precision():
            return self.task.clip.visual.pool(self.task.normalize(images))
