"""Which rows have the same thing, and which pictures look alike."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from datamodules.grouping import connected

NEAR_BITS = 2
"""Bits of 64 by which perceptual hashes of pictures that look alike may differ."""
NEAR_LEVELS = 8
"""Levels of 255 by which their mean colours may, in each channel."""
NEAR_SHAPE = 5
"""Hundredths by which the logarithms of their aspect ratios may."""

_BLOCKS = 4
_BITS_OF_BYTES = np.array([byte.bit_count() for byte in range(256)], np.uint8)
_MOST_ALIKE = 2000
"""Pictures with equal blocks that are compared with each other; of more, each with so many after it."""


@dataclass(frozen=True)
class Groups:
    """Rows that belong together, group after group, the smallest row of each first.

    Attributes:
        rows: int64 [R], those of groups of at least two; ascending inside a group, as are the groups' first rows.
        starts: int64 [groups]: where each group begins.
    """

    rows: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[np.ndarray]:
        for start, end in itertools.pairwise([*self.starts.tolist(), len(self.rows)]):
            yield self.rows[start:end]

    @property
    def sizes(self) -> np.ndarray:
        """Rows of each group, int64 [groups]."""
        return np.diff(self.starts, append=len(self.rows))

    @property
    def repeats(self) -> np.ndarray:
        """All but the first row of each group, sorted, int64."""
        again = np.ones(len(self.rows), dtype=bool)
        again[self.starts] = False
        return np.sort(self.rows[again])

    def where(self, chosen: np.ndarray) -> "Groups":
        """Return some of the groups; `chosen` is bool [groups]."""
        kept = np.repeat(chosen, self.sizes)
        sizes = self.sizes[chosen]
        return Groups(self.rows[kept], np.cumsum(sizes) - sizes)

    def mixed(self, values: np.ndarray) -> np.ndarray:
        """Return whether the values of a group's rows differ, bool [groups]; `values` has one for each row there is."""
        if not len(self):
            return np.zeros(0, dtype=bool)
        of_rows = values[self.rows]
        return np.minimum.reduceat(of_rows, self.starts) != np.maximum.reduceat(of_rows, self.starts)


def equal(keys: np.ndarray, among: np.ndarray | None = None) -> Groups:
    """Return the groups of rows with equal keys.

    Args:
        keys: [N], such as hashes.
        among: bool [N], which rows count; None for all.
    """
    rows = np.arange(len(keys)) if among is None else np.flatnonzero(among)
    order = rows[np.argsort(keys[rows], kind="stable")]
    numbers = np.cumsum(np.concatenate([[0], (keys[order][1:] != keys[order][:-1]).astype(np.int64)]))[: len(order)]
    return _groups(order, numbers)


def _groups(rows: np.ndarray, numbers: np.ndarray) -> Groups:
    """Return groups of rows with equal numbers, which ascend."""
    sizes = np.bincount(numbers) if len(numbers) else np.zeros(0, np.int64)
    several = np.repeat(sizes > 1, sizes)
    rows, sizes = rows[several], sizes[sizes > 1]
    starts = np.cumsum(sizes) - sizes
    # Inside a group rows ascend; put the groups in the order of their first rows, too.
    by_first = np.argsort(rows[starts], kind="stable")
    sizes = sizes[by_first]
    moved = np.cumsum(sizes) - sizes
    index = np.repeat(starts[by_first] - moved, sizes) + np.arange(len(rows))
    return Groups(rows[index].astype(np.int64), moved.astype(np.int64))


