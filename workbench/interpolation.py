"""Between weights: WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903) and model soups (arXiv 2203.05482).

What is averaged are weights, not predictions, so the result costs what one model costs. It works where the models have
a common start: a fine-tuned model and what it was fine-tuned from, or several that were fine-tuned from the same.

Numbers are combined in fp64 and rounded once, to the type they are stored in. logit_scale is a number like any other,
and so are the running mean and variance of a BatchNorm, which stays a variance. Whole numbers (`num_batches_tracked`,
which nothing reads as long as the momentum is fixed) cannot be halved: an interpolation has those of the end, but for
alpha 0, and a soup the largest.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields

import torch
from torch import Tensor, nn

from workbench.errors import UserError
from workbench.models import Architecture
from workbench.models.lora import MARK

StateDict = Mapping[str, Tensor]
_SHOWN = 3
_HINT = "take models that have a common start."


def alphas(count: int) -> list[float]:
    """Return `count` values from 0 to 1, evenly spaced, such as 0, 0.1, ..., 1 of 11.

    Raises:
        UserError: fewer than two, which would leave an end out.
    """
    if count < 2:
        raise UserError(f"alphas is {count}; a curve from start to end has at least 2, and 11 are usual.")
    return [number / (count - 1) for number in range(count)]


def interpolate(start: StateDict, end: StateDict, alpha: float) -> dict[str, Tensor]:
    """Return (1 - alpha) start + alpha end.

    At 0 and 1 these are the ends bit for bit, and what is equal in both stays as it is.

    Args:
        start: for example zero-shot weights.
        end: for example fine-tuned ones, of the same keys, shapes and types.
        alpha: from 0 to 1.

    Raises:
        UserError: they are of different models, or alpha is outside.
    """
    _refuse_outside(alpha)
    refuse_other_tensors(start, end)
    return {key: _between(start[key], value, alpha) for key, value in end.items()}


@torch.no_grad()
def interpolate_into(module: nn.Module, start: StateDict, end: StateDict, alpha: float) -> None:
    """Write what `interpolate` returns into a module, a tensor at a time, which may be on another device.

    Raises:
        UserError: they are of different models, or alpha is outside; nothing is written.
    """
    _refuse_outside(alpha)
    refuse_other_tensors(start, end)
    own = module.state_dict()
    refuse_other_tensors(own, end)
    for key, value in own.items():
        value.copy_(_between(start[key], end[key], alpha))


def straightened(start: StateDict, end: StateDict) -> dict[str, Tensor]:
    """Return a start that computes the same, and from which an adapted model's weights move on a straight line.

    What a LoRA adapter adds to a weight is B A, in which two interpolated factors would make a curve. At the start B is
    0, so that A may just as well be the end's: then the change at alpha is alpha times the end's.
    """
    return {key: end[key] if MARK in key and key.endswith(".A") else value for key, value in start.items()}


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a module's state on the CPU."""
    return {key: value.detach().to("cpu", copy=True) for key, value in module.state_dict().items()}


