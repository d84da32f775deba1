"""In which order an epoch visits the rows of its sources: a function of (seed, epoch) alone."""

from dataclasses import dataclass

import numpy as np
import torch

from workbench.errors import UserError
from workbench.randomness import mixed_seed

_BLOCKS_AT_ONCE = 16
"""Shards whose rows are mixed. Reading from many at once is what disks and networks are slow at."""


@dataclass(frozen=True)
class Part:
    """One source's rows among those of a data set, where parts lie one after another.

    Attributes:
        name: of the source.
        rows: how many it has.
        weight: its share of an epoch, relative to the other parts'; None takes each of its rows once. All or none.
        block_starts: the first row of each block of rows that lie together on the disk (shards).
    """

    name: str
    rows: int
    weight: float | None = None
    block_starts: np.ndarray | None = None


class EpochOrder:
    """Which rows make an epoch, in which order.

    Without weights an epoch is a permutation of all rows. With weights it is as long, part p has its share of it, and
    over the epochs goes through permutations of its rows one after another, so that it visits each as often as
    another. Rows that lie together in blocks are shuffled as `_BLOCKS_AT_ONCE` blocks at a time, in a shuffled order of
    blocks.

    Args:
        parts: the sources.
        seed: of all permutations.

    Raises:
        UserError: weights that are not positive, or not given for all parts.
    """

    def __init__(self, parts: list[Part], seed: int):
        self.parts, self.seed = parts, seed
        self.rows = sum(part.rows for part in parts)
        self.samples = _samples(parts, self.rows)

    def __len__(self) -> int:
        return self.rows

    def epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return an epoch's rows, and for each the number of visits that it had before; int64 [rows] each."""
        rows, visits, first = [], [], 0
        for number, (part, samples) in enumerate(zip(self.parts, self.samples, strict=True)):
            chosen, times = self._stretch(number, part, epoch * samples, samples)
            rows.append(chosen + first)
            visits.append(times)
            first += part.rows
        if len(rows) == 1:
            return rows[0], visits[0]
        # Shuffle which part comes when, and keep each part's own order, in which blocks are together.
        turns = _permuted(np.repeat(np.arange(len(rows)), self.samples), mixed_seed(self.seed, epoch, -1))
        merged_rows, merged_visits = np.empty_like(turns), np.empty_like(turns)
        for number in range(len(rows)):
            merged_rows[turns == number], merged_visits[turns == number] = rows[number], visits[number]
        return merged_rows, merged_visits

    def part_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the number of the part that each row belongs to."""
        ends = np.cumsum([part.rows for part in self.parts])
        return np.searchsorted(ends, rows, side="right")

    def _stretch(self, number: int, part: Part, start: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Return `samples` rows from position `start` on of a part's endless row of permutations, and their number."""
        rows, visits = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        end = start + samples
        while start < end:
            visit, offset = divmod(start, part.rows)
            taken = min(end - start, part.rows - offset)
            rows.append(self._permutation(number, part, visit)[offset : offset + taken])
            visits.append(np.full(taken, visit, dtype=np.int64))
            start += taken
        return np.concatenate(rows), np.concatenate(visits)

    def _permutation(self, number: int, part: Part, visit: int) -> np.ndarray:
        # The first part's seed is that of a data set with no other, so that adding none changes nothing.
        seed = mixed_seed(self.seed, visit, number) if number else mixed_seed(self.seed, visit)
        starts = part.block_starts
        if starts is None or len(starts) <= _BLOCKS_AT_ONCE:
            return _permuted(np.arange(part.rows), seed)
        ends = np.append(starts[1:], part.rows)
        windows = np.array_split(_permuted(np.arange(len(starts)), seed), -(-len(starts) // _BLOCKS_AT_ONCE))
        return np.concatenate(
            [
                _permuted(
                    np.concatenate([np.arange(starts[block], ends[block]) for block in window]), mixed_seed(seed, index)
                )
                for index, window in enumerate(windows)
            ]
        )


def _permuted(values: np.ndarray, seed: int) -> np.ndarray:
    return values[torch.randperm(len(values), generator=torch.Generator().manual_seed(seed)).numpy()]


def _samples(parts: list[Part], rows: int) -> list[int]:
    """Return how many samples of an epoch each part has: its rows, or its share of them by the largest remainders."""
    weights = [part.weight for part in parts]
    if all(weight is None for weight in weights):
        return [part.rows for part in parts]
    named = ", ".join(f"{part.name}: {part.weight}" for part in parts)
    if any(weight is None for weight in weights):
        raise UserError(f"Give all sources of a mixture a weight, or none ({named}).")
    if any(not 0 < weight < float("inf") for weight in weights):
        raise UserError(f"The weight of a source must be above 0 ({named}); leave out what should not be trained on.")
    exact = np.array(weights) / sum(weights) * rows
    samples = np.floor(exact).astype(np.int64)
    if empty := [part.name for part in parts if not part.rows]:
        raise UserError(f"{', '.join(empty)}: a source without rows cannot have a weight.")
    most = np.argsort(-(exact - samples), kind="stable")[: rows - samples.sum()]
    samples[most] += 1
    return samples.tolist()
