"""The form that every place of data is read into: rows of an encoded picture and its captions.

What grows with the number of rows is in Arrow memory: it has no Python objects whose reference counts a worker would
touch, so workers that are forked share it, and it is sent once, through shared memory, to all that are spawned.
"""

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
import pyarrow as pa
import torch

from workbench.errors import UserError

CAPTIONS = pa.list_(pa.large_string())
"""The type of `Source.captions`: every row has at least one."""


class Column(Sequence[Any]):
    """An Arrow array as a sequence of Python values.

    Args:
        values: an Arrow array, chunked or not, or a sequence that becomes one.
        type: of the array; None takes what Arrow infers.
    """

    def __init__(self, values: Any, type: pa.DataType | None = None):
        array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, type)
        if type is not None and array.type != type:
            array = array.cast(type)
        self.array: pa.Array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
        self._shared: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, row: int) -> Any: ...
    @overload
    def __getitem__(self, row: slice) -> list[Any]: ...
    def __getitem__(self, row: int | slice) -> Any:
        if isinstance(row, slice):
            return self.array[row].to_pylist()
        return self.array[int(row)].as_py()

    @classmethod
    def joined(cls, columns: Sequence["Column"]) -> "Column":
        """Return columns one after another, as one."""
        return cls(pa.chunked_array([column.array for column in columns]))

    def take(self, rows: Sequence[int] | np.ndarray) -> "Column":
        """Return the column of some rows, in that order."""
        return Column(self.array.take(pa.array(np.asarray(rows, dtype=np.int64))))

    def __getstate__(self) -> torch.Tensor:
        # A tensor, as torch sends it to a spawned worker by handle; the same one, so that all workers get one memory.
        if self._shared is None:
            sink = io.BytesIO()
            batch = pa.record_batch([self.array], names=["values"])
            with pa.ipc.new_stream(sink, batch.schema) as writer:
                writer.write_batch(batch)
            self._shared = torch.frombuffer(sink.getbuffer(), dtype=torch.uint8)
        return self._shared

    def __setstate__(self, state: torch.Tensor) -> None:
        self._shared = state
        table = pa.ipc.open_stream(pa.py_buffer(state.numpy())).read_all()
        self.array = table.column("values").combine_chunks()
        if isinstance(self.array, pa.ChunkedArray):  # of no rows
            self.array = pa.array([], self.array.type)


class Pictures(Protocol):
    """Where the encoded pictures of a source are; must be picklable, for spawned workers."""

    def __len__(self) -> int: ...

    def read(self, row: int) -> bytes:
        """Return the bytes of a row's picture file.

        Raises:
            UserError: there is none, or it may not be read.
        """

    def name(self, row: int) -> str:
        """Return what the picture is called: its path, or `shard.tar/member`. Equal names are the same picture."""

    def names(self) -> pa.Array:
        """Return for all rows a name or, where it is shorter, what stands for it in this source."""

    def missing(self, rows: Sequence[int]) -> list[int]:
        """Return those of the rows whose picture is not there, as far as that can be told without reading it."""

    def take(self, rows: Sequence[int] | np.ndarray) -> "Pictures":
        """Return the pictures of some rows, in that order."""


@dataclass(frozen=True)
class ReadOptions:
    """What the user says about a place where looking is not enough.

    Attributes:
        image_column: header or key of the picture paths or bytes; None takes the usual names.
        caption_column: header or key of the captions; None takes the usual names.
        label_column: header or key of the class; None reads none.
        root: folder that relative picture paths start from; None takes the table's own.
        sidecar: `first` or `all` lines of a caption file beside a picture: an alternative caption each.
        captions: whether there are any; False takes the class for one, which has usual names, too, then.
        lenient: keep rows that would be refused, for a report of all of them: without a caption they have an empty
            one, and a path is what it is.
    """

    image_column: str | None = None
    caption_column: str | None = None
    label_column: str | None = None
    root: str | None = None
    sidecar: str = "first"
    captions: bool = True
    lenient: bool = False


@dataclass(frozen=True)
class Places:
    """Row -> where it was written, for messages: `pairs.csv, line 17`."""

    what: str
    numbers: Column | None = None
    """Int64, one for each row; None counts rows from 1."""
    unit: str = "line"

    def __call__(self, row: int) -> str:
        """Return a row's place."""
        return f"{self.what}, {self.unit} {self.numbers[row] if self.numbers is not None else row + 1}"

    def take(self, rows: Sequence[int] | np.ndarray) -> "Places":
        """Return the places of some rows."""
        numbers = self.numbers or Column(np.arange(1, 1 + (max(rows) + 1 if len(rows) else 0)))
        return replace(self, numbers=numbers.take(rows))