def _refuse_outside(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha is {alpha}; it is from 0, the start, to 1, the end.")


def _between(start: Tensor, end: Tensor, alpha: float) -> Tensor:
    if alpha == 0:
        return start.clone()
    if alpha == 1 or not end.is_floating_point():
        return end.clone()
    return torch.lerp(start.double(), end.double(), alpha).to(end.dtype)


class Soup:
    """The mean of any number of state dicts, of which no more than the sum is kept, in fp64.

    Attributes:
        count: models in it.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sum: dict[str, Tensor] = {}
        self._of: dict[str, Tensor] = {}

    def add(self, state_dict: StateDict) -> None:
        """Stir one in.

        Raises:
            UserError: it is of another model than those before.
        """
        for key, value in self._checked(state_dict).items():
            self._sum[key] = self._stirred(key, value)
        self.count += 1

    def mean_with(self, state_dict: StateDict) -> dict[str, Tensor]:
        """Return what the mean would be with one more, which stays outside; a tensor at a time.

        Raises:
            UserError: it is of another model than those before.
        """
        return {
            key: self._divided(key, self._stirred(key, value), self.count + 1)
            for key, value in self._checked(state_dict).items()
        }

    def mean(self) -> dict[str, Tensor]:
        """Return the mean, in the types of the models.

        Raises:
            UserError: there is none.
        """
        if not self.count:
            raise UserError("A soup needs at least one model.")
        return {key: self._divided(key, value, self.count) for key, value in self._sum.items()}

    def _checked(self, state_dict: StateDict) -> StateDict:
        if not self.count:
            self._of = {key: value.to("meta") for key, value in state_dict.items()}
        refuse_other_tensors(self._of, state_dict)
        return state_dict

    def _stirred(self, key: str, value: Tensor) -> Tensor:
        value = value.double() if value.is_floating_point() else value.clone()
        if not self.count:
            return value
        return self._sum[key] + value if value.is_floating_point() else self._sum[key].maximum(value)

    def _divided(self, key: str, total: Tensor, count: int) -> Tensor:
        return (total / count if total.is_floating_point() else total).to(self._of[key].dtype)


def uniform_soup(state_dicts: Iterable[StateDict]) -> dict[str, Tensor]:
    """Return the mean of all; each is asked for when its turn comes (arXiv 2203.05482, section 2).

    Raises:
        UserError: none, or of different models.
    """
    soup = Soup()
    for state_dict in state_dicts:
        soup.add(state_dict)
    return soup.mean()


def greedy_soup(
    models: Sequence[Callable[[], StateDict]], scores: Sequence[float], evaluate: Callable[[StateDict], float]
) -> tuple[dict[str, Tensor], list[int], float]:
    """Try the models from the best to the worst, and keep each that does not lower the soup's score.

    arXiv 2203.05482, recipe 1. Of equal scores the earlier model comes first.

    Args:
        models: functions that return each one's state dict, called when its turn comes.
        scores: of each alone, on validation data; more is better.
        evaluate: state dict -> score, on the same data.

    Returns:
        The soup, the numbers of the models in it in the order that they came in, and its score.

    Raises:
        UserError: no model, or of different models.
    """
    order = sorted(range(len(models)), key=lambda number: -scores[number])
    soup, kept, best = Soup(), order[:1], 0.0
    for number in kept:
        soup.add(models[number]())
        best = scores[number]
    for number in order[1:]:
        state_dict = models[number]()
        score = evaluate(soup.mean_with(state_dict))
        if score >= best:
            soup.add(state_dict)
            kept.append(number)
            best = score
    return soup.mean(), kept, best


def refuse_other_model(first: Architecture, second: Architecture, names: tuple[str, str]) -> None:
    """Refuse two models between which nothing lies; what they are called does not matter.

    Args:
        first: what the one was trained as.
        second: the other.
        names: of the two, for the message.

    Raises:
        UserError: the first difference: of a tower, a size, the activation, or how pictures are prepared.
    """
    for field in fields(Architecture):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if field.name != "name" and one != other:
            raise UserError(
                f"{names[0]} and {names[1]} are different models, between which nothing lies: {field.name} is {one} in "
                f"the first and {other} in the second; {_HINT}"
            )


def refuse_other_tensors(first: StateDict, second: StateDict) -> None:
    """Refuse state dicts that are not of one model.

    Raises:
        UserError: another key, shape or type.
    """
    alone = sorted(first.keys() ^ second.keys())
    if alone:
        more = f" and {len(alone) - _SHOWN} more" if len(alone) > _SHOWN else ""
        raise UserError(
            f"The weights are of different models: only one of them has {', '.join(alone[:_SHOWN])}{more}; {_HINT}"
        )
    for key, value in first.items():
        other = second[key]
        if (value.shape, value.dtype) != (other.shape, other.dtype):
            raise UserError(
                f"The weights are of different models: {key} is {tuple(value.shape)} {_type(value)} in one and "
                f"{tuple(other.shape)} {_type(other)} in the other; {_HINT}"
            )


def refuse_not_finite(state_dict: StateDict, name: str) -> None:
    """Refuse weights with which every score would mean nothing.

    Raises:
        UserError: the first tensor with a number that is none.
    """
    for key, value in state_dict.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(f"{name}: its {key} has numbers that are not finite; take an earlier checkpoint.")


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
