"""Parquet: a file, or several with the same columns; pictures as paths, as bytes, or as Hugging Face writes them.

Stored pictures are read a row group at a time, so a row group must fit into the memory of every worker.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.sources.columns import Columns, First
from datamodules.sources.source import ReadOptions, Source
from datamodules.sources.stored_pictures import Files, StoredPictures
from datamodules.sources.table_file import TableFile
from datamodules.sources.typed_columns import (
    ClassNames,
    TextRows,
    choose_typed_columns,
    class_names_of_schema,
    is_stored,
    is_text,
)
from workbench.errors import UserError

LARGEST_GROUP = 1 << 30
"""Bytes of the pictures in a row group; more would fill the memory, once for each worker."""
SUFFIXES = (".parquet", ".pq")
_ROWS_AT_ONCE = 1 << 14
_FIRST_ROWS = 20
SPLITS = ("train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing")


def read_parquet(name: str, tables: Sequence[TableFile], options: ReadOptions) -> Source:
    """Read Parquet files as one table.

    Args:
        name: what the user called them.
        tables: the files, in the order of their rows; picture paths start from the first one's `folder`.
        options: names of columns, and the root of the picture paths.

    Raises:
        UserError: a file is no Parquet or lacks a column, or a row is wrong; it names the row.
    """
    with _opened(tables[0]) as file:
        schema = file.schema_arrow
        names = class_names_of_schema(schema)
        columns = choose_typed_columns(schema, names, options, tables[0].name, lambda: _first_rows(file))
    footers = [_read_footer(table, columns) for table in tables]
    for table, footer in zip(tables, footers, strict=True):
        if _way(footer.kind) != _way(footers[0].kind):
            raise UserError(
                f"The column {columns.image!r} is of type {footers[0].kind} in {tables[0].name} and {footer.kind} in "
                f"{table.name}; read them one at a time, or write them alike."
            )
    stored = is_stored(footers[0].kind) and not all(footer.only_paths for footer in footers)
    rows = TextRows(columns, paths=not stored)
    for table, footer in zip(tables, footers, strict=True):
        with _opened(table) as file:
            _read_text(table, file, rows, None if stored else footer.kind)
    starts = np.cumsum([0, *(footer.rows for footer in footers)])
    files = Files(list(tables), starts)
    whole = TableFile(name, name, tables[0].folder)
    if not stored:
        return rows.source(whole, options, files, None)
    blocks = np.concatenate(
        [
            np.stack([np.full(len(footer.groups), number), start + footer.groups], axis=1)
            for number, (start, footer) in enumerate(zip(starts, footers, strict=False))
        ]
    )
    pictures = ParquetPictures(files, columns.image, blocks, whole.root(options))
    return rows.source(whole, options, files, pictures, np.unique(blocks[blocks[:, 1] < starts[-1], 1]))


class ParquetPictures(StoredPictures):
    """Pictures in a column of Parquet files; a block is a row group."""

    def open_file(self, table: TableFile) -> pq.ParquetFile:
        """Open a file."""
        return _open(table)

    def read_block(self, file: pq.ParquetFile, number: int) -> pa.ChunkedArray:
        """Read a row group's pictures and nothing else."""
        return file.read_row_group(number, columns=_leaves(file, self.column), use_threads=False).column(self.column)


def require_one_split(folder: str, files: Sequence[str]) -> None:
    """Refuse the files of a folder if their names say that they are different splits of a data set.

    Args:
        folder: where they are.
        files: their paths.

    Raises:
        UserError: they do; it names the splits.
    """
    splits = [_split_of(PurePath(file).relative_to(folder)) for file in files]
    counts = Counter(split for split in splits if split is not None)
    if len(counts) > 1:
        found = ", ".join(f"{split} ({count} file{'s' * (count > 1)})" for split, count in counts.items())
        named = sorted(zip(files, splits, strict=True), key=lambda each: not (each[1] or "").startswith("train"))
        first = next(file for file, split in named if split is not None)
        pattern = re.sub(r"\d+(-of-\d+)?(?=\.\w+$)", "*", first)
        raise UserError(f"{folder} holds the splits {found}; name the files of one, such as {pattern}.")


def _split_of(path: PurePath) -> str | None:
    named = next((part for part in path.parts[:-1] if part in SPLITS), None)
    if named is None:
        numbered = re.fullmatch(r"(.+?)[-_.]\d+-of-\d+", path.stem)
        named = numbered[1] if numbered else path.stem if path.stem in SPLITS else None
    return named


