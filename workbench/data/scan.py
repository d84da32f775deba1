"""Every row of every split, looked at once, in several processes."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from workbench.data.captions import CAPTION, examine_caption
from workbench.data.pictures import PICTURE, Status, examine
from workbench.data.splits import Split
from workbench.errors import UserError

_ROWS_AT_ONCE, _TEXTS_AT_ONCE = 64, 2048
_REASONS_KEPT = 100_000
"""Of pictures that cannot be read: a text each, where all else is an array."""


@dataclass
class Scan:
    """What was seen of a split.

    Attributes:
        split: the rows.
        pictures: `PICTURE` [rows].
        captions: `CAPTION` [captions], entry after entry of `split.texts`.
        starts: int64 [entries + 1]: where each entry's captions begin.
        reasons: row -> why its picture cannot be read; of the first 100,000.
    """

    split: Split
    pictures: np.ndarray
    captions: np.ndarray
    starts: np.ndarray
    reasons: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def readable(self) -> np.ndarray:
        """Whether each picture can be read, bool [rows]."""
        return self.pictures["status"] == Status.READABLE

    def entries(self) -> np.ndarray:
        """Return the entry of each row, int64 [rows]."""
        return np.arange(len(self)) if self.split.entry_of is None else self.split.entry_of

    def rows_of_captions(self) -> np.ndarray:
        """Return the row of each caption, int64 [captions], where each row has its own."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


@dataclass(frozen=True)
class _Task:
    """Rows of a split whose pictures, or entries whose captions, are looked at together."""

    split: str
    captions: bool
    first: int
    last: int


class _Tasks(Dataset[Any]):
    def __init__(self, splits: dict[str, Split], tasks: list[_Task], max_pixels: int | None):
        self.splits, self.tasks, self.max_pixels = splits, tasks, max_pixels

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, number: int) -> tuple[np.ndarray, list[tuple[int, str]]]:
        task = self.tasks[number]
        split, rows = self.splits[task.split], range(task.first, task.last)
        if task.captions:
            texts = [text for entry in split.texts[task.first : task.last] for text in entry or ()]
            return np.array([examine_caption(text) for text in texts], CAPTION), []
        records, reasons = np.empty(len(rows), PICTURE), []
        for position, row in enumerate(rows):
            records[position], why = examine(lambda row=row: split.read(row), self.max_pixels)
            if why:
                reasons.append((row, why))
        return records, reasons


def scan(splits: dict[str, Split], workers: int | None = None, max_pixels: int | None = None) -> dict[str, Scan]:
    """Look at every picture and caption; the result does not depend on the number of workers.

    Args:
        splits: to look at; one that is there under two names is looked at once.
        workers: processes; 0 for this one alone, None for as many as there are cores.
        max_pixels: of a picture that a run would take, see `workbench.decoding.load_picture`.

    Returns:
        What was seen of each split.

    Raises:
        UserError: a process was ended from outside, for want of memory.
    """
    different = {
        name: split
        for number, (name, split) in enumerate(splits.items())
        if not any(split is other for other in list(splits.values())[:number])
    }
    found = {name: _empty(split) for name, split in different.items()}
    tasks = _tasks(different)
    rows = sum(map(len, different.values()))
    with tqdm(total=rows, desc="looking at pictures", unit="row", delay=1, leave=False, disable=None) as bar:
        try:
            done = _done(_Tasks(different, tasks, max_pixels), workers)
            for task, (records, reasons) in zip(tasks, done, strict=True):
                seen = found[task.split]
                if task.captions:
                    seen.captions[seen.starts[task.first] : seen.starts[task.last]] = records
                    continue
                seen.pictures[task.first : task.last] = records
                seen.reasons.update(reasons[: max(0, _REASONS_KEPT - len(seen.reasons))])
                bar.update(task.last - task.first)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                f"A process that looks at pictures was ended ({str(error).splitlines()[0]}); if the memory "
                "was full, use fewer of them with --workers."
            ) from error
    return {name: next(seen for seen in found.values() if seen.split is split) for name, split in splits.items()}


def default_workers() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _empty(split: Split) -> Scan:
    starts = np.concatenate([[0], np.cumsum(split.caption_counts())]).astype(np.int64)
    return Scan(split, np.zeros(len(split), PICTURE), np.zeros(int(starts[-1]), CAPTION), starts)


def _tasks(splits: dict[str, Split]) -> list[_Task]:
    tasks = []
    for name, split in splits.items():
        for captions, rows, step in ((True, len(split.texts), _TEXTS_AT_ONCE), (False, len(split), _ROWS_AT_ONCE)):
            tasks += [_Task(name, captions, first, min(first + step, rows)) for first in range(0, rows, step)]
    return tasks


def _done(tasks: _Tasks, workers: int | None) -> Iterator[Any]:
    workers = default_workers() if workers is None else workers
    # No more than there are tasks for: a process costs more than a few pictures.
    workers = min(workers, len(tasks) // 2)
    return iter(
        DataLoader(
            tasks,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
        )
    )


def _as_it_is(result: Any) -> Any:
    return result
