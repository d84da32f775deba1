"""How many pairs of a batch meet another that says or shows the same, a false negative of the contrastive loss."""

import numpy as np

from datamodules.ordering import EpochOrder, Part
from datamodules.sampling import TrainingBatches

_FEW = 100  # numbers that a set is faster for than NumPy


def linked(*columns: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return which row has what, int64 [L, 2]: row numbers and key numbers from 0; each once, sorted.

    Args:
        columns: row numbers and hashes of what they have, [n] each: captions, pictures, classes. Hashes of different
            columns are different things.
    """
    members, keys, first = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for rows, hashes in columns:
        different, numbers = np.unique(hashes, return_inverse=True)
        members.append(np.asarray(rows, np.int64))
        keys.append(numbers.ravel() + first)
        first += len(different)
    # As one number each, which sorts ten times as fast as two; for 10^9 rows there is room.
    packed = np.unique(np.concatenate(members) * max(1, first) + np.concatenate(keys))
    return np.stack(np.divmod(packed, max(1, first)), axis=1)


def partners(rows: int, links: np.ndarray) -> np.ndarray:
    """Return for each row how many others have a key in common with it, int64 [rows].

    Args:
        rows: how many there are.
        links: of `linked`.
    """
    sizes = np.bincount(links[:, 1])
    links = links[sizes[links[:, 1]] > 1]  # what only one row has, no other has
    counts = np.bincount(links[:, 0], minlength=rows)
    starts = np.cumsum(counts) - counts
    found = np.zeros(rows, np.int64)
    one = np.flatnonzero(counts == 1)
    found[one] = sizes[links[starts[one], 1]] - 1
    # A union of several, once for each set of keys; there are fewer sets than rows, and mostly of two keys.
    by_key = np.argsort(links[:, 1], kind="stable")
    holders, begins = links[by_key, 0], np.cumsum(sizes * (sizes > 1)) - sizes * (sizes > 1)
    known: dict[bytes, int] = {}
    for row in np.flatnonzero(counts > 1).tolist():
        keys = links[starts[row] : starts[row] + counts[row], 1]
        if (name := keys.tobytes()) not in known:
            known[name] = _different([holders[begins[key] : begins[key] + sizes[key]] for key in keys.tolist()]) - 1
        found[row] = known[name]
    return found


def _different(parts: list[np.ndarray]) -> int:
    """Return how many different numbers there are."""
    if sum(map(len, parts)) < _FEW:
        return len(set().union(*(part.tolist() for part in parts)))
    return len(np.unique(np.concatenate(parts)))


def expected_share(partners: np.ndarray, batch_size: int) -> float:
    """Return the expected share of a batch's rows that have a partner in it, where batches are drawn uniformly.

    A row with f partners among the N - 1 others has none among the B - 1 that it meets with the hypergeometric
    probability C(N - 1 - f, B - 1) / C(N - 1, B - 1), which is the product of (N - B - t) / (N - 1 - t) over t < f.

    Args:
        partners: int64 [N], of each row.
        batch_size: B, at most N.
    """
    rows = len(partners)
    if rows < 2 or batch_size < 2:
        return 0.0
    counts = np.bincount(partners)
    before = np.arange(len(counts) - 1)
    alone = np.concatenate([[1.0], np.cumprod(np.maximum(rows - batch_size - before, 0) / (rows - 1 - before))])
    return float((counts * (1 - alone)).sum() / rows)


def share_in_first_epoch(
    parts: list[Part], links: np.ndarray, batch_size: int, seed: int, apart: np.ndarray | None
) -> float:
    """Return the share of the rows of a run's first epoch that have a partner in their batch, counted.

    Args:
        parts: of the training rows.
        links: of `linked`.
        batch_size: rows of a batch over all processes.
        seed: the run's.
        apart: int64 [rows], of what is kept out of one batch where possible; None keeps nothing apart.
    """
    batches = TrainingBatches(EpochOrder(parts, seed), batch_size, lambda: 0, lambda: 1, apart=apart)
    rows, _ = batches.epoch(0)
    rows = rows[: len(batches) * batch_size]
    # The links of each position: its row may come again, or not at all.
    counts = np.bincount(links[:, 0], minlength=len(batches.order))
    starts, repeats = (np.cumsum(counts) - counts)[rows], counts[rows]
    inside = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    keys = links[np.repeat(starts, repeats) + inside, 1]
    positions = np.repeat(np.arange(len(rows)), repeats)
    batch = positions // batch_size
    order = np.lexsort((keys, batch))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (batch[order][1:] != batch[order][:-1]) | (keys[order][1:] != keys[order][:-1])
    sizes = np.diff(np.flatnonzero(np.append(new, True)))
    met = np.zeros(len(rows), dtype=bool)
    met[positions[order][np.repeat(sizes > 1, sizes)]] = True
    return float(met.mean())