def near_pairs(hashes: np.ndarray, bits: int = NEAR_BITS) -> np.ndarray:
    """Return the pairs of different hashes that differ in at most `bits` bits, int64 [pairs, 2], sorted.

    A hash of 64 bits is cut into four blocks. Hashes that differ in at most two bits have two blocks in common, of
    32 bits, whichever they are; so only those that agree in one of the six pairs of blocks are compared.

    Args:
        hashes: uint64 [N], all different.
        bits: at most 2.
    """
    assert bits <= _BLOCKS - 2
    width = 64 // _BLOCKS
    masks = [np.uint64((1 << width) - 1) << np.uint64(width * block) for block in range(_BLOCKS)]
    found = [np.empty((0, 2), np.int64)]
    for one, other in itertools.combinations(masks, 2):
        keys = hashes & (one | other)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        here = np.flatnonzero(keys[1:] == keys[:-1])
        for distance in range(1, _MOST_ALIKE):
            here = here[here + distance < len(keys)]
            here = here[keys[here] == keys[here + distance]]
            if not len(here):
                break
            first, second = order[here], order[here + distance]
            near = _bits(hashes[first] ^ hashes[second]) <= bits
            found.append(np.sort(np.stack([first[near], second[near]], axis=1), axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _bits(values: np.ndarray) -> np.ndarray:
    """Return how many bits are set; NumPy has a function for it from 2.0 on."""
    return _BITS_OF_BYTES[values.view(np.uint8).reshape(-1, 8)].sum(axis=1)


def alike(hashes: np.ndarray, colours: np.ndarray, shapes: np.ndarray, among: np.ndarray) -> Groups:
    """Return the groups of pictures that look alike, directly or through others.

    Args:
        hashes: uint64 [N], perceptual.
        colours: uint8 [N, 3], mean.
        shapes: float [N], width by height.
        among: bool [N], which pictures count.
    """
    rows = np.flatnonzero(among)
    logs = np.rint(np.log(shapes[rows]) * 100).astype(np.int64)
    seen = np.column_stack([colours[rows].astype(np.int64), logs])
    # What is equal in all of it is one from here on: of a picture there may be thousands.
    look_of, first = _numbered(hashes[rows], seen)
    hashes, seen = hashes[rows[first]], seen[first]
    distinct, hash_of = np.unique(hashes, return_inverse=True)
    pairs = np.concatenate([_same_hash(hash_of), *_across(near_pairs(distinct), hash_of)])
    apart = np.abs(seen[pairs[:, 0]] - seen[pairs[:, 1]])
    pairs = pairs[(apart <= (NEAR_LEVELS, NEAR_LEVELS, NEAR_LEVELS, NEAR_SHAPE)).all(axis=1)]
    members, keys = pairs.ravel(), np.repeat(np.arange(len(pairs)), 2)
    labels = connected(len(first), [(members, keys)])[look_of]
    order = np.argsort(labels, kind="stable")
    return _groups(rows[order], np.unique(labels[order], return_inverse=True)[1])


def _numbered(hashes: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number rows that differ, and return the number of each row and the first row of each number, int64."""
    packed = ((seen[:, 0] << 40) + (seen[:, 1] << 32) + (seen[:, 2] << 24)) + (seen[:, 3] + (1 << 20))
    order = np.lexsort((packed, hashes))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (hashes[order][1:] != hashes[order][:-1]) | (packed[order][1:] != packed[order][:-1])
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.cumsum(new) - 1
    return numbers, order[new]


def _same_hash(hash_of: np.ndarray) -> np.ndarray:
    """Return pairs of looks of one hash: each with so many after it."""
    order = np.argsort(hash_of, kind="stable")
    found = [np.empty((0, 2), np.int64)]
    here = np.arange(len(order))
    for distance in range(1, _MOST_ALIKE):
        here = here[here + distance < len(order)]
        here = here[hash_of[order[here]] == hash_of[order[here + distance]]]
        if not len(here):
            break
        found.append(np.stack([order[here], order[here + distance]], axis=1))
    return np.concatenate(found)


def _across(pairs: np.ndarray, hash_of: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the pairs of looks of two hashes each."""
    order = np.argsort(hash_of, kind="stable")
    counts = np.bincount(hash_of) if len(hash_of) else np.zeros(0, np.int64)
    starts = np.cumsum(counts) - counts
    counts = np.minimum(counts, _MOST_ALIKE)
    single = (counts[pairs] == 1).all(axis=1) if len(pairs) else np.zeros(0, dtype=bool)
    yield order[starts[pairs[single]]]
    for one, other in pairs[~single].tolist():
        ours, theirs = (order[starts[each] : starts[each] + counts[each]] for each in (one, other))
        yield np.stack([np.repeat(ours, len(theirs)), np.tile(theirs, len(ours))], axis=1)
