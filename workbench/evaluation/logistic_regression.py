"""Multinomial logistic regression with an L2 penalty, solved to a tolerance that bounds the error of the weights.

Legend: N rows, D features, C classes, K directions that the rows span.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.errors import UserError

TOLERANCE = 1e-3
_PATH, _ROUGH = 100, 0.1
"""Without a start, strengths on the way fall by such factors, and are solved so roughly."""
_MAX_STEPS = 100
_MAX_PRODUCTS = 500
"""Products with the Hessian in one step."""
_MAX_TRIALS = 20
"""Lengths that are tried of one step."""
_TURNED = 0.5
"""A step is too long where the slope at its end is this share of that at its start, and upwards."""
_BLOCK = 1 << 24
"""Numbers, rows x classes, that are worked on at a time."""


@dataclass(frozen=True)
class LinearClassifier:
    """Scores that are linear in the features.

    Attributes:
        weight: [C, D].
        bias: [C].
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return the scores of features [N, D], [N, C], whose softmax are the classes' probabilities."""
        return F.linear(features.to(self.weight.dtype), self.weight, self.bias)


@dataclass(frozen=True)
class Fit:
    """What was found for one strength.

    Attributes:
        classifier: the solution.
        converged: it is within the tolerance, or the gradient is nothing but rounding; else the limit of steps came
            before.
        steps: of Newton's method.
    """

    classifier: LinearClassifier
    converged: bool
    steps: int


class _Seen(NamedTuple):
    """What one pass over the rows finds at a point: weights and bias, [C, K + 1]."""

    gradient: Tensor
    """[C, K + 1]"""
    probabilities: Tensor
    """[N, C]"""
    diagonal: Tensor
    """[C, K + 1], about the Hessian's"""
    rounding: float
    """what the gradient's norm owes to it"""


