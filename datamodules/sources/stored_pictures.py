"""Pictures that lie as bytes inside of tables, read block by block when they are asked for."""

import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from datamodules.sources.pairs_table import fault_finder, pictures_under
from datamodules.sources.source import Column
from datamodules.sources.table_file import TableFile
from workbench.errors import UserError

_KEPT_BYTES = 1 << 28
_KEPT_BLOCKS = 4
_OPEN_FILES = 16


@dataclass(frozen=True)
class Files:
    """Row -> file and row in it, for rows that lie in several files one after another.

    Attributes:
        tables: the files.
        starts: int64 [files + 1], the first row of each, and the number of all.
        rows: of those that were taken, where they lie in the whole; None takes all.
    """

    tables: list[TableFile]
    starts: np.ndarray
    rows: Column | None = None

    def __len__(self) -> int:
        return int(self.starts[-1]) if self.rows is None else len(self.rows)

    def __call__(self, row: int) -> str:
        """Return the file and the row's number there, from 1: a place for messages."""
        file, inside = self.find(row)
        return f"{self.tables[file].name}, row {inside + 1}"

    def whole(self, row: int) -> int:
        """Return where a row lies in the whole."""
        return row if self.rows is None else self.rows[row]

    def find(self, row: int) -> tuple[int, int]:
        """Return the number of a row's file, and of the row there, from 0."""
        row = self.whole(row)
        file = int(np.searchsorted(self.starts, row, side="right")) - 1
        return file, row - int(self.starts[file])

    def wholes(self) -> np.ndarray:
        """Return where all rows lie in the whole, int64."""
        return np.arange(len(self)) if self.rows is None else self.rows.array.to_numpy()

    def take(self, rows: Sequence[int] | np.ndarray) -> "Files":
        """Return those of some rows."""
        taken = Column(np.asarray(rows, np.int64)) if self.rows is None else self.rows.take(rows)
        return replace(self, rows=taken)


class StoredPictures(ABC):
    """Pictures in a column of tables: bytes, or Hugging Face's structures of bytes and a path.

    Files are opened in each process that reads, and the last blocks that were read are kept there: neither is
    pickled, nor used by a process that was forked.

    Args:
        files: the rows.
        column: name of the pictures' column.
        blocks: int64 [blocks, 2], number of the file, and of the first row in the whole; rows of a block are read at
            once.
        root: folder of pictures that are not stored but named by a path.
    """

    def __init__(self, files: Files, column: str, blocks: np.ndarray, root: str):
        self.files, self.column, self.blocks, self.root = files, column, blocks, root
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._open: OrderedDict[int, Any] = OrderedDict()
        self._kept: OrderedDict[int, pa.Array | pa.ChunkedArray] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_process", "_open", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __len__(self) -> int:
        return len(self.files)

    def name(self, row: int) -> str:
        """Return `file/number`, as rows of one file are no pictures of one file; numbers are from 1."""
        file, inside = self.files.find(row)
        return f"{self.files.tables[file].name}/{inside + 1}"

    def names(self) -> pa.Array:
        """Return the rows' numbers in all files, as text."""
        return pa.array(self.files.wholes()).cast(pa.large_string())

    def read(self, row: int) -> bytes:
        """Return the bytes, or those of the file that the row names.

        Raises:
            UserError: there are none, or the table cannot be read any more.
        """
        whole = self.files.whole(row)
        block = int(np.searchsorted(self.blocks[:, 1], whole, side="right")) - 1
        try:
            cell = self.block(block)[whole - int(self.blocks[block, 1])].as_py()
        except (pa.ArrowException, OSError, IndexError) as error:
            raise UserError(f"{self.files(row)}: the picture cannot be read ({error}).") from error
        path = None
        if isinstance(cell, dict):
            cell, path = cell.get("bytes"), cell.get("path")
        if cell is None and path:
            fault = fault_finder(self.root)(path)
            if fault is not None:
                raise UserError(f"{self.files(row)}: {fault}")
            return pictures_under(self.root, Column([path])).read(0)
        if not cell:
            raise UserError(f"{self.files(row)}: there is no picture; take the row out.")
        return cell

    def block(self, number: int) -> pa.Array | pa.ChunkedArray:
        """Return the pictures of a block, as they are stored."""
        if self._process != os.getpid():
            self._forget()
        if number not in self._kept:
            file = int(self.blocks[number, 0])
            if file not in self._open:
                while len(self._open) >= _OPEN_FILES:
                    self._open.popitem(last=False)
                self._open[file] = self.open_file(self.files.tables[file])
            first = int(np.searchsorted(self.blocks[:, 0], file))
            read = self.read_block(self._open[file], number - first)
            while self._kept and (
                len(self._kept) >= _KEPT_BLOCKS
                or read.nbytes + sum(b.nbytes for b in self._kept.values()) > _KEPT_BYTES
            ):
                self._kept.popitem(last=False)
            self._kept[number] = read
        self._kept.move_to_end(number)
        return self._kept[number]

    @abstractmethod
    def open_file(self, table: TableFile) -> Any:
        """Open a file, for `read_block`."""

    @abstractmethod
    def read_block(self, file: Any, number: int) -> pa.Array | pa.ChunkedArray:
        """Return the pictures of a file's block, numbered from 0."""

    def missing(self, rows: Sequence[int]) -> list[int]:
        """Return none: what is not there is seen when a block is read."""
        return []

    def take(self, rows: Sequence[int] | np.ndarray) -> "StoredPictures":
        """Return those of some rows."""
        return type(self)(self.files.take(rows), self.column, self.blocks, self.root)