@dataclass(frozen=True)
class Source:
    """What was found at one place.

    Attributes:
        name: what the user called the place.
        pictures: of each row.
        captions: of each row, at least one; of type `CAPTIONS`.
        place: row -> where it was written.
        labels: the class of each row as written (text), where a label column was asked for.
        block_starts: where rows lie together and are best read together (tar shards): the first row of each block.
    """

    name: str
    pictures: Pictures
    captions: Column
    place: Callable[[int], str]
    labels: Column | None = None
    block_starts: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.captions)

    def take(self, rows: Sequence[int] | np.ndarray) -> "Source":
        """Return the source of some rows, in that order, which must ascend where there are blocks."""
        rows = np.asarray(rows, dtype=np.int64)
        blocks = None
        if self.block_starts is not None:
            blocks = np.unique(np.searchsorted(rows, self.block_starts))
            blocks = blocks[blocks < len(rows)]
        return replace(
            self,
            pictures=self.pictures.take(rows),
            captions=self.captions.take(rows),
            place=self.place.take(rows),
            labels=None if self.labels is None else self.labels.take(rows),
            block_starts=blocks,
        )


class PictureFiles:
    """Pictures in files under a folder.

    Args:
        paths: of each row, relative to `root` or absolute.
        root: no path may lead out of it, by `..`, by a link or by being absolute; `/` allows all.
    """

    def __init__(self, paths: Column, root: str | Path):
        self.paths, self.root = paths, str(root)
        self._resolved = os.path.realpath(self.root)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, row: int) -> str:
        """Return the path, with the root's."""
        return str(Path(self.root, self.paths[row]))

    def names(self) -> pa.Array:
        """Return the paths as written."""
        return self.paths.array

    def read(self, row: int) -> bytes:
        """Read a file.

        Raises:
            UserError: it is not there, cannot be read, or lies outside the root.
        """
        path = self.name(row)
        try:
            self.require_inside(path)
            return Path(path).read_bytes()
        except FileNotFoundError as error:
            raise UserError(
                f"there is no picture {path}; relative paths start from {self.root} (--data.root changes it)."
            ) from error
        except (OSError, ValueError, RuntimeError) as error:  # a folder, no permission, too long, links in a circle
            raise UserError(f"Picture {path[:200]!r} cannot be read ({error}).") from error

    def require_inside(self, path: str) -> None:
        """Refuse a path that leads out of the root.

        Raises:
            UserError: it does.
        """
        inside = self._resolved.rstrip(os.sep) + os.sep
        if not os.path.realpath(path).startswith(inside):
            raise UserError(f"{path} leads out of {self.root}; name a folder above it with --data.root.")

    def missing(self, rows: Sequence[int]) -> list[int]:
        """Return the rows whose path is no file."""
        return [row for row in rows if not self._is_file(self.paths[row])]

    def _is_file(self, path: str) -> bool:
        try:
            return Path(self.root, path).is_file()
        except (OSError, ValueError):  # too long a name, a zero byte
            return False

    def take(self, rows: Sequence[int] | np.ndarray) -> "PictureFiles":
        """Return those of some rows."""
        return PictureFiles(self.paths.take(rows), self.root)


class JoinedPictures:
    """The pictures of several sources, one after another."""

    def __init__(self, parts: Sequence[Pictures]):
        self.parts = list(parts)
        self.starts = np.cumsum([0, *map(len, parts)])

    def read(self, row: int) -> bytes:
        """Read from the part."""
        part, inside = _part_of(self.starts, row)
        return self.parts[part].read(inside)

    def name(self, row: int) -> str:
        """Return the part's name for it."""
        part, inside = _part_of(self.starts, row)
        return self.parts[part].name(inside)


class JoinedPlaces:
    """The places of several sources, one after another.

    Args:
        parts: rows and places of each.
    """

    def __init__(self, parts: Sequence[tuple[int, Callable[[int], str]]]):
        self.places = [place for _, place in parts]
        self.starts = np.cumsum([0, *(rows for rows, _ in parts)])

    def __call__(self, row: int) -> str:
        """Return a row's place."""
        part, inside = _part_of(self.starts, row)
        return self.places[part](inside)


def _part_of(starts: np.ndarray, row: int) -> tuple[int, int]:
    """Return a row's part, and its number there."""
    part = int(np.searchsorted(starts, row, side="right")) - 1
    return part, int(row - starts[part])