class LogisticRegression:
    """The problem on some rows; `fit` solves it for one strength of the penalty.

    The objective is scikit-learn's, whose `C` is 1 / strength: the sum of the rows' cross-entropies plus
    strength / 2 |W|^2, the bias not penalised. Of two classes there is one vector of weights, as there, and
    |W| is of the difference of the two rows that are returned.

    Newton's method with conjugate gradients (Nocedal & Wright 2006, chapter 7), in the features' principal axes, where
    the Hessian is nearly diagonal. Residuals are computed without cancellation, so that small penalties of
    separable rows, whose probabilities differ from 1 by less than fp32's precision, have their solution in fp32, too.

    Args:
        features: [N, D]; fp64 is computed in fp64, all else in fp32. Two copies are kept, and N x C numbers.
        labels: int64 [N], from 0 to `classes` - 1.
        classes: C. Those without a row get no weights and a bias that never wins.

    Raises:
        UserError: see `check_rows`; or less than two classes have rows.
    """

    def __init__(self, features: Tensor, labels: Tensor, classes: int):
        features = features if features.dtype == torch.float64 else features.float()
        check_rows(features, labels, classes)
        self.classes = classes
        self.present, self.labels = labels.unique(return_inverse=True)
        if len(self.present) < 2:
            raise UserError("A classifier needs rows of at least two classes; there is one.")
        self.mean = features.mean(dim=0)
        self.basis, spectrum = _principal_axes(features - self.mean)
        # The bias is the weight of one more feature, as large as the largest direction, so that gradients compare.
        self.one = float((spectrum.max() / len(features)).sqrt()) or 1.0
        rows = (features - self.mean) @ self.basis
        self.rows = torch.cat([rows, rows.new_full((len(rows), 1), self.one)], dim=1)
        self.spectrum = torch.cat([spectrum, spectrum.new_tensor([len(rows) * self.one**2])])
        self.block = max(1, _BLOCK // len(self.present))

    @torch.no_grad()
    def fit(self, strength: float, start: LinearClassifier | None = None, tolerance: float = TOLERANCE) -> Fit:
        """Return the solution for one strength.

        Args:
            strength: of the penalty, above 0.
            start: where to start from, such as the solution for another strength or for some of the rows; None starts
                from zero.
            tolerance: bound of |W - solution| / |W|: the gradient's norm is at most this share of the penalty's own
                gradient, and the objective curves at least as the penalty does.

        Raises:
            UserError: a strength that is not positive.
        """
        if not strength > 0:
            raise UserError(f"The strength of the penalty is {strength}; it must be above 0.")
        point, tries = self._point(start), [strength]
        while start is None and tries[-1] < self.spectrum[:-1].max():
            # From zero by way of stronger penalties: where one rules, the solution is near zero.
            tries.append(tries[-1] * _PATH)
        steps = 0
        for each in reversed(tries):
            point, converged, more = self._solve(point, each, tolerance if each == strength else max(tolerance, _ROUGH))
            steps += more
        return Fit(self._classifier(point), converged, steps)

    def _solve(self, point: Tensor, strength: float, tolerance: float) -> tuple[Tensor, bool, int]:
        """Go from a point to the solution; also say whether it was reached, and in how many steps."""
        penalty = torch.full_like(self.spectrum, strength * (2 if len(self.present) == 2 else 1))
        penalty[-1] = 0
        seen = self._look(point, penalty)
        first = float(seen.gradient.norm())
        for steps in range(_MAX_STEPS + 1):
            size = float(seen.gradient.norm())
            target = max(tolerance * float((penalty * point).norm()), seen.rounding)
            if size <= target or steps == _MAX_STEPS:
                break
            # Far from the solution a rough direction does.
            accuracy = max(min(0.25, (size / first) ** 0.5), 0.25 * target / size)
            ahead = self._along(point, self._newton_step(seen, penalty, accuracy), seen, penalty)
            if ahead is None:
                break
            point, seen = ahead
        return point, size <= target, steps

    def _point(self, start: LinearClassifier | None) -> Tensor:
        """Return weights and bias [C, K + 1] in the principal axes."""
        if start is None:
            return self.rows.new_zeros(len(self.present), self.rows.shape[1])
        weight, bias = (each[self.present].to(self.rows) for each in (start.weight, start.bias))
        bias = bias + weight @ self.mean
        return torch.cat([weight @ self.basis, (bias - bias.mean())[:, None] / self.one], dim=1)

    def _classifier(self, point: Tensor) -> LinearClassifier:
        weight = point[:, :-1] @ self.basis.T
        bias = point[:, -1] * self.one - weight @ self.mean
        # All biases may be shifted at once; their mean is what a descent from zero leaves alone.
        all_weights = weight.new_zeros(self.classes, weight.shape[1])
        all_biases = bias.new_full((self.classes,), torch.finfo(bias.dtype).min)
        all_weights[self.present], all_biases[self.present] = weight, bias - bias.mean()
        return LinearClassifier(all_weights, all_biases)

    def _look(self, point: Tensor, penalty: Tensor) -> _Seen:
        probabilities = self.rows.new_empty(len(self.rows), len(point))
        gradient, spread, total = penalty * point, point.new_zeros(len(point)), point.new_zeros(())
        for rows, labels, scores in self._blocks(probabilities):
            torch.matmul(rows, point.T, out=scores)
            scores -= scores.gather(1, labels)
            others = scores.scatter_(1, labels, -torch.inf).logsumexp(dim=1, keepdim=True)
            all_of_them = torch.logaddexp(others, torch.zeros_like(others))
            # p - y: where p is nearly 1, the others' sum has the digits that 1 - p has lost.
            residuals = scores.sub_(all_of_them).exp_().scatter_(1, labels, -others.sigmoid())
            gradient.addmm_(residuals.T, rows)
            sizes = residuals.abs()
            total += sizes.sum()
            spread += (sizes * (1 - sizes)).sum(dim=0)
            residuals.scatter_(1, labels, (-others).sigmoid())  # probabilities from here on
        precision = torch.finfo(point.dtype)
        return _Seen(
            _without_shift(gradient),
            probabilities,
            (spread[:, None] / len(self.rows) * self.spectrum + penalty).clamp_min_(precision.tiny),
            precision.eps * self.one * float(total),
        )

    def _hessian_product(self, vector: Tensor, probabilities: Tensor, penalty: Tensor) -> Tensor:
        found = penalty * vector
        for rows, labels, likely in self._blocks(probabilities):
            changes = rows @ vector.T
            changes -= changes.gather(1, labels)
            changes -= (likely * changes).sum(dim=1, keepdim=True)
            found.addmm_(changes.mul_(likely).T, rows)
        return found

    def _blocks(self, by_row: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Go through rows, labels [B, 1] and what belongs to them, in blocks."""
        columns = (self.rows, self.labels[:, None], by_row)
        return zip(*(column.split(self.block) for column in columns), strict=True)

    def _newton_step(self, seen: _Seen, penalty: Tensor, accuracy: float) -> Tensor:
        """Solve Hessian x step = -gradient to an accuracy, by preconditioned conjugate gradients."""
        step, rest = torch.zeros_like(seen.gradient), -seen.gradient
        direction = _without_shift(rest / seen.diagonal)
        product = (rest * direction).sum()
        goal = accuracy**2 * float(product)
        for _ in range(_MAX_PRODUCTS):
            turned = _without_shift(self._hessian_product(direction, seen.probabilities, penalty))
            length = product / (direction * turned).sum()
            step += length * direction
            rest -= length * turned
            scaled = _without_shift(rest / seen.diagonal)
            before, product = product, (rest * scaled).sum()
            if float(product) <= goal:
                break
            direction = scaled + product / before * direction
        return step

    def _along(self, point: Tensor, step: Tensor, seen: _Seen, penalty: Tensor) -> tuple[Tensor, _Seen] | None:
        """Return the point after a step, and what is seen there; None where none goes down.

        By slopes alone, as values differ by less than their rounding near the solution: the objective is convex.
        """
        slope, length = float((seen.gradient * step).sum()), 1.0
        for _ in range(_MAX_TRIALS if slope < 0 else 0):
            ahead = point + length * step
            seen_there = self._look(ahead, penalty)
            there = float((seen_there.gradient * step).sum())
            if there <= -_TURNED * slope:
                return ahead, seen_there
            length *= slope / (slope - there)  # where a straight line through both slopes is zero
        return None


def _without_shift(point: Tensor) -> Tensor:
    """Take off what all classes share: no probability changes with it, so that rounding alone would move it."""
    return point - point.mean(dim=0)


def _principal_axes(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return an orthonormal basis [D, K] of the span of centred rows, and the sums of squares along it, [K]."""
    within = None
    if len(features) < features.shape[1]:
        # Fewer rows than features: the solution lies in their span, as the penalty leaves nothing outside.
        within = torch.linalg.qr(features.T)[0]
        features = features @ within
    spectrum, axes = torch.linalg.eigh(features.T @ features)
    return axes if within is None else within @ axes, spectrum.clamp_min(0)


def check_rows(features: Tensor, labels: Tensor, classes: int) -> None:
    """Refuse what no classifier can be fitted to or measured on.

    Raises:
        UserError: features that are not finite, labels out of range, no rows, or other shapes than [N, D] and [N].
    """
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise UserError(
            f"Features are [N, D] and labels [N]; these are {list(features.shape)} and {list(labels.shape)}."
        )
    wrong = int((~features.isfinite().all(dim=1)).sum())
    if wrong:
        raise UserError(f"The features of {wrong} of {len(features)} rows are not finite; no classifier fits them.")
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(
            f"Labels are from 0 to {classes - 1}; these are from {int(labels.min())} to {int(labels.max())}."
        )
