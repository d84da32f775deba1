"""What a model gains and what it forgets, and which of several to take."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from workbench.errors import UserError
from workbench.evaluation.encoding import Encoder
from workbench.evaluation.measures import Measure
from workbench.interpolation import StateDict, interpolate_into


@dataclass(frozen=True)
class Scores:
    """Of one model, on validation data.

    Attributes:
        target: on what it was trained for, in [0, 1].
        canaries: on what it should not forget, by name.
        metrics: everything that was measured.
    """

    target: float
    canaries: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def canary(self) -> float | None:
        """The mean of the canaries; None without any."""
        return sum(self.canaries.values()) / len(self.canaries) if self.canaries else None

    @property
    def mean(self) -> float:
        """The mean of target and canary; the target alone without canaries."""
        return self.target if self.canary is None else (self.target + self.canary) / 2

    def __str__(self) -> str:
        return f"target {self.target:.1%}" + ("" if self.canary is None else f", canary {self.canary:.1%}")


Points = Sequence[tuple[float, Scores]]
"""Alphas and what the models there are worth, from the start, alpha 0."""


class Panel:
    """What models are compared by.

    Args:
        target: of what they were trained for.
        canaries: of what they should not forget.

    Raises:
        UserError: two have one name, so that their metrics would overwrite each other.
    """

    def __init__(self, target: Measure, canaries: Sequence[Measure] = ()):
        self.target, self.canaries = target, list(canaries)
        names = [each.name for each in (target, *self.canaries)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"Two sets of data are measured as {twice!r}; give each monitor a name of its own.")

    def require_possible(self) -> None:
        """Refuse what cannot be measured, before anything is.

        Raises:
            UserError: there is no such split, or it has too few rows.
        """
        for measure in (self.target, *self.canaries):
            measure.loader()

    def __call__(self, encoder: Encoder) -> Scores:
        """Measure a model."""
        metrics = self.target(encoder)
        target, canaries = self.target.score(metrics), {}
        for measure in self.canaries:
            found = measure(encoder)
            canaries[measure.name] = measure.score(found)
            metrics |= found
        return Scores(target, canaries, metrics)

    def described(self) -> dict[str, Any]:
        """Return what is measured, as plain values."""

        def about(measure: Measure) -> dict[str, Any]:
            return {key: getattr(measure, key) for key in ("name", "metric", "split", "rows")}

        return {"target": about(self.target), "canaries": [about(measure) for measure in self.canaries]}


def trace(
    module: nn.Module, encoder: Encoder, panel: Panel, start: StateDict, end: StateDict, alphas: Sequence[float]
) -> Iterator[tuple[float, Scores]]:
    """Yield each alpha and what the weights there are worth.

    Args:
        module: whose weights are overwritten.
        encoder: that encodes with this module.
        panel: what is measured.
        start: state dict at alpha 0.
        end: state dict at alpha 1.
        alphas: to visit.
    """
    for alpha in alphas:
        interpolate_into(module, start, end, alpha)
        yield alpha, panel(encoder)


def choose(points: Points, keep: float | None = None) -> tuple[float, str]:
    """Return the alpha to take, and the rule in words; of equal ones the nearest to the start.

    Args:
        points: of the curve.
        keep: share of each canary's value at the start that has to be left; the best target of those is taken. None
            takes the best mean of target and canary.
    """
    start = points[0][1]
    if keep is not None:
        kept = [
            (alpha, scores)
            for alpha, scores in points
            if all(scores.canaries[name] >= keep * value for name, value in start.canaries.items())
        ]
        alpha, _ = max(kept, key=lambda point: (point[1].target, -point[0]))
        return alpha, f"the best target on validation data where each canary keeps {keep:.0%} of the start's"
    alpha, _ = max(points, key=lambda point: (point[1].mean, -point[0]))
    if start.canary is None:
        return alpha, "the best target on validation data, as there is no canary"
    return alpha, "the best mean of target and canary on validation data"


def require_keep(keep: float | None, canaries: Sequence[Measure]) -> None:
    """Refuse a limit that makes no sense.

    Raises:
        UserError: it is no share, or there is nothing to keep.
    """
    if keep is not None and not 0 < keep <= 1:
        raise UserError(f"keep is {keep}; it is the share of the start's canary that has to be left, such as 0.95.")
    if keep is not None and not canaries:
        raise UserError(
            "keep says how much of the canary has to be left, and there is none: add a ZeroShotMonitor, or a "
            "RetrievalMonitor with data of its own, to trainer.callbacks of the experiment."
        )
