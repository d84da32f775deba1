"""Tables in delimited text: CSV, TSV and their like, also compressed with gzip.

Where the file has no double quote, Arrow reads it, on all cores; otherwise Python's `csv` does, in chunks. Both give
the same rows. A cell is text, whatever it looks like.
"""

import codecs
import csv
import io
import itertools
import os
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow_csv

from datamodules.sources.building import ROWS_AT_ONCE, CaptionBuilder, TextBuilder
from datamodules.sources.columns import First, choose_columns
from datamodules.sources.pairs_table import LONGEST, path_source
from datamodules.sources.source import Column, Places, ReadOptions, Source
from datamodules.sources.table_file import TableFile
from workbench.errors import UserError

_USUAL_DELIMITERS = "\t,;|"
_OTHER_DELIMITERS = "\x01\x1e\x1f^~:"
_CHUNK = 1 << 22  # bytes at once
_FIRST_ROWS = 20


@dataclass(frozen=True)
class _Header:
    columns: list[str]
    delimiter: str
    lines: int
    """Up to and with the header's own."""


class _Rows:
    """The cells that are read, column by column, and the line that each row begins; `bounds` as of `TextBuilder`."""

    def __init__(self, columns: int, *bounds: int):
        self.cells = [CaptionBuilder(*bounds) if n == 1 else TextBuilder(*bounds) for n in range(columns)]
        self.lines: list[np.ndarray] = []

    def source(self, table: TableFile, options: ReadOptions) -> Source:
        """Return them as a source: the first column has the paths, the next the captions, the last the labels."""
        paths, captions, labels = [*(cells.finish() for cells in self.cells), None][:3]
        lines = self.lines[0] if len(self.lines) == 1 else np.concatenate([np.empty(0, np.int64), *self.lines])
        return path_source(table, options, paths, captions, labels, Places(table.name, Column(lines)))


def read_delimited(table: TableFile, options: ReadOptions) -> Source:
    """Read a table of delimited text with a header.

    Args:
        table: the file; gzip is undone if it is there.
        options: names of columns, and the root of the picture paths.

    Raises:
        UserError: it is no such table, lacks a column, or a row is wrong; it names the line.
    """
    try:
        header = _read_header(table)
        columns = choose_columns(header.columns, options, table.name, lambda: _first_rows(table, header))
        names = [columns.image, columns.caption, *([] if columns.label is None else [columns.label])]
        rows = _read_rows(table, header, [header.columns.index(name) for name in names])
    except UnicodeDecodeError as error:
        raise UserError(_not_utf8(table)) from error
    except (OSError, EOFError) as error:  # EOFError: gzip that was cut short
        raise UserError(f"The table {table.name} cannot be read ({error}).") from error
    return rows.source(table, options)


def _read_header(table: TableFile) -> _Header:
    with table.open_text() as file:
        start = file.read(1 << 16)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or start.count(b"\0") * 4 > len(start):
        raise UserError(f"{table.name} is UTF-16, or no text at all; save it as UTF-8 (in Excel: CSV UTF-8).")
    delimiter = _delimiter(re.split(r"[\r\n]+", start.decode("utf-8-sig", "replace").lstrip("\r\n"))[0])
    with closing(_csv_rows(table, delimiter)) as rows:
        _, last_line, columns = next(rows, (1, 1, []))
    if not columns:
        raise UserError(f"{table.name} is empty; it needs a header, such as filepath,caption, and rows under it.")
    if len(columns) == 1:
        raise UserError(
            f"{table.name} has a single column, {columns[0][:100]!r}: no comma, tab, semicolon or | parts its first "
            "line, which must be a header such as filepath,caption."
        )
    return _Header(columns, delimiter, last_line)


def _delimiter(line: str) -> str:
    """Return what parts the cells of a header."""
    line = re.sub('"[^"]*"', "", line)
    delimiters = _USUAL_DELIMITERS if any(delimiter in line for delimiter in _USUAL_DELIMITERS) else _OTHER_DELIMITERS
    return max(delimiters, key=line.count)


def _first_rows(table: TableFile, header: _Header) -> First:
    with closing(_csv_rows(table, header.delimiter)) as rows:
        try:
            first = [cells for _, _, cells in itertools.islice(rows, 1, _FIRST_ROWS)]
        except (UserError, UnicodeDecodeError):  # It is for a message, and there is a mistake to tell already.
            first = []
    return {name: [cells[n] for cells in first if n < len(cells)] for n, name in enumerate(header.columns)}


def _read_rows(table: TableFile, header: _Header, wanted: list[int]) -> _Rows:
    lines = _count_lines(table)
    if lines is not None:
        try:
            return _read_with_arrow(table, header, wanted, lines)
        except pa.ArrowInvalid:
            pass  # There is a wrong row; the other reader says which.
    return _read_with_csv(table, header, wanted)


# Without quotes


