"""Averages of the weights over the steps of a run: exponential (EMA), or uniform over its last part (SWA).

Our own, since Lightning's `WeightAveraging` (2.6) builds the model before the task's `setup`, gives a validation's last
computations the weights that are not averaged, and forgets those at the end of a run, so that it cannot be prolonged;
and its `StochasticWeightAveraging` counts epochs alone and replaces the schedule.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from callbacks.canary import canaries_of
from workbench.errors import UserError

KEY = "averaging"
"""Of a checkpoint: what is trained, beside the averages in `state_dict`."""


class WeightAverage(Callback):
    """Base of the averages: a second copy of what is trained, which takes its place between two steps.

    So monitors, validations, `best.ckpt`, `last.ckpt` and what the run ends with are of the averaged weights, and so is
    what `weights:`, `workbench.load` and `export` take of its checkpoints. The optimizer goes on from the others, which
    checkpoints keep beside: resuming is exact. Losses and norms under `train/` are of these.

    Averaged are parameters that are trained and the running statistics of batch normalisation, in fp32, after each
    optimizer step. What a schedule sets, such as a temperature that is not learned, stays as it is. It takes their
    memory once more, and changing places copies nothing.

    Attributes:
        count: steps that are in the average.
    """

    kind: str

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self.count = 0
        self._step = 0
        self._other: dict[str, Tensor] = {}  # the average in a step, what is trained between two
        self._in_step = True

    def weight(self, count: int) -> float:
        """Return the share of the newest weights when they are the average's n-th, counted from 1."""
        raise NotImplementedError

    def begins(self, steps: int) -> int:
        """Return the step after which the first weights are averaged; 0 starts from those before the first.

        Args:
            steps: of the whole run.
        """
        raise NotImplementedError

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Go before all other callbacks, which are to see the average.

        Raises:
            UserError: there are two averages, the model is sharded, or a monitor changes the weights.
        """
        self._forget()
        if stage != "fit":
            return
        name = type(self).__name__
        if [isinstance(each, WeightAverage) for each in trainer.callbacks].count(True) > 1:
            raise UserError("Two averages of weights are in trainer.callbacks; leave one out.")
        if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            raise UserError(f"{name} needs all weights on each process, and the model is sharded; leave it out.")
        moving = next((each.name for each in canaries_of(trainer) if each.on_alarm == "interpolate"), None)
        if moving is not None:
            raise UserError(
                f"{name} averages what is trained, and the monitor {moving!r} with on_alarm: interpolate would move "
                "the average alone: take on_alarm: warn or stop, or leave the average out."
            )
        trainer.callbacks = [self, *(each for each in trainer.callbacks if each is not self)]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, or go on where the checkpoint was.

        Raises:
            UserError: there is no optimizer.
        """
        if not trainer.optimizers:
            raise UserError(f"{type(self).__name__} has nothing to average: this run has no optimizer; leave it out.")
        self._begins = self.begins(pl_module.total_steps)
        self._step = trainer.global_step
        if not self._other:
            if self._begins == 0:
                self._take_copy(pl_module)
            return
        here = dict(_averaged(pl_module))
        if here.keys() != self._other.keys():
            other = sorted(here.keys() ^ self._other.keys())[:3]
            raise UserError(
                f"--ckpt_path is of a run that averaged other parameters: only one of the two has {', '.join(other)}; "
                "take the config.yaml of its own run folder."
            )
        self._other = {key: value.to(here[key]) for key, value in self._other.items()}
        self._in_step = False
        if self._step < self._begins:  # the run is longer now
            rank_zero_info(f"The average of the last {self.count} steps is left: the run's last part begins later now.")
            self._change_places(pl_module)
            self._forget()

    def _take_copy(self, pl_module: LightningModule) -> None:
        self._other = {key: value.detach().clone() for key, value in _averaged(pl_module)}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Put what is trained in its place."""
        if self._other and not self._in_step:
            self._change_places(pl_module)
        self._in_step = True

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Average after an optimizer step, and put the average in its place."""
        stepped = trainer.global_step > self._step
        self._step = trainer.global_step
        if stepped and self._step > self._begins:
            if not self._other:
                self._take_copy(pl_module)
            self.count += 1
            newest = [value.detach() for _, value in _averaged(pl_module)]
            torch._foreach_lerp_(list(self._other.values()), newest, self.weight(self.count))
        if self._other:
            self._change_places(pl_module)
        self._in_step = False

    def _change_places(self, pl_module: LightningModule) -> None:
        for key, value in _averaged(pl_module):
            value.data, self._other[key] = self._other[key], value.data

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained beside the average."""
        trained = dict(self._other)
        if self._other and self._in_step:
            trained = {key: value.detach() for key, value in _averaged(pl_module)}
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **self._other}
        checkpoint[KEY] = {"kind": self.kind, "count": self.count, "trained": trained}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on from there; of a checkpoint without an average, average from there on.

        Raises:
            UserError: the checkpoint's average is another one.
        """
        state = checkpoint.get(KEY)
        if state is None or trainer.state.fn != "fit":
            return
        if state["kind"] != self.kind:
            if state["count"] == 0:
                return
            raise UserError(
                f"--ckpt_path has an average of kind {state['kind']} and this run makes one of kind {self.kind}: "
                "resume with the config.yaml of the checkpoint's own run folder, or start from its weights with "
                "--model.init_args.weights."
            )
        self.count, self._other = state["count"], dict(state["trained"])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the average in its place, and free what was trained."""
        self._forget()


class ExponentialMovingAverage(WeightAverage):
    """Average with weights that fall by `decay` a step into the past (EMA; Polyak & Juditsky 1992).

    average <- d average + (1 - d) newest, from the weights before the first step on. It lags about 1 / (1 - decay)
    steps behind.

    Args:
        decay: d, of a step (0.999).
        warmup: d is at most (1 + n) / (10 + n) after n steps, as in TensorFlow's `ExponentialMovingAverage`: a short
            run from scratch is then not held at its random start. Without, the average stays near the starting weights
            for long, which a fine-tuned model may want.
    """

    kind = "ema"

    def __init__(self, decay: float = 0.999, warmup: bool = True):
        super().__init__()
        if not 0 <= decay < 1:
            raise UserError(f"decay is {decay}; give a number from 0 to below 1, such as 0.999.")
        self.decay, self.warmup = decay, warmup

    def weight(self, count: int) -> float:
        """Return 1 - d."""
        return 1 - (min(self.decay, (1 + count) / (10 + count)) if self.warmup else self.decay)

    def begins(self, steps: int) -> int:
        """Return 0: the starting weights are in it."""
        return 0


class UniformWeightAverage(WeightAverage):
    """Average the last part of a run with equal weights (SWA, Izmailov et al. 2018, arXiv 1803.05407), of each step.

    Before, weights are those that are trained. The paper's learning rate is high and constant there; the task's
    `schedule: constant` is. The statistics of batch normalisation are averaged as the weights are, where the paper
    computes them anew from training data.

    Args:
        start: share of the run before the average begins (0.75).
    """

    kind = "swa"

    def __init__(self, start: float = 0.75):
        super().__init__()
        if not 0 <= start < 1:
            raise UserError(f"start is {start}; give the share of the run before the average begins, below 1.")
        self.start = start

    def weight(self, count: int) -> float:
        """Return 1 / n."""
        return 1 / count

    def begins(self, steps: int) -> int:
        """Return the steps before the last part, of which at least one is left."""
        return min(steps - 1, math.floor(self.start * steps))


def _averaged(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what is averaged, by its key in the state dict."""
    yield from ((name, value) for name, value in module.named_parameters() if value.requires_grad)
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._NormBase) and part.running_mean is not None:
            yield from ((f"{name}.{key}", getattr(part, key)) for key in ("running_mean", "running_var"))
