"""The linear probe: how well a linear classifier does on a frozen model's features (Radford et al. 2021, section 3.2).

The protocol is that of appendix A.3: logistic regression on features before the projection, un-normalised; the strength
of the L2 penalty is chosen on a validation split among 8 strengths per decade from 1e-6 to 1e6, by a search that starts
with seven of them and halves the bracket round the best; then the classifier is fitted again on train and validation.

Legend: N rows, D features, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.evaluation.classification import accuracies, outcomes
from workbench.evaluation.logistic_regression import TOLERANCE, Fit, LinearClassifier, LogisticRegression, check_rows

PER_DECADE = 8
_LARGEST = 6 * PER_DECADE
_FIRST = 2 * PER_DECADE
"""Steps between the seven strengths of the first round."""

Metric = Callable[[Tensor, Tensor], float]
"""(scores [N, C], labels [N]) -> what is better the higher it is."""


@dataclass(frozen=True)
class Probe:
    """What the protocol came to.

    Attributes:
        classifier: fitted on train and validation with the chosen strength.
        of_train: fitted on train alone with it, by which validation was measured.
        strength: the chosen one, 1 / C of scikit-learn.
        curve: strength -> the metric on validation, of all that were tried, in ascending order.
        converged: every fit came within its tolerance of the solution.
    """

    classifier: LinearClassifier
    of_train: LinearClassifier
    strength: float
    curve: dict[float, float]
    converged: bool

    @property
    def validation(self) -> float:
        """The metric on validation at the chosen strength, of `of_train`."""
        return self.curve[self.strength]


def top1(scores: Tensor, labels: Tensor) -> float:
    """Return the share of rows whose own class has the highest score; a tie counts against the row."""
    return float((outcomes(scores, labels)[1] == 0).double().mean())


def mean_per_class(scores: Tensor, labels: Tensor) -> float:
    """Return the mean over the classes of their rows' top-1, of those that there are rows of."""
    return accuracies(outcomes(scores, labels)[1], labels, scores.shape[1])["mean_per_class"]


def linear_probe(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    classes: int,
    metric: Metric = top1,
    tolerance: float = TOLERANCE,
) -> Probe:
    """Return the probe of a frozen model's features.

    At most 15 strengths are tried, each from the solutions beside it, and a fit on all rows follows.

    Args:
        train: features [N, D], before the projection and un-normalised, and labels int64 [N].
        val: likewise, to choose the strength on; rows that are not in `train`.
        classes: C; labels are from 0 to C - 1.
        metric: what the strength is chosen by. Of strengths that do equally well, it is the strongest.
        tolerance: of every fit, see `LogisticRegression.fit`.

    Raises:
        UserError: see `LogisticRegression`.
    """
    problem = LogisticRegression(*train, classes)
    check_rows(*val, classes)
    fits: dict[int, Fit] = {}
    scores: dict[int, float] = {}

    def best() -> int:
        return max(scores, key=lambda place: (scores[place], place))

    def try_strength(place: int) -> None:
        fits[place] = problem.fit(_strength(place), _start(fits, place), tolerance)
        scores[place] = metric(fits[place].classifier(val[0]), val[1])

    for place in range(_LARGEST, -_LARGEST - 1, -_FIRST):  # from the strongest, whose solution is near zero
        try_strength(place)
    step = _FIRST
    while step > 1:
        step //= 2
        for place in (best_place := best()) + step, best_place - step:
            if abs(place) <= _LARGEST:
                try_strength(place)
    chosen = best()
    both = LogisticRegression(*(torch.cat(parts) for parts in zip(train, val, strict=True)), classes)
    last = both.fit(_strength(chosen), tolerance=tolerance)
    return Probe(
        last.classifier,
        fits[chosen].classifier,
        _strength(chosen),
        {_strength(place): scores[place] for place in sorted(scores)},
        all(fit.converged for fit in (*fits.values(), last)),
    )


def _strength(place: int) -> float:
    return 10 ** (place / PER_DECADE)


def _start(fits: dict[int, Fit], place: int) -> LinearClassifier | None:
    """Return a classifier near the solution: the mean of the two around it, or the next stronger one."""
    stronger = min((other for other in fits if other > place), default=None)
    weaker = max((other for other in fits if other < place), default=None)
    beside = [fits[other].classifier for other in (stronger, weaker) if other is not None]
    if not beside:
        return None
    return LinearClassifier(
        torch.stack([each.weight for each in beside]).mean(dim=0),
        torch.stack([each.bias for each in beside]).mean(dim=0),
    )