def _count_lines(table: TableFile) -> int | None:
    """Return the number of lines; None where there is a quote, or Arrow would end a line elsewhere than Python."""
    lines, last = 0, b"\n"
    for chunk in _chunks(table):
        newlines = chunk.count(b"\n")
        if b'"' in chunk or not newlines or chunk.count(b"\r") != chunk.count(b"\r\n"):
            return None
        lines, last = lines + newlines, chunk[-1:]
    return lines + (last != b"\n")


def _chunks(table: TableFile) -> Iterator[bytes]:
    """Yield the file in pieces that part no `\\r\\n`."""
    with table.open_text() as file:
        while chunk := file.read(_CHUNK):
            while chunk.endswith(b"\r") and (more := file.read(1)):
                chunk += more
            yield chunk


def _read_with_arrow(table: TableFile, header: _Header, wanted: list[int], lines: int) -> _Rows:
    names = [str(number) for number in range(len(header.columns))]  # The header's may be there twice.
    chosen = [names[number] for number in wanted]
    with table.open() as file:
        size = os.fstat(file.fileno()).st_size
    rows, count = _Rows(len(wanted), lines, size), 0
    with table.open_text() as file:
        batches = arrow_csv.open_csv(
            file,
            arrow_csv.ReadOptions(column_names=names, skip_rows=header.lines, block_size=_CHUNK),
            arrow_csv.ParseOptions(delimiter=header.delimiter, quote_char=False, escape_char=False),
            arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(chosen, pa.large_string()),
                include_columns=list(dict.fromkeys(chosen)),
                strings_can_be_null=False,  # `NA` is text
            ),
        )
        for batch in batches:
            count += len(batch)
            for cells, name in zip(rows.cells, chosen, strict=True):
                cells.append(batch.column(name))
    numbers = np.arange(header.lines + 1, lines + 1)
    if len(numbers) != count:
        blank = _blank_lines(table)
        numbers = np.delete(numbers, blank[blank > header.lines] - header.lines - 1)
    if len(numbers) != count:
        raise pa.ArrowInvalid("rows were parted otherwise than lines were counted")
    rows.lines.append(numbers)
    return rows


def _blank_lines(table: TableFile) -> np.ndarray:
    """Return the numbers of the empty lines, from 1, int64."""
    found, lines, rest = [], 0, b""
    for chunk in _chunks(table):
        text = np.frombuffer(rest + chunk, np.uint8)
        ends = np.flatnonzero(text == ord("\n"))
        starts = np.concatenate([[0], ends[:-1] + 1])
        blank = (ends == starts) | ((ends == starts + 1) & (text[starts] == ord("\r")))
        found.append(np.flatnonzero(blank) + lines + 1)
        lines, rest = lines + len(ends), text[ends[-1] + 1 :].tobytes()
    return np.concatenate(found)


# With quotes


def _read_with_csv(table: TableFile, header: _Header, wanted: list[int]) -> _Rows:
    rows, width = _Rows(len(wanted)), len(header.columns)
    with closing(_csv_rows(table, header.delimiter)) as read:
        next(read)
        while some := list(itertools.islice(read, ROWS_AT_ONCE)):
            for line, _, cells in some:
                if len(cells) != width:
                    raise UserError(_wrong_width(f"{table.name}, line {line}", len(cells), header))
            rows.lines.append(np.array([line for line, _, _ in some]))
            for column, number in zip(rows.cells, wanted, strict=True):
                column.append(pa.array([cells[number] for _, _, cells in some], pa.large_string()))
    return rows


def _csv_rows(table: TableFile, delimiter: str) -> Iterator[tuple[int, int, list[str]]]:
    """Yield each row's first line, its last one, and its cells; empty lines are left out."""
    before = csv.field_size_limit(LONGEST)  # It is the process's, not the reader's.
    begins = 1
    try:
        with io.TextIOWrapper(table.open_text(), encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(iter(lambda: text.readline(_CHUNK), ""), delimiter=delimiter, strict=True)
            for cells in reader:
                if cells:
                    yield begins, reader.line_num, cells
                begins = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{table.name}, line {begins}: {error}; a cell with a double quote in it goes between double quotes, and "
            "the quote is doubled."
        ) from error
    finally:
        csv.field_size_limit(before)


def _wrong_width(where: str, cells: int, header: _Header) -> str:
    width = len(header.columns)
    if cells > width:
        return (
            f"{where}: there are more cells than the header's {width}; put a cell that has {header.delimiter!r} in it "
            "between double quotes."
        )
    return f"{where}: there are fewer cells than the header's {width}, only {cells}; fill the row up, or take it out."


def _not_utf8(table: TableFile) -> str:
    with table.open_text() as file:
        for number, text in enumerate(iter(lambda: file.readline(_CHUNK), b""), 1):
            try:
                text.decode("utf-8")
            except UnicodeDecodeError as error:
                wrong = f"{table.name}, line {number}: the byte 0x{text[error.start]:02x} is not UTF-8"
                return (
                    f"{wrong}; the table may be Latin-1 (Windows-1252): save it as UTF-8, for example with: "
                    "iconv -f WINDOWS-1252 -t UTF-8 < old > new."
                )
    raise AssertionError("one of the lines could not be decoded")
