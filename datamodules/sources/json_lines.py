"""Tables of JSON lines (JSONL, NDJSON): an object for each picture, also compressed with gzip.

The captions of a picture are a string, or a list of strings.
"""

import codecs
import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from datamodules.sources.building import ROWS_AT_ONCE, CaptionBuilder, TextBuilder
from datamodules.sources.columns import Columns, choose_columns, listed
from datamodules.sources.pairs_table import path_source
from datamodules.sources.source import Column, Places, ReadOptions, Source
from datamodules.sources.table_file import TableFile
from workbench.errors import UserError

LONGEST_LINE = 1 << 24
"""Bytes of a line; a longer one is no row of a table."""
_FIRST_ROWS = 20
_HINT = 'every line must be a whole JSON object of its own, such as {"image": "a.jpg", "caption": "a dog"}'


def read_json_lines(table: TableFile, options: ReadOptions) -> Source:
    """Read a table of JSON lines.

    Args:
        table: the file; gzip is undone if it is there.
        options: names of keys, and the root of the picture paths.

    Raises:
        UserError: it is no such table, a key is missing, or a value is no text; it names the line.
    """
    try:
        first = list(itertools.islice(_objects(table), _FIRST_ROWS))
        if not first:
            raise UserError(f"{table.name} is empty; {_HINT}.")
        keys = list(first[0][1])
        columns = choose_columns(keys, options, table.name, lambda: _by_key(keys, first))
        return _read(table, options, columns)
    except (OSError, EOFError) as error:
        raise UserError(f"The table {table.name} cannot be read ({error}).") from error


def _by_key(keys: list[str], rows: list[tuple[int, dict[str, Any]]]) -> dict[str, list[Any]]:
    return {key: [row[key] for _, row in rows if row.get(key) is not None] for key in keys}


def _read(table: TableFile, options: ReadOptions, columns: Columns) -> Source:
    paths, captions, labels = TextBuilder(), CaptionBuilder(), TextBuilder()
    lines: list[np.ndarray] = []
    rows = _objects(table)
    while some := list(itertools.islice(rows, ROWS_AT_ONCE)):
        found = [_cells(f"{table.name}, line {line}", row, columns) for line, row in some]
        try:
            paths.append(pa.array([path for path, _, _ in found], pa.large_string()))
            captions.append(pa.array([texts for _, texts, _ in found], pa.list_(pa.large_string())))
            labels.append(pa.array([label for _, _, label in found], pa.large_string()))
        except UnicodeEncodeError as error:
            raise UserError(_not_text(table, some, found)) from error
        lines.append(np.array([line for line, _ in some]))
    place = Places(table.name, Column(np.concatenate(lines)))
    label_array = None if columns.label is None else labels.finish()
    return path_source(table, options, paths.finish(), captions.finish(), label_array, place)


def _cells(where: str, row: dict[str, Any], columns: Columns) -> tuple[str, list[str], str]:
    """Return path, captions and label ("" where none is asked for) of a row."""
    for key in (columns.image, columns.caption, columns.label):
        if key is not None and key not in row:
            raise UserError(f"{where} has no key {key!r}; it has {listed(list(row))}.")
    path, texts = row[columns.image], row[columns.caption]
    if columns.caption == columns.label and isinstance(texts, int) and not isinstance(texts, bool):
        texts = str(texts)  # a class that stands for a caption may be a number
    if not isinstance(path, str):
        raise UserError(f"{where}: the picture path is {_kind(path)}; it must be a string.")
    texts = texts if isinstance(texts, list) else [texts]
    for text in texts:
        if not isinstance(text, str):
            raise UserError(
                f"{where}: the caption is {_kind(text)}; a caption is text: a string, or a list of strings."
            )
    if columns.label is None:
        return path, texts, ""
    label = row[columns.label]
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise UserError(f"{where}: the label is {_kind(label)}; it must be a string or a whole number.")
    return path, texts, str(label)


def _objects(table: TableFile) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number of each line that is not empty, and its object."""
    with table.open_text() as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), 1):
            where = f"{table.name}, line {number}"
            if len(line) > LONGEST_LINE:
                raise UserError(f"{where} is longer than {LONGEST_LINE} bytes; {_HINT}.")
            try:
                text = line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode()
                if not text.strip():
                    continue
                row = json.loads(text)
            except UnicodeDecodeError as error:
                raise UserError(f"{where} is not UTF-8 ({error.reason}); write the file again as UTF-8.") from error
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where} is not JSON ({str(error)[:200]}); {_HINT}.") from error
            if not isinstance(row, dict):
                raise UserError(f"{where} is {_kind(row)}; {_HINT}.")
            yield number, row


def _not_text(table: TableFile, rows: list[tuple[int, Any]], found: list[tuple[str, list[str], str]]) -> str:
    for (line, _), (path, texts, label) in zip(rows, found, strict=True):
        try:
            "".join([path, *texts, label]).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            return f"{table.name}, line {line}: {half!r} is half of a character; write both halves, or none."
    raise AssertionError("one of them could not be encoded")


def _kind(value: Any) -> str:
    """Return what a JSON value is, for a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {str(value)[:30]}"
    return {str: "a string", list: "a list", dict: "an object"}[type(value)]
