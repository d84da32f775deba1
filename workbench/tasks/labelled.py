"""What every task shares that learns from pictures of classes: which classes, and how well a split is told apart."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from workbench import distributed
from workbench.errors import UserError
from workbench.evaluation import classification
from workbench.tasks.training import TrainingTask


class LabelledTask(TrainingTask):
    """A task with logits for the classes of the data.

    Logged of val and test, over the whole split and all processes: `loss` (cross-entropy), `top1`, `mean_per_class`,
    and `top5` of more than ten classes.

    Args:
        training: see `TrainingTask` and `Task`.

    Attributes:
        class_names: of the data, in the order of their labels.
    """

    def __init__(self, **training: Any):
        super().__init__(**training)
        self.class_names: list[str] = []
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []
        self.last_batch: dict[str, Tensor] | None = None

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits [B, C] of un-normalised image features [B, embed_dim]."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Learn what the classes are.

        Raises:
            UserError: the data have none, or others than those that this task has learnt.
        """
        names = class_names_of(getattr(self.trainer, "datamodule", None), type(self).__name__)
        if self.class_names:
            require_same_classes(self.class_names, names)
        self.class_names = names

    def chance_levels(self) -> dict[str, float]:
        """Return what guessing gives."""
        return classification.chance(len(self.class_names))

    # Validation and test

    def on_validation_epoch_start(self) -> None:
        """Forget the rows of the last validation."""
        self._rows.clear()

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Keep what becomes of each row; the metrics are those of the whole split."""
        labels = batch["label"]
        logits = self.logits(self.encode_image_batch(batch["image"]))
        self._rows.append((labels, *classification.outcomes(logits, labels)))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log `val/...`."""
        self.log_of_all({f"val/{name}": value for name, value in self.measured().items()})

    def on_test_epoch_end(self) -> None:
        """Log `test/...`."""
        self.log_of_all({f"test/{name}": value for name, value in self.measured().items()})

    def measured(self) -> dict[str, float]:
        """Return the metrics of the rows that were kept on all processes, and forget them."""
        labels, loss, ranks = (distributed.gather_ragged(torch.cat(column)) for column in zip(*self._rows, strict=True))
        self._rows.clear()
        return {"loss": float(loss.mean()), **classification.accuracies(ranks, labels, len(self.class_names))}

    def log_of_all(self, metrics: dict[str, float], suffix: str = "") -> None:
        """Log what every process holds the same of, so that nothing is left to reduce, with its chance level."""
        chance = self.chance_levels()
        for name, value in metrics.items():
            self.log(f"{name}{suffix}", value, rank_zero_only=False, sync_dist=False)
            self.chance[f"{name}{suffix}"] = chance[name.rpartition("/")[2]]


def class_names_of(data: Any, task: str) -> list[str]:
    """Return the classes of a datamodule's pictures.

    Raises:
        UserError: there are none, or one.
    """
    names = getattr(data, "class_names", None)
    if not names or any(each.labels is None for each in data.datasets.values()):
        raise UserError(
            f"{task} learns from pictures of classes, and {type(data).__name__} has none: give it labelled pictures, "
            "such as --data ClassificationDataModule --data.root FOLDER with a folder for each class."
        )
    if len(names) < 2:
        raise UserError(f"{task} tells classes apart, and the data have one, {names[0]!r}.")
    return list(names)


def require_same_classes(theirs: Sequence[str], ours: Sequence[str]) -> None:
    """Refuse to go on with what was learnt for other classes than the data's.

    Raises:
        UserError: other names, or another order.
    """
    if list(theirs) == list(ours):
        return
    pairs = zip(theirs, ours, strict=False)
    number = next((n for n, (one, other) in enumerate(pairs) if one != other), min(len(theirs), len(ours)))
    said = [repr(names[number]) if number < len(names) else "none" for names in (theirs, ours)]
    order = ", which are the same in another order" if sorted(theirs) == sorted(ours) else ""
    raise UserError(
        f"What was learnt is for other classes than the data's: class {number} is {said[0]} there and {said[1]} "
        f"here{order}. Take data of the same classes in the same order, or start a new run from the weights alone with "
        "--model.init_args.weights."
    )
