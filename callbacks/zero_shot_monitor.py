"""Zero-shot accuracy on any classification data, while training."""

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor

from callbacks.evaluation import encode_images, evaluating
from workbench.errors import UserError
from workbench.evaluation.zero_shot import classifier, top_k_correct
from workbench.tokenizer import tokenize, trim


class ZeroShotMonitor(Callback):
    """Log `<name>/zero_shot_top1` (and top5 of more than ten classes) before the first step and with each validation.

    Args:
        data: a datamodule with class names and templates, such as `ClassificationDataModule`. Its pictures
            and texts are prepared as the run's.
        name: of the metrics.
        split: of the data.
        samples: rows to take, chosen by the data's seed; null takes all.
    """

    def __init__(
        self, data: LightningDataModule, name: str = "zero_shot", split: str = "val", samples: int | None = None
    ):
        self.data, self.name, self.split, self.samples = data, name, split, samples
        self.start: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the data before the first step, so that its mistakes are found there."""
        self.data.follow(trainer.datamodule)
        self.data.prepare_data()
        self.data.setup()
        if not self.data.class_names:
            raise UserError(
                f"ZeroShotMonitor {self.name!r}: {type(self.data).__name__} has no class names; give it a "
                "classification datamodule, such as ClassificationDataModule."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember where the run starts from; logged as `<name>/zero_shot_top1_start`."""
        self.start = self._evaluate(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate, unless this is the check before the first step."""
        if trainer.sanity_checking:
            return
        for key, value in self._evaluate(pl_module).items():
            pl_module.log(key, value)
        for key, value in self.start.items():
            pl_module.log(f"{key}_start", value)

    def _evaluate(self, pl_module: LightningModule) -> dict[str, float]:
        names, templates = self.data.class_names, self.data.templates

        def encode(texts: list[str]) -> Tensor:
            tokens = trim(tokenize(texts, self.data.context_length, truncate=True))
            return pl_module.encode_text_batch(tokens.to(pl_module.device))

        with evaluating(pl_module):
            weights = classifier(encode, names, templates)
        loader = self.data.evaluation_dataloader(self.split, self.samples)
        features, labels = encode_images(pl_module, loader, "label")
        found = {}
        for k in (1, 5) if len(names) > 10 else (1,):
            key = f"{self.name}/zero_shot_top{k}"
            found[key] = float(top_k_correct(features, weights, labels, k).float().mean())
            pl_module.chance[key] = k / len(names)
        return found