# Footers


def _way(kind: pa.DataType) -> str:
    """Return in which of the three ways a column has its pictures."""
    return "structure" if pa.types.is_struct(kind) else "bytes" if is_stored(kind) else "path"


@dataclass(frozen=True)
class _Footer:
    """What a file says of itself.

    Attributes:
        rows: in the file.
        groups: int64, the first row of each row group.
        kind: type of the picture column.
        only_paths: whether its structures have no bytes at all.
    """

    rows: int
    groups: np.ndarray
    kind: pa.DataType
    only_paths: bool


def _read_footer(table: TableFile, columns: Columns) -> _Footer:
    with _opened(table) as file:
        schema, metadata = file.schema_arrow, file.metadata
        named = ReadOptions(columns.image, columns.caption, columns.label, captions=columns.caption != columns.label)
        choose_typed_columns(schema, class_names_of_schema(schema), named, table.name, dict)
        kind = schema.field(columns.image).type
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        only_paths = False
        if is_stored(kind):
            bytes_leaf = _leaf_number(metadata, _leaves(file, columns.image)[0])
            chunks = [group.column(bytes_leaf) for group in groups]
            only_paths = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0 and all(map(_is_null, chunks))
            _require_small_groups(table, max((chunk.total_uncompressed_size for chunk in chunks), default=0))
        starts = np.cumsum([0, *(group.num_rows for group in groups)], dtype=np.int64)[:-1]
        return _Footer(metadata.num_rows, starts, kind, only_paths)


def _leaves(file: pq.ParquetFile, column: str) -> list[str]:
    """Return the parts of a column of pictures that are read, the bytes first."""
    kind = file.schema_arrow.field(column).type
    if not pa.types.is_struct(kind):
        return [column]
    return [f"{column}.{part}" for part in ("bytes", "path") if kind.get_field_index(part) >= 0]


def _leaf_number(metadata: pq.FileMetaData, path: str) -> int:
    return next(n for n in range(metadata.num_columns) if metadata.schema.column(n).path == path)


def _is_null(chunk: pq.ColumnChunkMetaData) -> bool:
    """Return whether a column is known to have nothing in a row group."""
    statistics = chunk.statistics
    return statistics is not None and statistics.has_null_count and statistics.null_count == chunk.num_values


def _require_small_groups(table: TableFile, largest: int) -> None:
    if largest > LARGEST_GROUP:
        raise UserError(
            f"{table.name} has up to {largest / 1e9:.1f} GB of pictures in a row group, and each worker reads a whole "
            "one; write the file again with small ones, such as pyarrow.parquet.write_table(..., row_group_size=100)."
        )


# Reading


def _open(table: TableFile) -> pq.ParquetFile:
    # In pieces of a megabyte, on this thread: worker processes are forked, and threads are not.
    file = table.location if table.version is None else table.open()
    return pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)


@contextmanager
def _opened(table: TableFile) -> Iterator[pq.ParquetFile]:
    try:
        file = _open(table)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{table.name} cannot be read as Parquet ({error}).") from error
    try:
        yield file
    finally:
        file.close(force=True)


def _first_rows(file: pq.ParquetFile) -> First:
    schema = file.schema_arrow
    texts = [name for name in schema.names if schema.names.count(name) == 1 and is_text(schema.field(name).type)]
    try:
        return next(file.iter_batches(_FIRST_ROWS, columns=texts, use_threads=False)).to_pydict()
    except (pa.ArrowException, OSError, StopIteration, UnicodeDecodeError):  # There is a mistake to tell already.
        return {}


def _read_text(table: TableFile, file: pq.ParquetFile, rows: TextRows, paths: pa.DataType | None) -> None:
    """Read captions and labels, and the paths of pictures of the given type."""
    names: ClassNames = class_names_of_schema(file.schema_arrow)
    wanted: list[Any] = [column for column in (rows.columns.caption, rows.columns.label) if column is not None]
    if paths is not None:
        wanted.append(f"{rows.columns.image}.path" if pa.types.is_struct(paths) else rows.columns.image)
    try:
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=wanted, use_threads=False):
            rows.append(batch, names)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{table.name} cannot be read ({error}).") from error


def parquet_files(folder: Path) -> list[str]:
    """Return the Parquet files under a folder, sorted; of the links among them what they lead to is read."""
    return sorted(str(path) for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())
