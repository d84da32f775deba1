"""Which pairs meet in which batch: a function of (seed, epoch, step) alone.

So the global batches do not depend on how many processes or workers load them, and a resumed run goes on with the very
next one: there is no state to save.
"""

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler

from workbench.errors import UserError
from workbench.randomness import mixed_seed

Key = tuple[int, int]
"""(epoch, row): what a training sample is asked for by, so that a worker knows the epoch without being told."""


class TrainingBatches(Sampler[list[Key]]):
    """Batches of a fresh permutation each epoch; what is left over at its end is dropped.

    Args:
        rows: size of the data set.
        batch_size: pairs of a batch over all processes; process r of W takes the r-th consecutive W-th of it.
        seed: of the permutations.
        trained: returns how many batches the run has trained so far; read when an epoch starts.
        batches_per_epoch: returns how many batches the trainer takes as an epoch.
        rank: this process.
        world_size: all processes.

    Raises:
        UserError: a batch that is too small, too large, or not divisible by the processes.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        seed: int,
        trained: Callable[[], int],
        batches_per_epoch: Callable[[], int],
        rank: int = 0,
        world_size: int = 1,
    ):
        check_batch_size(rows, batch_size, world_size)
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.trained, self.batches_per_epoch = trained, batches_per_epoch
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        """Return the batches of a whole epoch, also when the next one starts in its middle."""
        return self.rows // self.batch_size

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, start = divmod(self.trained(), self.batches_per_epoch())
        return self.batches(epoch, start)

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[Key]]:
        """Yield this process's part of the batches of an epoch, from batch `start` on."""
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
        order = torch.randperm(self.rows, generator=generator).tolist()
        share = self.batch_size // self.world_size
        for batch in range(start, len(self)):
            first = batch * self.batch_size + self.rank * share
            yield [(epoch, row) for row in order[first : first + share]]


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

    def __init__(self, rows: list[int], rank: int = 0, world_size: int = 1):
        self.all_rows = rows
        self.rows = rows[rank::world_size]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows)
