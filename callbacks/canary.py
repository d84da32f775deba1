"""What a run's weights can do before it, while it trains and at its end; and what happens when they forget it."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from callbacks.checkpoint import RunCheckpoint
from callbacks.evaluation import evaluating
from callbacks.holding_back import hold_back, starting_weights
from callbacks.training_monitor import TrainingSpeedMonitor
from workbench.distributed import broadcast_object
from workbench.errors import UserError
from workbench.evaluation.measures import Measure

ON_ALARM = ("warn", "stop", "interpolate")
_POINTS = 100
_STATE = ("start", "start_step", "now", "measured_at", "alpha", "warned", "weights")


class Canary(Callback):
    """Base of the monitors: measure some data before the first step, while training and at the end.

    One of its metrics is the score, the one that is compared with the start: logged are `<score>_start` and
    `<name>/drop`, the points (hundredths) that it has fallen by since; negative where it has risen. The start is kept
    in checkpoints and is not measured anew when a run is resumed.

    It is measured with each validation, on each n-th step if asked for, and after the last step; each row once over
    all processes, which go by the first one's number. In training the score is taken before `last.ckpt` is written.

    Args:
        name: of the metrics; each monitor has its own.
        data: a datamodule; null takes the run's own. Its pictures and texts are prepared as the run's.
        split: of the data.
        samples: rows to take, chosen by the data's seed; null takes all.
        every_n_steps: optimizer steps between further measurements; null measures with validations.
        alarm: points that the score may fall by; null lets it fall.
        on_alarm: `warn` says it once, and what to do. `stop` ends the run as an early stop does: its checkpoint is kept
            and the summary's status is `stopped`. `interpolate` moves the weights back to start + alpha (now - start),
            see `callbacks.holding_back`, until each monitor with `interpolate` is within its alarm, and trains on
            from there with the optimizer as it is; `<name>/alpha` is logged, and checkpoints have the starting weights.
    """

    kind: str
    ks: Sequence[int] = (1, 5)

    def __init__(
        self,
        *,
        name: str,
        data: LightningDataModule | None = None,
        split: str = "val",
        samples: int | None = None,
        every_n_steps: int | None = None,
        alarm: float | None = None,
        on_alarm: str = "warn",
    ):
        self.name, self.data, self.split, self.samples = name, data, split, samples
        self.every_n_steps, self.alarm, self.on_alarm = every_n_steps, alarm, on_alarm
        self.stopped: str | None = None
        self._forget()

    def _require_sense(self) -> None:
        if self.on_alarm not in ON_ALARM:
            raise self._wrong(f"on_alarm is {self.on_alarm!r}; there are {', '.join(ON_ALARM)}.")
        if self.alarm is None and self.on_alarm != "warn":
            raise self._wrong(f"on_alarm is {self.on_alarm} and there is no alarm; give it in points, as in alarm: 5.")
        if self.alarm is not None and not 0 <= self.alarm <= _POINTS:
            raise self._wrong(f"alarm is {self.alarm}; it is in points, from 0 to {_POINTS}.")
        if self.every_n_steps is not None and self.every_n_steps < 1:
            raise self._wrong(f"every_n_steps is {self.every_n_steps}; it is at least 1, or null.")

    def _wrong(self, what: str) -> UserError:
        return UserError(f"{type(self).__name__} {self.name!r}: {what}")

    def _forget(self) -> None:
        self.start: dict[str, float] = {}
        self.now: dict[str, float] = {}
        self.start_step: int | None = None
        self.measured_at: int | None = None
        self.alpha = 1.0
        self.warned = False
        self.weights: dict[str, Tensor] = {}
        self._chances: dict[str, float] = {}

    # What was measured

    @property
    def score(self) -> str:
        """The metric that is compared with the start."""
        return f"{self.name}/{self._measure.metric}"

    @property
    def drop(self) -> float:
        """Points that the score has fallen by since the start."""
        return _POINTS * (self.start[self.score] - self.now[self.score])

    @property
    def metrics(self) -> dict[str, float]:
        """What is logged."""
        found = dict(self.now)
        if self.start:
            found |= {f"{self.score}_start": self.start[self.score], f"{self.name}/drop": self.drop}
            if self.on_alarm == "interpolate":
                found[f"{self.name}/alpha"] = self.alpha
        return found

    @property
    def summary(self) -> dict[str, Any]:
        """What summary.json says: start and now as shares, the drop in points."""
        return {
            "metric": self.score,
            "own_data": self.data is None,
            "start": self.start[self.score],
            "start_step": self.start_step,
            "now": self.now[self.score],
            "step": self.measured_at,
            "drop": round(self.drop, 6),
            "alarm": self.alarm,
        }

    def chances(self, pl_module: LightningModule) -> dict[str, float]:
        """Return the level of guessing of some metrics."""
        raise NotImplementedError

    # Before the first step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the data before the first step, so that its mistakes are found there.

        Raises:
            UserError: settings that make no sense, two monitors with one name, data that cannot be measured, or a model
                that cannot be moved back.
        """
        self._require_sense()
        if [each.name for each in canaries_of(trainer)].count(self.name) > 1:
            raise UserError(f"Two monitors are named {self.name!r}; give each of trainer.callbacks a name of its own.")
        if self.on_alarm == "interpolate" and isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            raise self._wrong("on_alarm: interpolate needs all weights on each process, and the model is sharded.")
        if self.data is not None:
            self.data.follow(trainer.datamodule)
            self.data.prepare_data()
            self.data.setup()
        self.stopped = None
        self._forget()
        self.measured = self.data or trainer.datamodule
        try:
            self.measured.evaluation_dataloader(self.split, self.samples)
            self._measure = Measure(self.name, self.measured, self.kind, self.split, self.samples, self.ks)
        except UserError as error:
            raise self._wrong(str(error)) from error

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure where the run starts from, unless it was resumed and that is known."""
        if self.start:
            return
        if trainer.ckpt_path is not None:
            rank_zero_warn(
                f"The checkpoint does not know where the run started on {self.name!r}, which it did not watch: its "
                f"drop is counted from step {trainer.global_step}, where the run is resumed."
            )
        self.take(trainer, pl_module)
        self.start, self.start_step = self.now, trainer.global_step
        if self.on_alarm == "interpolate":
            shared = [each.weights for each in canaries_of(trainer) if each.weights]
            self.weights = shared[0] if shared else starting_weights(pl_module.clip)
        trainer._logger_connector.log_metrics(self.metrics)

    # Resuming. Not `state_dict`: of two monitors with one name Lightning would complain first, in its own words.

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the start."""
        checkpoint.setdefault("canaries", {})[self.name] = {key: getattr(self, key) for key in _STATE}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            UserError: weights are to be moved back towards a start that was not kept.
        """
        state = checkpoint.get("canaries", {}).get(self.name)
        if state is None or self.score not in state["start"]:
            return
        if self.on_alarm == "interpolate" and not state["weights"] and trainer.state.fn == "fit":
            raise self._wrong(
                "on_alarm: interpolate needs the starting weights, which the checkpoint's run did not keep; take warn "
                "or stop for the rest of the run."
            )
        for key in _STATE:
            setattr(self, key, state[key])

    # While training

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Measure when it is time; the first monitor does so for all, as one may move the weights of the others."""
        canaries = canaries_of(trainer)
        if self is not canaries[0]:
            return
        validated = _validation_is_next(trainer)
        due = [each for each in canaries if each._is_due(trainer.global_step, validated)]
        if not due:
            return
        for each in _watch(trainer, pl_module, due):
            pl_module.log_dict(each.metrics, logger=False)
            if not validated:
                trainer._logger_connector.log_metrics(each.metrics)
        for callback in trainer.callbacks:
            if isinstance(callback, TrainingSpeedMonitor):  # the time was spent on this, not on waiting for data
                callback.on_validation_end(trainer, pl_module)

    def _is_due(self, step: int, validated: bool) -> bool:
        on_step = self.every_n_steps is not None and step % self.every_n_steps == 0
        return self.measured_at != step and (validated or on_step)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what was measured; measure where this is no training run, or the validation was not foreseen."""
        if trainer.sanity_checking:
            return
        fitting = trainer.state.fn == "fit"
        if not fitting or self.measured_at != trainer.global_step:
            self.take(trainer, pl_module)
            if fitting and self.on_alarm != "interpolate":  # the validation is of the weights as they are
                self._raise_alarm(trainer)
        pl_module.log_dict(self.metrics)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure what the run ends with, where the last validation was before; an interrupted run is not held up."""
        canaries = canaries_of(trainer)
        if self is not canaries[0] or any(each.interrupted for each in _checkpoints(trainer)):
            return
        due = [each for each in canaries if each.measured_at != trainer.global_step]
        for each in _watch(trainer, pl_module, due):
            trainer._logger_connector.log_metrics(each.metrics)

    def take(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the model as it stands, on all processes."""
        with evaluating(pl_module):
            found = self._measure(pl_module)
        self.now, self.measured_at, self.alpha = broadcast_object(found), trainer.global_step, 1.0
        self._chances = self._chances or self.chances(pl_module)
        pl_module.chance |= self._chances

    # Alarm

    @property
    def alarmed(self) -> bool:
        """Whether the score has fallen by more than it may."""
        return self.alarm is not None and self.drop > self.alarm

    def _said(self) -> str:
        return (
            f"{self.score} has fallen from {self.start[self.score]:.1%} at the start to {self.now[self.score]:.1%} at "
            f"step {self.measured_at}: {self.drop:.1f} points, and the alarm is at {self.alarm:g}"
        )

    def _raise_alarm(self, trainer: Trainer) -> None:
        if not self.alarmed:
            return
        if self.on_alarm == "stop":
            self.stopped = self._said()
            trainer.should_stop = True
            rank_zero_warn(f"{self.stopped}. The run ends here, and its checkpoint is kept.")
        elif not self.warned:
            self.warned = True
            rank_zero_warn(
                f"{self._said()}. The model is forgetting what its weights knew: lower the learning rate, train for "
                "fewer steps, or freeze parts with --model.init_args.parameter_rules. Averaging its weights with those "
                "of the start afterwards brings much of it back. `on_alarm: stop` would end the run, `interpolate` "
                "move the weights back; this is said once."
            )


def canaries_of(trainer: Trainer) -> list[Canary]:
    """Return the monitors of a run."""
    return [each for each in trainer.callbacks if isinstance(each, Canary)]


def _checkpoints(trainer: Trainer) -> list[RunCheckpoint]:
    return [each for each in trainer.callbacks if isinstance(each, RunCheckpoint)]


def _validation_is_next(trainer: Trainer) -> bool:
    """Whether a validation follows the batch that ends; not known of those that go by the clock."""
    loop = trainer.fit_loop
    return trainer._val_check_time_interval is None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def _watch(trainer: Trainer, pl_module: LightningModule, due: list[Canary]) -> list[Canary]:
    """Measure, and do what the alarms ask for; return which were measured."""
    for each in due:
        each.take(trainer, pl_module)
    alarmed = [each for each in due if each.alarmed and each.on_alarm == "interpolate"]
    if alarmed:
        holding = [each for each in canaries_of(trainer) if each.on_alarm == "interpolate"]
        _move_back(trainer, pl_module, alarmed, holding)
        for each in due:
            if each not in holding:
                each.take(trainer, pl_module)
        due = [*due, *(each for each in holding if each not in due)]
    for each in due:
        each._raise_alarm(trainer)
    return due


def _move_back(trainer: Trainer, pl_module: LightningModule, alarmed: list[Canary], holding: list[Canary]) -> None:
    said = [each._said() for each in alarmed]

    def within() -> bool:
        for each in holding:
            each.take(trainer, pl_module)
        return not any(each.alarmed for each in holding)

    alpha = hold_back(pl_module.clip, holding[0].weights, within)
    for each in holding:
        each.alpha = alpha
    for each in _checkpoints(trainer):
        each.outdate()
    for each, before in zip(alarmed, said, strict=True):
        rank_zero_info(
            f"{before}. The weights are moved back to start + {alpha:g} (now - start), where it is "
            f"{each.now[each.score]:.1%}."
        )
