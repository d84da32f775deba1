"""Zero-shot accuracy on any classification data, while training."""

from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from callbacks.canary import Canary


class ZeroShotMonitor(Canary):
    """Log `<name>/zero_shot_top1` (and top5 of more than ten classes) from before the first step on; see `Canary`.

    Args:
        data: a datamodule with class names and templates, such as `ClassificationDataModule` or `DigitsDataModule`;
            null takes the run's own classes.
        name: of the metrics.
        canary: see `Canary`.
    """

    kind = "zero_shot"

    def __init__(self, data: LightningDataModule | None = None, name: str = "zero_shot", **canary: Any):
        super().__init__(name=name, data=data, **canary)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the data, and refuse those without classes.

        Raises:
            UserError: as `Canary.setup`, or there are no class names.
        """
        super().setup(trainer, pl_module, stage)
        if not self.measured.class_names:
            raise self._wrong(
                f"{type(self.measured).__name__} has no class names; give it a classification datamodule as data, such "
                "as ClassificationDataModule."
            )

    def chances(self, pl_module: LightningModule) -> dict[str, float]:
        """Return k in C for top-k."""
        classes = len(self.measured.class_names)
        return {key: int(key.rpartition("top")[2]) / classes for key in self.now}
