"""Folders that `datasets.Dataset.save_to_disk` writes: Arrow streams, which are mapped and not read into memory."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.sources.columns import First, listed
from datamodules.sources.source import ReadOptions, Source
from datamodules.sources.stored_pictures import Files, StoredPictures
from datamodules.sources.table_file import TableFile
from datamodules.sources.typed_columns import (
    TextRows,
    choose_typed_columns,
    class_names,
    class_names_of_schema,
    is_stored,
    is_text,
)
from workbench.errors import UserError

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
_LARGEST_JSON = 1 << 24
_FIRST_ROWS = 20


def is_saved_dataset(folder: Path) -> bool:
    """Return whether `save_to_disk` wrote a folder, of one split or of several."""
    return (folder / SPLITS).is_file() or ((folder / STATE).is_file() and (folder / INFO).is_file())


def splits_of(folder: Path) -> list[str] | None:
    """Return the splits of a folder that was written of several, or None if it was not.

    Raises:
        UserError: what names them cannot be read.
    """
    if not (folder / SPLITS).is_file():
        return None
    splits = _json(folder / SPLITS).get("splits")
    if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
        raise UserError(f"{folder / SPLITS} names no splits; save the data set again.")
    return splits


def read_saved_dataset(location: str, options: ReadOptions) -> Source:
    """Read a folder that `save_to_disk` wrote.

    Args:
        location: the folder of a data set, or of one split of several; that of all if there is only one.
        options: names of columns; and the folder of pictures that are not stored but named.

    Raises:
        UserError: the folder is of several splits, a file is not what it should be, or a row is wrong.
    """
    folder = Path(location)
    splits = splits_of(folder)
    if splits is not None:
        if len(splits) != 1:
            named = f"; name one, such as {folder / splits[0]}" if splits else ""
            raise UserError(f"{folder} has the splits {listed(splits)}{named}.")
        folder = folder / _plain(splits[0], folder / SPLITS)
    paths = [str(folder / name) for name in _file_names(folder)]
    batches = [_batches(path) for path in paths]
    schema = batches[0][0].schema
    names = class_names(_json(folder / INFO).get("features")) or class_names_of_schema(schema)
    columns = choose_typed_columns(schema, names, options, location, lambda: _first_rows(batches[0][0]))
    kind = schema.field(columns.image).type
    for path, some in zip(paths, batches, strict=True):
        if some[0].schema.remove_metadata() != schema.remove_metadata():
            raise UserError(f"{path} has other columns than {paths[0]}; save the data set again.")
        _require_sound(path, some, [column for column in vars(columns).values() if column is not None])

    everything = [batch for some in batches for batch in some]
    stored = is_stored(kind) and not (
        pa.types.is_struct(kind)
        and kind.get_field_index("path") >= 0
        and all(_has_no_bytes(batch.column(columns.image)) for batch in everything)
    )
    rows = TextRows(columns, paths=not stored)
    for batch in everything:
        rows.append(batch, names)
    lengths = np.array([len(batch) for batch in everything])
    numbers = np.repeat(np.arange(len(paths)), [len(some) for some in batches])
    starts = np.concatenate([[0], np.cumsum(np.bincount(numbers, lengths, len(paths)).astype(np.int64))])
    files = Files([TableFile.at(path) for path in paths], starts)
    table = TableFile(location, location, str(folder))
    if not stored:
        return rows.source(table, options, files, None)
    blocks = np.stack([numbers, np.cumsum(lengths) - lengths], axis=1)
    return rows.source(table, options, files, ArrowPictures(files, columns.image, blocks, table.root(options)))


class ArrowPictures(StoredPictures):
    """Pictures in a column of Arrow streams; a block is a record batch, mapped, so only what is read is loaded."""

    def open_file(self, table: TableFile) -> list[pa.Array]:
        """Map a file, and return the pictures of each batch."""
        batches = _batches(table.location)
        _require_sound(table.location, batches, [self.column])
        return [batch.column(self.column) for batch in batches]

    def read_block(self, file: list[pa.Array], number: int) -> pa.Array:
        """Return a batch's pictures."""
        return file[number]

    def missing(self, rows: Sequence[int]) -> list[int]:
        """Return the rows that have neither bytes nor a path."""
        empty = [_is_empty(self.block(number)) for number in range(len(self.blocks))]
        there = ~np.concatenate([part.to_numpy(zero_copy_only=False) for part in empty])
        return [row for row in rows if not there[self.files.whole(row)]]


def _file_names(folder: Path) -> list[str]:
    listed_files = _json(folder / STATE).get("_data_files")
    files = listed_files if isinstance(listed_files, list) and listed_files else [None]
    return [_plain(file.get("filename") if isinstance(file, dict) else None, folder / STATE) for file in files]


def _plain(name: Any, file: Path) -> str:
    """Return a name that a file gives, if it is one in that file's folder."""
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name or "\0" in name:
        raise UserError(f"{file} names {str(name)[:100]!r}, which is no file beside it; save the data set again.")
    return name


def _json(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            read = json.loads(opened.read(_LARGEST_JSON))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error}); save the data set again.") from error
    if not isinstance(read, dict):
        raise UserError(f"{file} is no JSON object; save the data set again.")
    return read


def _batches(path: str) -> list[pa.RecordBatch]:
    """Map a file; nothing of it is read but where its batches are. There is at least one, which may be empty."""
    try:
        stream = pa.ipc.open_stream(pa.memory_map(path))
        return list(stream) or [pa.RecordBatch.from_pylist([], stream.schema)]
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as an Arrow stream ({error}); save the data set again.") from error


def _require_sound(path: str, batches: list[pa.RecordBatch], columns: list[str]) -> None:
    """Refuse columns that lead out of the file: it is mapped as it is."""
    try:
        for batch in batches:
            for column in columns:
                batch.column(column).validate(full=True)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is damaged ({error}); save the data set again.") from error


def _has_no_bytes(pictures: pa.StructArray) -> bool:
    return pc.struct_field(pictures, "bytes").null_count == len(pictures)


def _is_empty(pictures: pa.Array) -> pa.BooleanArray:
    if not pa.types.is_struct(pictures.type):
        return pictures.is_null()
    parts = [part for part in ("bytes", "path") if pictures.type.get_field_index(part) >= 0]
    return functools.reduce(pc.and_, [pc.struct_field(pictures, part).is_null() for part in parts])


def _first_rows(batch: pa.RecordBatch) -> First:
    texts = [name for name in batch.schema.names if is_text(batch.schema.field(name).type)]
    try:
        return {name: batch.column(name)[:_FIRST_ROWS].to_pylist() for name in texts}
    except (KeyError, UnicodeDecodeError):  # There is a mistake to tell already.
        return {}
