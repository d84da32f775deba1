"""Parts of a training split: a few pictures of each class, and others of each class to validate on.

Which rows are chosen is a function of the seed and the class's own rows, so that it does not change with other classes.
"""

from collections.abc import Sequence

import numpy as np
import torch

from datamodules.labelled import Labelled
from datamodules.ordering import Part
from workbench.errors import UserError
from workbench.randomness import mixed_seed

_MOST_SHOTS_OF_VAL = 4
"""Zhou et al. 2022 (CoOp), `DATASET.NUM_SHOTS` of their Dassl: validation takes min(shots, 4) of each class."""


def hold_out(labelled: Labelled, fraction: float, seed: int) -> tuple[Labelled, Labelled]:
    """Split into a larger part and a share of each class, each in the order that the rows had.

    A class of two or more pictures has at least one in both.

    Args:
        labelled: N rows.
        fraction: the share, above 0 and below 1.
        seed: of what is held out.

    Raises:
        UserError: no such share.
    """
    if not 0 < fraction < 1:
        raise UserError(f"val_fraction is {fraction}; give a share of the pictures between 0 and 1.")
    held = []
    for rows in _shuffled(labelled, seed).values():
        count = min(len(rows) - 1, max(1, round(len(rows) * fraction)))
        held.append(rows[:count])
    chosen = np.zeros(len(labelled), dtype=bool)
    chosen[np.concatenate([np.empty(0, np.int64), *held])] = True
    return labelled.take(np.flatnonzero(~chosen)), labelled.take(np.flatnonzero(chosen))


def few_shots(labelled: Labelled, shots: int, seed: int, names: Sequence[str]) -> tuple[Labelled, Labelled]:
    """Choose `shots` pictures of each class to train on, and at most four others of each to validate on.

    The pictures of fewer shots are among those of more.

    Args:
        labelled: N rows.
        shots: at least 1.
        seed: of the choice.
        names: of all classes, for the message.

    Returns:
        Both, in the order that the rows had; the second has fewer of a class where there are no more, down to none.

    Raises:
        UserError: a class has fewer pictures than that.
    """
    if shots < 1:
        raise UserError(f"shots is {shots}; take at least 1 picture of each class, or null for all.")
    counts = labelled.counts(len(names))
    if (counts < shots).any():
        label = int(np.argmin(counts))
        fewer = f"take at most {counts[label]}, or " if counts[label] else ""
        raise UserError(
            f"The class {names[label]!r} has {counts[label]} training pictures and shots is {shots}; {fewer}give it "
            "more pictures, or leave the class out."
        )
    order = list(_shuffled(labelled, seed).values())
    chosen = np.concatenate([rows[:shots] for rows in order])
    others = np.concatenate([rows[shots : shots + min(shots, _MOST_SHOTS_OF_VAL)] for rows in order])
    return labelled.take(np.sort(chosen)), labelled.take(np.sort(others))


def one_part_for_each_class(labelled: Labelled, names: Sequence[str]) -> tuple[Labelled, list[Part]]:
    """Sort rows by class, and return the parts of which each has the same share of an epoch.

    Args:
        labelled: N rows.
        names: of all classes; those without rows have no part.
    """
    counts = labelled.counts(len(names))
    parts = [Part(name, int(rows), 1.0) for name, rows in zip(names, counts, strict=True) if rows]
    return labelled.take(np.argsort(labelled.labels, kind="stable")), parts


def _shuffled(labelled: Labelled, seed: int) -> dict[int, np.ndarray]:
    """Return each class's rows in a random order, int64 [n]."""
    if not len(labelled):
        return {}
    order = np.argsort(labelled.labels, kind="stable")
    classes, starts = np.unique(labelled.labels[order], return_index=True)
    shuffled = {}
    for label, rows in zip(classes.tolist(), np.split(order, starts[1:]), strict=True):
        generator = torch.Generator().manual_seed(mixed_seed(seed, label))
        shuffled[label] = rows[torch.randperm(len(rows), generator=generator).numpy()]
    return shuffled
