"""Batches without two pairs of one caption or class, each of which the contrastive loss would push from the other."""

import numpy as np
import torch

from workbench.randomness import mixed_seed

_REACH = 64
"""Batches on either side among which a pair finds another place, so that rows of a shard stay near each other."""
_TRIES = 32


def spread(groups: np.ndarray, batch_size: int, seed: int) -> np.ndarray:
    """Return an order of positions in which batches have fewer pairs of equal groups, where possible none.

    Only positions that collide with an earlier one of their batch change places, each with one that is drawn from the
    batches around, if neither collides there; so a shuffled order stays as random as it was.

    Args:
        groups: [N] int64, equal where two pairs must not meet.
        batch_size: consecutive positions that make a batch; what is left over at the end is a place to go to, too.
        seed: of the draws.

    Returns:
        [N] int64, a permutation of the positions.
    """
    order = np.arange(len(groups))
    colliding = np.flatnonzero(_repeated(groups, batch_size))
    if not len(colliding):
        return order
    here = groups.copy()
    members: dict[int, dict[int, int]] = {}

    def of(batch: int) -> dict[int, int]:
        if batch not in members:
            values, counts = np.unique(here[batch * batch_size : (batch + 1) * batch_size], return_counts=True)
            members[batch] = dict(zip(values.tolist(), counts.tolist(), strict=True))
        return members[batch]

    whole = len(groups) // batch_size  # the batch of this number is what is left over: nobody meets there
    draws = torch.rand(len(colliding), _TRIES, generator=torch.Generator().manual_seed(mixed_seed(seed, len(groups))))
    for position, tries in zip(colliding.tolist(), draws.numpy(), strict=True):
        batch, group = position // batch_size, int(here[position])
        if of(batch)[group] < 2:  # the other one has gone
            continue
        low = max(0, (batch - _REACH) * batch_size)
        high = min(len(here), (batch + _REACH + 1) * batch_size)
        for other in (low + (tries * (high - low)).astype(np.int64)).tolist():
            there, theirs = other // batch_size, int(here[other])
            ours, others = of(batch), of(there)
            if there == batch or theirs in ours or (there < whole and group in others):
                continue
            here[position], here[other] = theirs, group
            order[position], order[other] = order[other], order[position]
            for counts, gone, come in ((ours, group, theirs), (others, theirs, group)):
                counts[gone] -= 1
                if not counts[gone]:
                    del counts[gone]
                counts[come] = counts.get(come, 0) + 1
            break
    return order


def count(groups: np.ndarray, batch_size: int) -> int:
    """Return how many pairs have an equal one before them in their batch; an incomplete last batch is left out."""
    return int(_repeated(groups[: len(groups) // batch_size * batch_size], batch_size).sum())


def _repeated(groups: np.ndarray, batch_size: int) -> np.ndarray:
    """Return for each position whether an earlier one of its batch has its group, bool [N]."""
    batches = np.arange(len(groups)) // batch_size
    order = np.lexsort((groups, batches))  # stable: of equal ones the earlier comes first
    same = (groups[order][1:] == groups[order][:-1]) & (batches[order][1:] == batches[order][:-1])
    repeated = np.zeros(len(groups), dtype=bool)
    repeated[order[1:][same]] = True
    repeated[len(groups) // batch_size * batch_size :] = False
    return repeated
