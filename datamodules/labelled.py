"""Labelled pictures in the form that every kind of place is read into."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from datamodules.sources.source import CAPTIONS, Column, PictureFiles, Pictures, Places, Source
from workbench.errors import UserError


@dataclass(frozen=True)
class Labelled:
    """The pictures of a split, and the class of each.

    Attributes:
        source: the pictures; its captions say what was written about them.
        labels: int64 [N], the number of each one's class.
    """

    source: Source
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "Labelled":
        """Return some rows, in that order."""
        rows = np.asarray(rows, dtype=np.int64)
        source = self.source
        if source.block_starts is not None and (np.diff(rows) < 0).any():
            source = replace(source, block_starts=None)  # they no longer lie together
        return Labelled(source.take(rows), self.labels[rows])

    def counts(self, classes: int) -> np.ndarray:
        """Return how many pictures each of so many classes has, int64 [C]."""
        return np.bincount(self.labels, minlength=classes)


def labelled(
    name: str, pictures: Pictures, labels: Sequence[int] | np.ndarray, classes: Sequence[str], place: str | None = None
) -> Labelled:
    """Return pictures that are not from a table, with the names of their classes as captions.

    Args:
        name: what the user calls the place.
        pictures: N of them.
        labels: N numbers of classes.
        classes: what the data calls each.
        place: what messages call it, if not by its name.
    """
    numbers = np.asarray(labels, dtype=np.int64)
    captions = pa.array([[name] for name in classes], CAPTIONS).take(pa.array(numbers))
    where: Callable[[int], str] = Places(place or name, None, "picture")
    return Labelled(Source(name, pictures, Column(captions), where), numbers)


def picture_files(paths: Sequence[str], root: Path) -> PictureFiles:
    """Return files under a folder as pictures.

    Args:
        paths: relative to `root`, or below it.
        root: a folder.

    Raises:
        UserError: a name that is no text.
    """
    prefix = f"{str(root).rstrip('/')}/"
    relative = [path.removeprefix(prefix) for path in paths]
    try:
        return PictureFiles(Column(relative, pa.large_string()), root)
    except UnicodeEncodeError as error:
        wrong = next(path for path in relative if not _is_text(path))
        raise UserError(f"The name of the file {wrong!r} in {root} is not UTF-8; rename it.") from error


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
