"""A cache of few labelled pictures beside zero-shot classification (Tip-Adapter and Tip-Adapter-F)."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import AdamW, Optimizer

from workbench import distributed
from workbench.errors import Notice, UserError
from workbench.evaluation.cache_search import search, spaced
from workbench.evaluation.encoding import encode_images
from workbench.models.cache_adapter import CacheAdapter
from workbench.tasks.adapter import AdapterTask, normalized
from workbench.tasks.labelled import require_same_classes

_MOST_KEYS = 50_000
"""A step compares each picture with every key; ImageNet's 16 shots are 16,000."""

# Without finetune, both are as they should be.
warnings.filterwarnings("ignore", ".*this fit will run with no optimizer.*")
warnings.filterwarnings("ignore", ".*LearningRateMonitor.*no learning rate schedulers.*")


class TipAdapterTask(AdapterTask):
    """Add to the zero-shot logits those of a cache of the training pictures (Zhang et al. 2022, arXiv 2207.09519).

    Keys are the normalised image features of the training pictures, values their classes; a picture's logits are
    zero-shot's plus alpha exp(-beta (1 - cosine)) summed over the keys of each class. alpha and beta are those of a
    grid with which most pictures of val are classified right; no other split is looked at. So `val/top1` is of the very
    pictures that chose them, and flatters: `test/top1`, of the `test` verb, does not.

    Training-free, a `fit` is one pass: it ends after one batch, whose loss it logs, and one validation, whatever
    the Trainer's limits. With `finetune` (Tip-Adapter-F) it then trains the keys for the Trainer's epochs, and chooses
    anew with each validation. The authors' code keeps the epoch that is best on test; here `checkpoint.monitor:
    val/top1` keeps the one that is best on val.

    Args:
        finetune: train the keys, by AdamW, with `alpha` and `beta` held fixed.
        views: random crops of each training picture whose features a key is the mean of; 0 takes the one crop of
            evaluation.
        alpha: weight of the cache while the keys train.
        beta: sharpness of the cache while the keys train.
        alphas: to choose from: lowest, end (left out), and how many, evenly spaced. One value alone is [1.0, 1.0, 1].
        betas: the same for beta. Both are the published ranges of ImageNet; those of other sets reach up to 13.
        warmup: see `TrainingTask`; none by default, as published.
        training: see `AdapterTask`, `TrainingTask` and `Task`.
    """

    method = "Tip-Adapter-F"

    def __init__(
        self,
        *,
        finetune: bool = False,
        views: int = 10,
        alpha: float = 1.17,
        beta: float = 1.0,
        alphas: tuple[float, float, int] = (0.1, 3.0, 20),
        betas: tuple[float, float, int] = (0.1, 7.0, 200),
        warmup: int | float = 0.0,
        **training: Any,
    ):
        super().__init__(warmup=warmup, **training)
        if views < 0:
            raise UserError(f"views is {views}; give a number of random crops, or 0 for the crop of evaluation.")
        if alpha < 0 or beta < 0:
            raise UserError(f"alpha is {alpha} and beta {beta}; give numbers of at least 0.")
        for name, (lowest, end, count) in {"alphas": alphas, "betas": betas}.items():
            if lowest < 0 or end < lowest or count < 1:
                raise UserError(
                    f"{name} is {[lowest, end, count]}; give a lowest value of at least 0, an end that is no lower, "
                    "and how many to try."
                )
        self._built = False
        self._val: list[Tensor] = []

    @staticmethod
    def default_optimizer(parameters: Iterable) -> Optimizer:
        """Return AdamW with the paper's values."""
        return AdamW(parameters, lr=1e-3, eps=1e-4)

    # A run

    def setup(self, stage: str) -> None:
        """Start anew, and make a run without training one batch and one validation long."""
        super().setup(stage)
        trainer = self.trainer
        self._built = self._built and stage != "fit"  # a checkpoint brings its own later
        if stage == "fit" and not self.hparams.finetune:
            trainer.limit_train_batches, trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps = 1, 1, -1
            trainer.check_val_every_n_epoch, trainer.val_check_interval = 1, 1.0

    def build_adapter(self) -> CacheAdapter:
        """Return an empty cache, of the size that the training split asks for; a checkpoint brings its own.

        Raises:
            UserError: the cache would be too large, or there is nothing to choose alpha and beta by.
        """
        keys = self._keys_to_fill() if self.fitting else 0
        return CacheAdapter(keys, self.clip.architecture.embed_dim, len(self.class_names))

    def _keys_to_fill(self) -> int:
        datasets = self.trainer.datamodule.datasets
        rows, width = len(datasets["train"]), self.clip.architecture.embed_dim
        if rows > _MOST_KEYS:
            raise UserError(
                f"The cache would have {rows:,} keys of {width} numbers ({4 * rows * width / 2**20:,.0f} MB), each of "
                f"which is compared with every picture; at most {_MOST_KEYS:,} will do. Take some pictures of each "
                "class, such as --data.shots 16."
            )
        if datasets["val"] is datasets["train"]:
            raise UserError(
                "There is no validation split, and alpha and beta chosen by the training pictures, which are the keys "
                "themselves, would mean nothing: take --data.shots 16, which sets some of the others apart, or "
                "--data.val_fraction 0.1, or give a split with --data.val."
            )
        if not self.trainer.limit_val_batches:
            raise UserError("alpha and beta are chosen by validation, which --trainer.limit_val_batches 0 leaves out.")
        return rows

    def on_fit_start(self) -> None:
        """Fill the cache and choose, unless a checkpoint has brought both."""
        self._val = encode_images(self, self.trainer.datamodule.evaluation_dataloader("val"), "label")
        if not self._built:
            self._fill()
            self._choose()
            self._built = True
            keys, alpha, beta = self.adapter.keys, float(self.adapter.alpha), float(self.adapter.beta)
            rank_zero_info(
                f"Cache: {len(keys):,} keys ({keys.numel() * 4 / 2**20:.1f} MB); alpha {alpha:.3g} and beta {beta:.3g} "
                f"chosen by {len(self._val[1]):,} pictures of val."
            )

    def _fill(self) -> None:
        """Encode the training pictures; the features of a picture's views are averaged and then normalised."""
        data, views = self.trainer.datamodule, self.hparams.views
        loader = data.evaluation_dataloader("train")
        rows, total = loader.sampler.rows, len(data.datasets["train"])
        sums = torch.zeros_like(self.adapter.keys)
        labels, seen = (torch.zeros(total, dtype=torch.int64, device=self.device) for _ in range(2))
        for view in range(max(1, views)):
            if views:  # visits that no epoch has, so that training sees other crops than the keys are of
                loader.sampler.rows = [(-1 - view, row) for row in rows]
            features, index, label = encode_images(self, loader, "index", "label")
            sums.index_add_(0, index, features.to(sums.dtype))
            seen.index_add_(0, index, torch.ones_like(index))
            labels[index] = label
        unread = (seen < max(1, views)).nonzero().flatten().tolist()  # others stood in their place
        if unread:
            raise UserError(
                f"{len(unread)} training pictures could not be read, and each is a key of the cache; mend or leave "
                f"out {data.datasets['train'].place(unread[0])}."
            )
        self.adapter.fill(normalized(sums / max(1, views)), labels)

    def _choose(self) -> None:
        features, labels = self._val
        chosen = search(
            normalized(features),
            self.zero_shot_logits(features),
            labels,
            self.adapter.keys.float(),
            self.adapter.labels,
            spaced(*self.hparams.alphas),
            spaced(*self.hparams.betas),
        )
        alpha, beta = distributed.broadcast_object(chosen)
        self.adapter.alpha.fill_(alpha)
        self.adapter.beta.fill_(beta)

    def logits(self, features: Tensor) -> Tensor:
        """Return zero-shot's and the cache's logits together, [B, C]."""
        adapter, hparams = self.adapter, self.hparams
        training = self.training and hparams.finetune
        alpha, beta = (hparams.alpha, hparams.beta) if training else (adapter.alpha, adapter.beta)
        with torch.autocast(features.device.type, enabled=False):
            return self.zero_shot_logits(features) + adapter(normalized(features), alpha, beta)

    # Training and validation

    def configure_optimizers(self) -> dict[str, Any] | None:
        """Build the optimizer of the keys; none where they are not trained."""
        return super().configure_optimizers() if self.hparams.finetune else None

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Callable[[], Any]) -> None:
        """Step; without training, only compute the batch, as fp16's gradient scaler wants an optimizer."""
        if self.hparams.finetune:
            super().optimizer_step(epoch, batch_idx, optimizer, closure)
        else:
            closure()

    def on_validation_start(self) -> None:
        """Refuse to measure without a cache.

        Raises:
            UserError: there is no checkpoint to take it from.
        """
        if not self._built:
            raise UserError("There is no cache to measure; give a run's checkpoint with --ckpt_path.")

    def on_test_start(self) -> None:
        """Refuse to measure without a cache, and say what is measured where there is no test split."""
        self.on_validation_start()
        if "test" not in self.trainer.datamodule.datasets:
            rank_zero_warn(
                "There is no test split, so that test/... is of val, whose pictures chose alpha and beta.",
                category=Notice,
            )

    def on_validation_epoch_start(self) -> None:
        """Choose anew for keys that have changed; only where this run trains them."""
        super().on_validation_epoch_start()
        if self.fitting and self.hparams.finetune and not self.trainer.sanity_checking:
            self._choose()

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the split, and what was chosen."""
        super().on_validation_epoch_end()
        for name in ("alpha", "beta"):
            self.log(f"val/{name}", getattr(self.adapter, name), rank_zero_only=False, sync_dist=False)

    # Checkpoints

    def metadata(self) -> dict[str, Any]:
        """Add the classes of the keys to what is true of the weights."""
        return super().metadata() | {"key_labels": self.adapter.labels.tolist()}

    def accept(self, adapter: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Make room for the checkpoint's cache.

        Raises:
            UserError: it is of other classes, or, of a run that goes on, of other pictures.
        """
        require_same_classes(about["class_names"], self.class_names)
        found, ours = len(adapter["keys"]), len(self.adapter.keys)
        if self.fitting and found != ours:
            raise UserError(f"--ckpt_path has a cache of {found:,} keys and there are {ours:,} training pictures.")
        if found != ours:
            self.adapter = CacheAdapter(found, self.clip.architecture.embed_dim, len(self.class_names))
        self.adapter.labels.copy_(torch.tensor(about["key_labels"]))
        self._built = True
