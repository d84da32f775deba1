"""WiSE-FT at the end of a run: between its start and its end, what does it gain and what does it forget?"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from callbacks.canary import Canary
from callbacks.checkpoint import RunCheckpoint
from callbacks.evaluation import evaluating
from callbacks.run_folder import run_folder
from workbench.atomic import written_atomically
from workbench.averaging.records import START, Curve, log_picture, write_picture
from workbench.averaging.tradeoff import Panel, require_keep, trace
from workbench.distributed import broadcast_object
from workbench.errors import UserError
from workbench.evaluation.measures import Measure
from workbench.interpolation import alphas as evenly_spaced
from workbench.interpolation import interpolate_into, refuse_not_finite, snapshot, straightened
from workbench.weights.files import read_checkpoint
from workbench.weights.zoo import sha256

CHOSEN = "interpolated.ckpt"
_NAME = "interpolation"


def target_of(data: Any, has_head: bool = False) -> Measure:
    """Return what the val split of a datamodule measures: top-1 where it has classes, else retrieval.

    Args:
        data: the datamodule, set up.
        has_head: the models have a linear head for these classes, which is then asked instead of the class names.
    """
    return Measure("val", data, "head" if has_head else "zero_shot" if data.class_names else "retrieval")


def own_measures(callbacks: Iterable[Callback]) -> list[Measure]:
    """Return what those monitors measure that have data of their own, which say what a model must not forget.

    Raises:
        UserError: one measures a test split.
    """
    return [
        Measure(each.name, each.data, each.kind, each.split, each.samples, each.ks)
        for each in callbacks
        if isinstance(each, Canary) and each.data is not None
    ]


class WeightInterpolation(Callback):
    """After training, measure the weights between start and end of the run, and keep the best (arXiv 2109.01903).

    The target is the run's val split; canaries are the `ZeroShotMonitor`s and `RetrievalMonitor`s that have data of
    their own. All of them are measured once for each alpha. The run folder gets `checkpoints/start.ckpt`, the
    starting weights, which a resumed run needs; `checkpoints/interpolated.ckpt`, the chosen ones, for `weights:`;
    `interpolation.csv` and `.json`; a picture under `pictures/interpolation`; and `interpolation/...` in summary.json
    and TensorBoard, whose axis is alpha in per cent. The other checkpoints are those of the training. A run that is
    interrupted leaves it to the one that takes it up.

    Args:
        alphas: how many, evenly spaced from 0, the start, to 1, the end.
        keep: share of each canary's value at the start that has to be left, such as 0.95; the best target of those is
            taken. null takes the best mean of target and canary.

    Attributes:
        curve: what was found; None before.
    """

    def __init__(self, alphas: int = 11, keep: float | None = None):
        self.alphas, self.keep = evenly_spaced(alphas), keep
        self.curve: Curve | None = None
        self._panel: Panel | None = None
        self._start: dict[str, Tensor] = {}
        self._sha256: str | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return by what the file of the starting weights is known again."""
        return {"sha256": self._sha256}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._sha256 = state_dict["sha256"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse test data, and a limit that makes no sense."""
        if stage != "fit":
            return
        canaries = own_measures(trainer.callbacks)
        require_keep(self.keep, canaries)
        if not canaries:
            rank_zero_info(
                "WeightInterpolation has no canary, so the best target alone will decide; a ZeroShotMonitor on other "
                "data would show what the model forgets."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to resume from what has no optimizer."""
        if trainer.ckpt_path is not None and Path(trainer.ckpt_path).name == CHOSEN:
            raise UserError(
                f"{trainer.ckpt_path} has no optimizer to go on with: resume from last.ckpt, or start from these "
                "weights with --model.init_args.weights."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the starting weights; of a resumed run those that it started from.

        Raises:
            UserError: they are not there any more, or cannot be written; the model is sharded, or frozen; or there is
                nothing to measure on.
        """
        if pl_module.device_mesh is not None:
            raise UserError(
                "WeightInterpolation needs all weights on each process, and the model is sharded: leave it out, and "
                "run `python -m workbench interpolate` afterwards."
            )
        if not any(parameter.requires_grad for parameter in pl_module.clip.parameters()):
            raise UserError(
                f"WeightInterpolation has nothing to interpolate: {type(pl_module).__name__} trains nothing of CLIP "
                "here; leave it out of trainer.callbacks."
            )
        has_head = hasattr(pl_module, "logits")
        self._panel = Panel(target_of(trainer.datamodule, has_head), own_measures(trainer.callbacks))
        self._panel.require_possible()
        kept = None if trainer.ckpt_path is None else Path(trainer.ckpt_path).parent / START
        self._start = snapshot(pl_module) if kept is None else self._read(kept)
        folder = run_folder(trainer)
        if folder is None:
            return
        found: str | UserError | None = None
        if trainer.is_global_zero:
            found = self._written(folder / "checkpoints" / START, pl_module)
        found = broadcast_object(found)  # a mistake, too: the others would wait for ever
        if isinstance(found, UserError):
            raise found
        self._sha256 = found

    def _read(self, path: Path) -> dict[str, Tensor]:
        if self._sha256 is None or not path.is_file():
            raise UserError(
                f"The weights that the run started from are not in {path}: put the file there, or leave "
                "WeightInterpolation out and run `python -m workbench interpolate` afterwards."
            )
        if sha256(path) != self._sha256:
            raise UserError(f"{path} is not what the run started from: its sha256 is another. Restore the file.")
        return read_checkpoint(path)["state_dict"]

    def _written(self, path: Path, pl_module: LightningModule) -> str | UserError:
        """Write the starting weights unless they are there; return the file's sha256, or why there is none."""
        try:
            if self._sha256 is None or not path.is_file():
                with written_atomically(path) as file:
                    torch.save({"state_dict": self._start, "workbench": pl_module.metadata()}, file)
            return sha256(path)
        except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            return UserError(f"The starting weights cannot be written to {path} ({reason}); make room there.")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure on all processes, write on the first; the weights are afterwards those of before."""
        stopped = any(isinstance(each, RunCheckpoint) and each.interrupted for each in trainer.callbacks)
        if stopped or trainer.fast_dev_run:
            return
        own = snapshot(pl_module)
        # Under DDP each process has running statistics of its own; a checkpoint has the first one's.
        end = own | broadcast_object({key: own[key] for key, _ in pl_module.named_buffers() if key in own})
        refuse_not_finite(end, "The trained model")
        start = straightened(self._start, end)
        try:
            with evaluating(pl_module):
                points = list(trace(pl_module, pl_module, self._panel, start, end, self.alphas))
            self.curve = Curve(points, self._panel, self.keep)
            if run_folder(trainer) is not None:
                interpolate_into(pl_module, start, end, self.curve.alpha)
                self._save(trainer, pl_module)
        finally:
            interpolate_into(pl_module, own, own, 1.0)
        if trainer.is_global_zero:
            self._write(trainer, self.curve)

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the model as it stands, saying what it is; on all processes."""
        before = pl_module.weights_source
        about = {"alpha": self.curve.alpha, "rule": self.curve.rule}
        pl_module.weights_source = {**(before or {"source": None}), _NAME: about}
        try:
            trainer.save_checkpoint(RunCheckpoint.folder(trainer) / CHOSEN, weights_only=True)
        finally:
            pl_module.weights_source = before

    @staticmethod
    def _write(trainer: Trainer, curve: Curve) -> None:
        rank_zero_info(f"Interpolation: alpha {curve.alpha:.2f}, {curve.rule}: {curve.scores[curve.alpha]}.")
        figure = curve.figure()
        for logger in trainer.loggers:
            if hasattr(logger.experiment, "add_image"):
                curve.log(logger.experiment, _NAME)
                log_picture(logger.experiment, _NAME, figure, trainer.global_step)
        folder = run_folder(trainer)
        if folder is not None:
            curve.write(folder, _NAME, step=trainer.global_step)
            write_picture(folder / "pictures" / _NAME / f"step_{trainer.global_step}.png", figure)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add the result to summary.json, which is there by now."""
        folder = run_folder(trainer)
        path = None if folder is None else folder / "summary.json"
        if self.curve is None or path is None or not trainer.is_global_zero or not path.is_file():
            return
        summary = json.loads(path.read_text(encoding="utf-8"))
        found = {key: {"value": value, "step": trainer.global_step} for key, value in _summary(self.curve).items()}
        summary["metrics"] = dict(sorted({**summary["metrics"], **found}.items()))
        with written_atomically(path, "w") as file:
            json.dump(summary, file, indent=2)


def _summary(curve: Curve) -> dict[str, float]:
    found = {f"{_NAME}/alpha": curve.alpha}
    for name, alpha in (("start", 0.0), ("end", 1.0), ("chosen", curve.alpha)):
        scores = curve.scores[alpha]
        found[f"{_NAME}/target_{name}"] = scores.target
        if scores.canary is not None:
            found[f"{_NAME}/canary_{name}"] = scores.canary
    return found
