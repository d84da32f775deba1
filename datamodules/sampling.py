"""Which pairs meet in which batch: a function of (seed, epoch, step) alone.

So the global batches do not depend on how many processes or workers load them, and a resumed run goes on with the very
next one: there is no state to save.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from datamodules import collisions
from datamodules.ordering import EpochOrder
from workbench.errors import UserError
from workbench.randomness import mixed_seed

Key = tuple[int, int]
"""(visit, row): what a training sample is asked for by, so that a worker knows the draw without being told. The visit
is the epoch, but where a mixture takes a row more or less often than once an epoch."""


class TrainingBatches(Sampler[list[Key]]):
    """Batches of an epoch's order; what is left over at its end is dropped.

    Args:
        order: rows of each epoch.
        batch_size: pairs of a batch over all processes; process r of W takes the r-th consecutive W-th of it.
        trained: returns how many batches the run has trained so far; read when an epoch starts.
        batches_per_epoch: returns how many batches the trainer takes as an epoch.
        rank: this process.
        world_size: all processes.
        apart: [rows] int64: rows with an equal number are kept out of one batch where possible.

    Raises:
        UserError: a batch that is too small, too large, or not divisible by the processes.
    """

    def __init__(
        self,
        order: EpochOrder,
        batch_size: int,
        trained: Callable[[], int],
        batches_per_epoch: Callable[[], int],
        rank: int = 0,
        world_size: int = 1,
        apart: np.ndarray | None = None,
    ):
        check_batch_size(len(order), batch_size, world_size)
        self.order, self.batch_size = order, batch_size
        self.trained, self.batches_per_epoch = trained, batches_per_epoch
        self.rank, self.world_size = rank, world_size
        self.apart = apart
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        """Return the batches of a whole epoch, also when the next one starts in its middle."""
        return len(self.order) // self.batch_size

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, start = divmod(self.trained(), self.batches_per_epoch())
        return self.batches(epoch, start)

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[Key]]:
        """Yield this process's part of the batches of an epoch, from batch `start` on."""
        rows, visits = self.epoch(epoch)
        share = self.batch_size // self.world_size
        for batch in range(start, len(self)):
            first = batch * self.batch_size + self.rank * share
            mine = slice(first, first + share)
            yield list(zip(visits[mine].tolist(), rows[mine].tolist(), strict=True))

    def epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of an epoch as its batches take them, and their visits; int64 [rows] each. Kept once made."""
        if self._epoch is None or self._epoch[0] != epoch:
            rows, visits = self.order.epoch(epoch)
            if self.apart is not None:
                seed = mixed_seed(self.order.seed, epoch)
                places = collisions.spread(self.apart[rows], self.batch_size, seed)
                rows, visits = rows[places], visits[places]
            self._epoch = epoch, rows, visits
        return self._epoch[1:]

    def batch(self, number: int) -> np.ndarray:
        """Return the rows of the batch of all processes that is trained as the `number`-th, counted from 0."""
        epoch, place = divmod(number, self.batches_per_epoch())
        return self.epoch(epoch)[0][place * self.batch_size : (place + 1) * self.batch_size]

    def collisions(self, epoch: int) -> int:
        """Return how many pairs of an epoch have one with an equal number of `apart` before them in their batch."""
        return collisions.count(self.apart[self.epoch(epoch)[0]], self.batch_size)


def check_batch_size(rows: int, batch_size: int, world_size: int) -> None:
    """Refuse batches that cannot be trained on, with the numbers."""
    if batch_size < 2:
        raise UserError(f"batch_size is {batch_size}: the contrastive loss tells pairs apart, so it needs at least 2.")
    if batch_size > rows:
        raise UserError(
            f"batch_size {batch_size} is larger than the training set of {rows} pairs, so an epoch would have no "
            f"step; lower --data.batch_size to {rows} or less."
        )
    if batch_size % world_size:
        raise UserError(
            f"batch_size {batch_size} counts pairs over all processes and cannot be shared by {world_size}; "
            f"try {batch_size // world_size * world_size or world_size}."
        )


class EvaluationRows(Sampler[int]):
    """Every row once over all processes, without padding: process r takes rows r, r + W, ...

    Args:
        rows: the rows to visit, in order.
        rank: this process.
        world_size: all processes.
    """

    def __init__(self, rows: Sequence[int], rank: int = 0, world_size: int = 1):
        self.rows = rows[rank::world_size]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows)
